"""Pooling layers."""

import keras
from keras import ops

from keras_densepred.layers.direct import Direct
from keras_densepred.ops.pooling import max_pool2d


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaxPool(Direct, keras.layers.Layer):
    """3x3 max-pooling of stride 2, padded on each side: halves a map, rounded up.

    Input: `(batch, height, width, channels)`.
    """

    def call(self, inputs):
        return max_pool2d(inputs, pool_size=3, strides=2, padding=1)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else -(-size // 2) for size in sizes), channels)


@keras.saving.register_keras_serializable(package="keras_densepred")
class GlobalMean(Direct, keras.layers.Layer):
    """The mean over all positions, kept as a map of one: `(batch, 1, 1, channels)`."""

    def call(self, inputs):
        return ops.mean(inputs, axis=(1, 2), keepdims=True)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1, 1, input_shape[-1])


@keras.saving.register_keras_serializable(package="keras_densepred")
class Subsample(Direct, keras.layers.Layer):
    """Every other position along both axes: halves a map, rounded up.

    Input: `(batch, height, width, channels)`.
    """

    def call(self, inputs):
        return inputs[:, ::2, ::2]

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else -(-size // 2) for size in sizes), channels)
