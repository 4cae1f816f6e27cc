"""Deformable convolution as a layer, which finds its offsets itself, and networks made of it."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.conv import conv2d
from keras_densepred.ops.deformable_conv import Window, deformable_conv


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableConv2D(Stateless, keras.layers.Layer):
    """Convolution whose taps are shifted by offsets that a second convolution finds.

    Dai et al., "Deformable Convolutional Networks" (ICCV 2017); modulated: Zhu et al., "Deformable
    ConvNets v2" (CVPR 2019), where every sample has a factor from 0 to 1 as well. Offsets start at
    zero, so that v1 starts as an ordinary convolution; factors start at 0.5. Zeros around the map
    keep its size, or with strides divide it, rounded up.

    Input: `(batch, height, width, channels)`. Output: `(batch, ceil(height / strides), ceil(width /
    strides), filters)` for an odd `kernel_size`, in the layer's compute dtype; positions and sums
    are float32 inside.

    Args:
        filters: number of output channels.
        kernel_size: side of the kernel in cells.
        strides: cells between windows.
        dilation: cells between taps.
        groups: number of groups of channels; each makes its share of the filters.
        offset_groups: groups of channels with offsets of their own.
        modulated: whether samples have factors.
        use_bias: whether to add a bias per output channel.
        kernel_initializer: Keras initializer of the kernel `(kernel_size, kernel_size, channels /
            groups, filters)`; None is mmcv's: He's uniform, or with `modulated` uniform within 1 /
            sqrt(kernel_size² channels).

    Raises:
        ValueError: if the channels or the filters do not divide into the groups.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = False,
        use_bias: bool = False,
        kernel_initializer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if filters % groups:
            raise ValueError(f"`filters` must be a multiple of `groups`, got {filters}, {groups}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation = dilation
        self.groups = groups
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias = None

    @property
    def padding(self) -> int:
        """Cells of zeros on each side."""
        return (self.kernel_size - 1) // 2 * self.dilation

    @property
    def _num_offsets(self) -> int:
        return 2 * self.offset_groups * self.kernel_size**2

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        for name in ("groups", "offset_groups"):
            if channels % getattr(self, name):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, which does not divide the {channels} "
                    "channels of the input."
                )
        side = self.kernel_size
        self.kernel = self.add_weight(
            name="kernel",
            shape=(side, side, channels // self.groups, self.filters),
            initializer=self.kernel_initializer or self._mmcv_initializer(channels),
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        found = self._num_offsets * (3 if self.modulated else 2) // 2
        self.offset_kernel = self.add_weight(
            name="offset_kernel", shape=(side, side, channels, found), initializer="zeros"
        )
        self.offset_bias = self.add_weight(name="offset_bias", shape=(found,), initializer="zeros")

    def _mmcv_initializer(self, channels: int) -> Any:
        if not self.modulated:
            return keras.initializers.HeUniform()
        limit = (channels * self.kernel_size**2) ** -0.5
        return keras.initializers.RandomUniform(-limit, limit)

    def call(self, inputs: Any) -> Any:
        found = self._conv(inputs) + self.offset_bias
        offsets, mask = found[..., : self._num_offsets], None
        if self.modulated:
            mask = ops.sigmoid(ops.cast(found[..., self._num_offsets :], "float32"))
        outputs = deformable_conv(
            inputs,
            offsets,
            self.kernel,
            mask,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            offset_groups=self.offset_groups,
        )
        return outputs if self.bias is None else outputs + self.bias

    def _conv(self, inputs: Any) -> Any:
        if self.dilation == 1:
            return conv2d(inputs, self.offset_kernel, strides=self.strides, padding=self.padding)
        around = (self.padding, self.padding)
        found = ops.conv(
            ops.pad(inputs, ((0, 0), around, around, (0, 0))),
            self.offset_kernel,
            padding="valid",
            dilation_rate=self.dilation,
            data_format="channels_last",
        )
        return found[:, :: self.strides, :: self.strides]  # TensorFlow has not both

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Of both convolutions; reading between the cells is four more for each input of a tap."""
        kernels = (self.kernel, self.offset_kernel)
        return math.prod(output_shape[:-1]) * sum(math.prod(kernel.shape) for kernel in kernels)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        window = Window(
            self.kernel_size, self.kernel_size, self.strides, self.padding, self.dilation
        )
        batch, height, width, _ = input_shape
        # One axis may be unknown, and the other not.
        rows, columns = (
            None if size is None else window.output_size(size, size)[0] for size in (height, width)
        )
        return (batch, rows, columns, self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation": self.dilation,
            "groups": self.groups,
            "offset_groups": self.offset_groups,
            "modulated": self.modulated,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@dataclasses.dataclass(frozen=True)
class DeformableConvNorm(ConvNorm):
    """`ConvNorm` whose convolutions are deformable where they see more than one cell.

    Attributes:
        modulated: see `DeformableConv2D`.
    """

    modulated: bool = False

    def conv(
        self,
        x: Any,
        channels: int,
        kernel: int,
        name: str,
        stride: int = 1,
        use_bias: bool = True,
        groups: int = 1,
    ) -> Any:
        """As of `ConvNorm`."""
        if kernel == 1:
            return super().conv(x, channels, kernel, name, stride, use_bias, groups)
        layer = DeformableConv2D(
            channels,
            kernel,
            stride,
            groups=groups,
            modulated=self.modulated,
            use_bias=use_bias,
            name=name,
            dtype=self.dtype,
        )
        return layer(x)
