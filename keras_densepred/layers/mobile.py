"""What mobile networks are built of: MB-Conv, space-to-depth, fast normalised fusion."""

import keras
from keras import ops

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.pooling import GlobalMean
from keras_densepred.layers.stateless import Stateless

EXPANSION = 6  # channels of an MB-Conv's depthwise convolution, over those it takes in


def mb_conv_block(
    kit: ConvNorm,
    x,
    channels: int,
    name: str,
    stride: int = 1,
    se_ratio: float = 0.0,
    rate: float = 0.0,
):
    """MB-Conv (Sandler et al., MobileNetV2; with squeeze-excitation, Tan & Le, EfficientNet).

    1x1 to six times the channels, 3x3 depthwise, squeeze-excitation, 1x1 to `channels`; norm after
    each, activation after the first two. The shortcut is the identity, where shapes allow one.

    Args:
        kit: the network's convolutions, norm and activation.
        x: `(batch, height, width, in_channels)`.
        channels: channels of the result.
        name: prefix of the layer names.
        stride: of the depthwise convolution.
        se_ratio: width of the squeeze-excitation over `in_channels`; 0 leaves it out.
        rate: drop-path probability of the branch.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), channels)`.
    """
    in_channels = x.shape[-1]
    y = kit.unit(x, EXPANSION * in_channels, 1, f"{name}_expand")
    y = kit.depthwise_unit(y, f"{name}_depthwise", stride)
    if se_ratio > 0:
        y = squeeze_excitation(kit, y, max(int(in_channels * se_ratio), 1), f"{name}_se")
    y = kit.unit(y, channels, 1, f"{name}_project", act=False)
    if stride != 1 or channels != in_channels:
        return y
    return kit.add(x, kit.drop(y, rate, f"{name}_drop_path"), f"{name}_add")


def squeeze_excitation(kit: ConvNorm, x, width: int, name: str):
    """Scales each channel by a number from all channels' means (Hu et al., 2018).

    Args:
        kit: the network's convolutions, norm and activation.
        x: `(batch, height, width, channels)`.
        width: of the layer between the means and the scales.
        name: prefix of the layer names.

    Returns:
        A map like `x`.
    """
    y = GlobalMean(name=f"{name}_mean", dtype=kit.dtype)(x)
    y = kit.act(kit.conv(y, width, 1, f"{name}_reduce"), f"{name}_act")
    y = kit.conv(y, x.shape[-1], 1, f"{name}_expand")
    return Gate(name=f"{name}_gate", dtype=kit.dtype)(x, y)


@keras.saving.register_keras_serializable(package="keras_densepred")
class Gate(Stateless, keras.layers.Layer):
    """`x * sigmoid(gate)`, for maps `(batch, height, width, channels)`; the gate's may be 1x1."""

    def call(self, x, gate):
        return x * ops.sigmoid(gate)

    def compute_output_shape(self, x_shape, gate_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="keras_densepred")
class SpaceToDepth(Stateless, keras.layers.Layer):
    """Moves each 2x2 square of positions into the channels, zeros completing an odd size.

    Input: `(batch, height, width, channels)`. Output: `(batch, ceil(height / 2), ceil(width / 2),
    4 * channels)`, the upper left position's channels first, row by row.
    """

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        rows, columns = (height + 1) // 2, (width + 1) // 2
        if not (isinstance(height, int) and height % 2 == 0 and width % 2 == 0):
            edges = ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0))
            inputs = ops.pad(inputs, edges)
        squares = ops.reshape(inputs, (batch, rows, 2, columns, 2, channels))
        squares = ops.transpose(squares, (0, 1, 3, 2, 4, 5))
        return ops.reshape(squares, (batch, rows, columns, 4 * channels))

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        sizes = [None if size is None else (size + 1) // 2 for size in sizes]
        return (batch, *sizes, 4 * channels)


@keras.saving.register_keras_serializable(package="keras_densepred")
class FastFusion(Stateless, keras.layers.Layer):
    """EfficientDet's fast normalised fusion of two maps (Tan et al., 2020, section 3.3).

    `(relu(a) * x + relu(b) * y) / (relu(a) + relu(b) + 1e-4)` with scalar weights a and b, which
    start at 1.
    """

    def build(self, x_shape, y_shape):
        self.scales = self.add_weight(name="scales", shape=(2,), initializer="ones")

    def call(self, x, y):
        scales = ops.relu(self.scales)
        scales = scales / (ops.sum(scales) + 1e-4)
        return scales[0] * x + scales[1] * y

    def compute_output_shape(self, x_shape, y_shape):
        return x_shape
