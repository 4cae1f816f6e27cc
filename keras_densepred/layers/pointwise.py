"""1x1 convolution."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_densepred")
class Pointwise(keras.layers.Dense):
    """A Dense layer for maps: a 1x1 convolution over `(batch, height, width, channels)`.

    The positions are laid out in one axis for the product. On JAX and CPU that alone makes the
    gradient of an MLP of two such layers three times as fast (41 ms as four axes, 14 ms as two,
    for a (8, 32, 32, 32) map with an expansion of 4, in CPU time): XLA contracts one axis for the
    kernel's gradient, not three.
    """

    def call(self, inputs, training=None):
        shape = ops.shape(inputs)
        outputs = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])), training=training)
        return ops.reshape(outputs, (*shape[:-1], self.units))
