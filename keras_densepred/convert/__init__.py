"""Weights of other code bases for the networks of this package."""

from keras_densepred.convert import (
    cednet,
    convnext,
    darknet,
    darknet_cfg,
    resnet,
    state,
    timm,
    upernet,
)

__all__ = [
    "cednet",
    "convnext",
    "darknet",
    "darknet_cfg",
    "darknet_detector",
    "resnet",
    "state",
    "timm",
    "upernet",
]
