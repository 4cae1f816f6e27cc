"""The first layer of a backbone: checks the image size."""

import keras

from keras_densepred.ops.checks import check_size_multiple


@keras.saving.register_keras_serializable(package="keras_densepred")
class SizeCheck(keras.layers.Layer):
    """Passes a batch of images on, or says in one sentence that their size does not fit.

    Args:
        divisor: height and width must be multiples of this, in pixels.
        data_format: `"channels_last"` or `"channels_first"`.

    Raises:
        ValueError: when called on images of another size.
    """

    def __init__(self, divisor: int, data_format: str = "channels_last", **kwargs):
        super().__init__(**kwargs)
        self.divisor = divisor
        self.data_format = data_format

    def call(self, inputs):
        return check_size_multiple(inputs, self.divisor, self.data_format)

    def compute_output_spec(self, inputs):
        check_size_multiple(inputs, self.divisor, self.data_format)
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "divisor": self.divisor,
            "data_format": self.data_format,
        }
