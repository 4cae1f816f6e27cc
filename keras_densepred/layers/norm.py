"""Normalisation and activation of channels-last maps."""

import keras

from keras_densepred.layers.stateless import Direct
from keras_densepred.ops.pointwise import gelu, layer_norm
from keras_densepred.runtime.replicas import batch_moments


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


@keras.saving.register_keras_serializable(package="keras_densepred")
class BatchNorm(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose statistics are of all devices' rows ("SyncBN").

    The same weights, arguments and, on one device, the same results. With the devices of
    `training.distribute` the results are those of one device on the whole batch, on every backend:
    Keras 3.15.1 takes `synchronized=True` on TensorFlow only, and on JAX statistics are of the
    whole batch in any case. Masked batches, which images are not, have statistics per device.
    """

    def _moments(self, inputs, mask):
        if mask is not None:
            return super()._moments(inputs, mask)
        return batch_moments(inputs, tuple(self._reduction_axes))
