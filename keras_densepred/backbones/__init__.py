"""Backbones: images to a pyramid of feature maps."""

import importlib
from typing import Any

from keras_densepred.backbones.backbone import FeatureInfo, PyramidBackbone
from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.convnext import ConvNeXtBackbone
from keras_densepred.backbones.csp_densenet import CSPDenseNetBackbone, PeleeNetBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone, CSPStage
from keras_densepred.backbones.darknet_tiny import DarknetTinyBackbone
from keras_densepred.backbones.elastic_densenet import ElasticDenseNetBackbone
from keras_densepred.backbones.find import BackboneSource, find_backbone, load_backbone
from keras_densepred.backbones.host import HostBackbone
from keras_densepred.backbones.registry import (
    backbone_families,
    built_in_preset,
    built_in_presets,
    register_backbone,
)
from keras_densepred.backbones.resnet import ResNetBackbone
from keras_densepred.layers.image_input import image_input

__all__ = [
    "BackboneSource",
    "BiCSNetBackbone",
    "BiCSNetLiteBackbone",
    "CEDNetBackbone",
    "CSPDenseNetBackbone",
    "CSPNetBackbone",
    "CSPStage",
    "ConvNeXtBackbone",
    "DarknetTinyBackbone",
    "ElasticDenseNetBackbone",
    "FeatureInfo",
    "HostBackbone",
    "PeleeNetBackbone",
    "PyramidBackbone",
    "ResNetBackbone",
    "backbone_families",
    "built_in_preset",
    "built_in_presets",
    "find_backbone",
    "image_input",
    "load_backbone",
    "register_backbone",
]


def __getattr__(name: str) -> Any:
    # The necks had this address before they had a room of their own.
    if name in ("DetectionPyramid", "FeaturePyramid"):
        return getattr(importlib.import_module("keras_densepred.necks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
