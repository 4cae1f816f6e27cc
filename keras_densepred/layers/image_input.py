"""The input of a backbone: checked image sizes, and the two data layouts."""

from collections.abc import Sequence
from typing import Any

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


def resolve_data_format(data_format: str | None) -> str:
    """`data_format`, or Keras' default where it is None; ValueError if it is neither format."""
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f'`data_format` must be "channels_last" or "channels_first", got {data_format!r}.'
        )
    return data_format


def image_input(
    image_shape: Sequence[int | None],
    data_format: str | None = None,
    dtype: Any = None,
    size_divisor: int = 1,
) -> tuple[Any, Any]:
    """The input of a backbone, and the same images channels last, to build the network on.

    Args:
        image_shape: shape without the batch axis, in the layout `data_format`; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default.
        dtype: dtype policy of the layers.
        size_divisor: images whose height or width is no multiple of it are refused when they come.

    Returns:
        Symbolic images as they come in, and `(batch, height, width, channels)`.

    Raises:
        ValueError: if a size in `image_shape` is no multiple of `size_divisor`.
    """
    data_format = resolve_data_format(data_format)
    inputs = x = keras.Input(shape=tuple(image_shape), name="images")
    if size_divisor > 1:
        x = SizeCheck(size_divisor, data_format, name="size_check", dtype=dtype)(x)
    return inputs, to_channels_last(x, data_format, "to_channels_last", dtype)


def to_channels_last(x, data_format: str, name: str, dtype=None):
    """Turns a `data_format` map into a channels-last one, with a layer where one is needed."""
    if data_format == "channels_last":
        return x
    return keras.layers.Permute((2, 3, 1), name=name, dtype=dtype)(x)


def from_channels_last(x, data_format: str, name: str, dtype=None):
    """The inverse of `to_channels_last`."""
    if data_format == "channels_last":
        return x
    return keras.layers.Permute((3, 1, 2), name=name, dtype=dtype)(x)
