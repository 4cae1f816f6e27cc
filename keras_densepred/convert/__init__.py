"""Weights of other code bases for the networks of this package."""

from keras_densepred.convert import cednet

__all__ = ["cednet"]
