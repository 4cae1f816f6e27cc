"""Convolution layers with the symmetric padding of the papers; 1x1 ones are matrix products."""

import keras

from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.conv import conv2d
from keras_densepred.ops.pointwise import pointwise


@keras.saving.register_keras_serializable(package="keras_densepred")
class Conv(Stateless, keras.layers.Layer):
    """2D convolution with a square kernel and `(kernel_size - 1) // 2` zeros on each side.

    So 3x3 keeps the size, or with stride 2 halves it, rounded up; 2x2 with stride 2 halves it,
    rounded down. `keras.layers.Conv2D` pads a strided convolution unevenly.

    Input: `(batch, height, width, channels)`. Output: `(batch, height / strides, width / strides,
    filters)`.

    Args:
        filters: number of output channels.
        kernel_size: side of the kernel in pixels.
        strides: step of the window in pixels.
        use_bias: whether to add a bias per output channel.
        kernel_initializer: Keras initializer of the kernel, which has the shape `(kernel_size,
            kernel_size, channels / groups, filters)`; None is `FanOutNormal`.
        groups: number of groups of channels; each makes its share of the filters.

    Raises:
        ValueError: if the channels or the filters do not divide into the groups.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        use_bias: bool = True,
        kernel_initializer=None,
        groups: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if filters % groups:
            raise ValueError(f"`filters` must be a multiple of `groups`, got {filters}, {groups}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer) or FanOutNormal()
        self.groups = groups
        self.bias = None

    @property
    def padding(self) -> int:
        """Zeros on each side, in pixels."""
        return (self.kernel_size - 1) // 2

    def build(self, input_shape):
        if input_shape[-1] % self.groups:
            raise ValueError(
                f"`groups` is {self.groups}, which does not divide the {input_shape[-1]} channels "
                f"of the input."
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.kernel_size,
                self.kernel_size,
                input_shape[-1] // self.groups,
                self.filters,
            ),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        return conv2d(
            inputs,
            self.kernel,
            self.bias,
            strides=self.strides,
            padding=self.padding,
            groups=self.groups,
        )

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        reach = self.kernel_size - 2 * self.padding
        sizes = [None if size is None else (size - reach) // self.strides + 1 for size in sizes]
        return (batch, *sizes, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "groups": self.groups,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class PatchConv(Conv):
    """`Conv` without zeros around the map: patches side by side where `strides` is their side.

    Output: `(batch, (height - kernel_size) // strides + 1, ..., filters)`.
    """

    padding = 0


@keras.saving.register_keras_serializable(package="keras_densepred")
class Pointwise(Stateless, keras.layers.Dense):
    """A Dense layer for maps: a 1x1 convolution over `(batch, height, width, channels)`.

    Arguments are those of `keras.layers.Dense` but `activation`, which has layers of its own.
    """

    def call(self, inputs):
        return pointwise(inputs, self.kernel, self.bias)
