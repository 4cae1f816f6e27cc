"""Weights of other code bases for the networks of this package."""

from keras_densepred.convert import cednet, resnet

__all__ = ["cednet", "resnet"]
