"""What a residual branch passes through: layer scale, drop path, the sum."""

import keras

from keras_densepred.layers.direct import Direct


@keras.saving.register_keras_serializable(package="keras_densepred")
class LayerScale(Direct, keras.layers.Layer):
    """Multiplies each channel (last axis) by a learned factor (Touvron et al., CaiT, eq. 4).

    Args:
        initial_value: the factor all channels start with.
    """

    def __init__(self, initial_value: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}


@keras.saving.register_keras_serializable(package="keras_densepred")
class Add(Direct, keras.layers.Layer):
    """The sum of two maps of the same shape."""

    def call(self, x, y):
        return x + y

    def compute_output_shape(self, x_shape, y_shape):
        return x_shape


def drop_path(inputs, rate: float, name: str, dtype=None):
    """Drops the whole branch of a sample with probability `rate` in training (Huang et al., 2016).

    Kept samples are scaled by `1 / (1 - rate)`. Keras' Dropout with one draw a sample is exactly
    this; at rate 0 no layer is added.

    Args:
        inputs: `(batch, height, width, channels)`.
        rate: probability in [0, 1).
        name: layer name.
        dtype: dtype policy of the layer.

    Returns:
        A tensor like `inputs`.
    """
    if rate == 0:
        return inputs
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name, dtype=dtype)(inputs)
