"""Normalisation and activation of channels-last maps."""

import keras

from keras_densepred.layers.direct import Direct
from keras_densepred.ops.gelu import gelu
from keras_densepred.ops.layer_norm import layer_norm


@keras.saving.register_keras_serializable(package="keras_densepred")
class LayerNorm(Direct, keras.layers.LayerNormalization):
    """Layer normalisation over the channels (last axis) of each position, epsilon 1e-6."""

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs):
        return layer_norm(inputs, self.gamma, self.beta, self.epsilon)


@keras.saving.register_keras_serializable(package="keras_densepred")
class GELU(Direct, keras.layers.Layer):
    """Exact (not tanh) Gaussian error linear unit; any shape."""

    def call(self, inputs):
        return gelu(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape
