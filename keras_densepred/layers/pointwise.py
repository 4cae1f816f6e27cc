"""1x1 convolution."""

import keras

from keras_densepred.layers.direct import Direct
from keras_densepred.ops.pointwise import pointwise


@keras.saving.register_keras_serializable(package="keras_densepred")
class Pointwise(Direct, keras.layers.Dense):
    """A Dense layer for maps: a 1x1 convolution over `(batch, height, width, channels)`.

    Arguments are those of `keras.layers.Dense` but `activation`, which has layers of its own.
    """

    def call(self, inputs):
        return pointwise(inputs, self.kernel, self.bias)
