"""The head that finds nine grid points of a region's object.

Lu et al., "Grid R-CNN" (CVPR 2019), sections 3.1 and 3.2, in the form of "Grid R-CNN Plus: Faster
and Better" (2019): point q lies at x index q // 3 and y index q % 3 of the object's box, and each
has its own channels from the convolutions on.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.conv import Conv
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.initializers import FanOutNormal, FixedNormal
from keras_densepred.layers.norm import group_norm

Tensor = Any

SIDE = 3  # grid points along each axis
POINTS = SIDE**2
GRID_SIZE = 14  # bins on a side that the head sees
HEAT_SIZE = 2 * GRID_SIZE  # cells on a side of a point's heat map
NORM_GROUPS = 36  # of the convolutions' channels
PRIOR = 0.01  # probability of every cell at the start


def neighbours(point: int) -> tuple[int, ...]:
    """The points beside a point: left, up, down, right, those that exist."""
    column, row = divmod(point, SIDE)
    there = (column > 0, row > 0, row < SIDE - 1, column < SIDE - 1)
    steps = (-SIDE, -1, 1, SIDE)
    return tuple(point + step for step, exists in zip(steps, there, strict=True) if exists)


# Every point after its neighbours' messages to it, in the order of the points.
SENDERS = tuple(sender for point in range(POINTS) for sender in neighbours(point))
_ENDS = np.cumsum([len(neighbours(point)) for point in range(POINTS)]).tolist()


@keras.saving.register_keras_serializable(package="keras_densepred")
class PointMessages(keras.layers.Layer):
    """What each point hears from its neighbours: the sum of their transformed maps.

    A message is a 5x5 depthwise and a 1x1 convolution, different for each of the 24 directed pairs
    of neighbours; all of them are computed together.

    Input and output: (R, H, W, 9 * width), channels point by point.

    Args:
        width: channels of a point.
    """

    def __init__(self, width: int = 64, **kwargs: Any):
        super().__init__(**kwargs)
        self.width = width
        self.spatial = DepthwiseConv(
            5,
            kernel_initializer=FanOutNormal(fan_out=25 * width, gain=math.sqrt(2.0)),
            name="spatial",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        messages = len(SENDERS)
        self.spatial.build((*input_shape[:-1], messages * self.width))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(messages, self.width, self.width),
            initializer=FanOutNormal(fan_out=self.width, gain=math.sqrt(2.0)),
        )
        self.bias = self.add_weight(name="bias", shape=(messages, self.width), initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        points = [
            inputs[..., point * self.width : (point + 1) * self.width] for point in range(POINTS)
        ]
        x = self.spatial(ops.concatenate([points[sender] for sender in SENDERS], axis=-1))
        height, width = x.shape[1:3]
        x = ops.reshape(x, (-1, len(SENDERS), self.width))
        x = ops.einsum("mpc,pcd->mpd", x, self.kernel) + self.bias
        heard = [
            ops.sum(x[:, begin:end], axis=1)
            for begin, end in zip((0, *_ENDS[:-1]), _ENDS, strict=True)
        ]
        return ops.reshape(
            ops.concatenate(heard, axis=-1), (-1, height, width, POINTS * self.width)
        )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="keras_densepred")
class GroupedDoubling(keras.layers.Layer):
    """Transposed 4x4 convolution of stride 2 and padding 1 in groups of channels.

    Keras' transposed convolution has no groups. Row 2y + i - 1 of the output takes row y of the
    input through row i of the kernel, so that the even rows see rows y - 1 and y, and the odd ones
    y and y + 1, likewise columns: each 2x2 window of the padded input is multiplied with what its
    four phases want of it, one matrix product for each group.

    Input: (R, H, W, channels). Output: (R, 2H, 2W, filters).

    Args:
        filters: number of output channels.
        groups: number of groups of channels.
        bias: where all biases start.
    """

    def __init__(self, filters: int, groups: int, bias: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.groups = groups
        self.initial_bias = bias

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1] or 0
        self.kernel = self.add_weight(
            name="kernel",
            shape=(4, 4, self.groups, channels // self.groups, self.filters // self.groups),
            initializer=FixedNormal(0.001),
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(self.filters,),
            initializer=keras.initializers.Constant(self.initial_bias),
        )

    def call(self, inputs: Tensor) -> Tensor:
        height, width, channels = inputs.shape[1:]
        groups, each = self.groups, self.filters // self.groups
        # Backwards, row i of the kernel is of row i // 2 of a window and of phase i % 2.
        kernel = ops.flip(self.kernel, axis=(0, 1))
        kernel = ops.reshape(kernel, (2, 2, 2, 2, groups, channels // groups, each))
        kernel = ops.transpose(kernel, (4, 0, 2, 5, 1, 3, 6))
        kernel = ops.reshape(kernel, (groups, 4 * channels // groups, 4 * each))
        padded = ops.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
        padded = ops.reshape(padded, (-1, height + 2, width + 2, groups, channels // groups))
        windows = ops.concatenate(
            [
                padded[:, row : row + height + 1, column : column + width + 1]
                for row in range(2)
                for column in range(2)
            ],
            axis=-1,
        )
        x = ops.reshape(windows, (-1, groups, 4 * channels // groups))
        x = ops.einsum("mgc,gcf->mgf", x, kernel)
        x = ops.reshape(x, (-1, height + 1, width + 1, groups, 2, 2, each))
        rows = [
            ops.stack(
                [
                    x[:, row : row + height, column : column + width, :, row, column]
                    for column in range(2)
                ],
                axis=3,
            )
            for row in range(2)
        ]
        x = ops.reshape(ops.stack(rows, axis=2), (-1, 2 * height, 2 * width, self.filters))
        return x + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple:
        batch, *sizes, _ = input_shape
        return (batch, *(None if size is None else 2 * size for size in sizes), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "groups": self.groups,
            "bias": self.initial_bias,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class GridHead(keras.layers.Layer):
    """Heat maps of the nine grid points of regions.

    3x3 convolutions with group norm and ReLU, the first of stride 2; two rounds of messages between
    neighbouring points ("Grid R-CNN", section 3.2, equations 2 and 3); then two transposed
    convolutions in which every point keeps to itself.

    Args:
        num_convs: number of 3x3 convolutions.
        width: channels of each point.
        norm_groups: groups of the convolutions' norms.
    """

    def __init__(
        self, num_convs: int = 8, width: int = 64, norm_groups: int = NORM_GROUPS, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_convs = num_convs
        self.width = width
        self.norm_groups = norm_groups
        dtype = self.dtype_policy
        self.convs = [
            Conv(
                POINTS * width,
                3,
                strides=1 if i else 2,
                kernel_initializer=FanOutNormal(gain=math.sqrt(2.0)),
                name=f"conv{i + 1}",
                dtype=dtype,
            )
            for i in range(num_convs)
        ]
        channels = POINTS * width
        self.norms = [
            group_norm(f"norm{i + 1}", channels, dtype, norm_groups) for i in range(num_convs)
        ]
        self.first_order = PointMessages(width, name="first_order", dtype=dtype)
        self.second_order = PointMessages(width, name="second_order", dtype=dtype)
        self.doubling1 = GroupedDoubling(POINTS * width, POINTS, name="doubling1", dtype=dtype)
        self.doubling_norm = group_norm("doubling_norm", channels, dtype, POINTS)
        # Where a heat map is highest is read from its cells: half precision has too few values.
        self.doubling2 = GroupedDoubling(
            POINTS, POINTS, -math.log(1 / PRIOR - 1), name="doubling2", dtype="float32"
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (*input_shape[:-1], POINTS * self.width)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            conv.build(shape if i else input_shape)
            norm.build(shape)
        for layer in (self.first_order, self.second_order, self.doubling1):
            layer.build(shape)
        self.doubling_norm.build(shape)
        self.doubling2.build(shape)

    def call(self, regions: Tensor) -> Tensor:
        """(R, 14, 14, channels) -> logits (R, 28, 28, 9) float32, of `fuse`d points."""
        return self.heat(self.fuse(self.points(regions)))

    def points(self, regions: Tensor) -> Tensor:
        """The points' maps before they know of each other: (R, 7, 7, 9 * width)."""
        x = regions
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.relu(norm(conv(x)))
        return x

    def fuse(self, points: Tensor) -> Tensor:
        """The points' maps with what neighbours, and neighbours of neighbours, tell them."""
        return points + self.second_order(points + self.first_order(points))

    def heat(self, points: Tensor) -> Tensor:
        """Logits (R, 28, 28, 9) float32 of fused maps, or in training of those before."""
        return self.doubling2(ops.relu(self.doubling_norm(self.doubling1(points))))

    def multiply_adds(self) -> int:
        """Multiply-adds of one region in detection."""
        half = GRID_SIZE // 2
        kernels: Sequence[Any] = [conv.kernel for conv in self.convs]
        for messages in (self.first_order, self.second_order):
            kernels = [*kernels, messages.spatial.kernel, messages.kernel]
        total = sum(math.prod(kernel.shape) for kernel in [*kernels, self.doubling1.kernel])
        return half**2 * total + GRID_SIZE**2 * math.prod(self.doubling2.kernel.shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_convs": self.num_convs,
            "width": self.width,
            "norm_groups": self.norm_groups,
        }
