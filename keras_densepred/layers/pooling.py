"""Pooling layers."""

import math

import keras
from keras import ops

from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.pooling import adaptive_mean_pool, max_pool2d


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaxPool(Stateless, keras.layers.Layer):
    """Max-pooling that keeps the size or, with a stride, divides it, rounded up, as Darknet does.

    An odd window is padded equally on all sides, an even one by one position more below and on the
    right: 2x2 pooling of stride 2 pads odd sizes only. Padding is never the largest value.

    Input: `(batch, height, width, channels)`.

    Args:
        pool_size: side of the window in pixels.
        strides: step of the window in pixels.
    """

    def __init__(self, pool_size: int = 3, strides: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.strides = strides

    def call(self, inputs):
        padding = ((self.pool_size - 1) // 2, self.pool_size // 2)
        return max_pool2d(inputs, pool_size=self.pool_size, strides=self.strides, padding=padding)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        sizes = [None if size is None else -(-size // self.strides) for size in sizes]
        return (batch, *sizes, channels)

    def comparisons(self, input_shape, output_shape) -> int:
        """What `analysis.darknet_costs` counts: a window's positions at each of the output's."""
        return self.pool_size**2 * math.prod(output_shape)

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}


@keras.saving.register_keras_serializable(package="keras_densepred")
class GlobalMean(Stateless, keras.layers.Layer):
    """The mean over all positions, kept as a map of one: `(batch, 1, 1, channels)`."""

    def call(self, inputs):
        return ops.mean(inputs, axis=(1, 2), keepdims=True)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1, 1, input_shape[-1])


@keras.saving.register_keras_serializable(package="keras_densepred")
class AdaptiveMean(Stateless, keras.layers.Layer):
    """The means over a grid of cells of a map of any size: see `ops.pooling.adaptive_mean_pool`.

    Input: `(batch, height, width, channels)`. Output: `(batch, cells, cells, channels)`.

    Args:
        cells: of the grid, along each axis.
    """

    def __init__(self, cells: int, **kwargs):
        super().__init__(**kwargs)
        self.cells = cells

    def call(self, inputs):
        return adaptive_mean_pool(inputs, self.cells)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.cells, self.cells, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "cells": self.cells}


@keras.saving.register_keras_serializable(package="keras_densepred")
class Subsample(Stateless, keras.layers.Layer):
    """Every other position along both axes: halves a map, rounded up.

    Input: `(batch, height, width, channels)`.
    """

    def call(self, inputs):
        return inputs[:, ::2, ::2]

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else -(-size // 2) for size in sizes), channels)
