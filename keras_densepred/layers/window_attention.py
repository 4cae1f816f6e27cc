"""Multi-head self-attention inside windows: shifted squares (Swin) and crossed stripes (CSwin)."""

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.conv import Pointwise
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.ops.depthwise import depthwise_conv

MASKED = -100.0  # added to the logits of pairs that are not neighbours; Swin's constant


def _dense(units: int, name: str, dtype) -> Pointwise:
    return Pointwise(units, kernel_initializer=FanOutNormal(), name=name, dtype=dtype)


def _attend(query, key, value, bias=None):
    """Softmax attention over the last two axes `(..., heads, tokens, head_dim)`."""
    scale = query.shape[-1] ** -0.5
    logits = ops.matmul(query * scale, ops.swapaxes(key, -1, -2))
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    return ops.matmul(ops.softmax(logits, axis=-1), value)


@keras.saving.register_keras_serializable(package="keras_densepred")
class ShiftedWindowAttention(keras.layers.Layer):
    """Window attention with a learned relative position bias (Liu et al., Swin, sections 3.2-3.3).

    Input and output: `(batch, height, width, channels)`, of any size: the map is zero-padded at
    the bottom and the right to whole windows. Padded positions are attended to like any other,
    as in the detection code of Swin and of CEDNet.

    Args:
        num_heads: number of attention heads; must divide the channels.
        window_size: side of a window in positions.
        shift_size: by how many positions the windows are shifted, 0 for none.
        classification_compat: reproduce CEDNet's ImageNet code, which trained its published Swin
            weights: no padding (height and width must be multiples of `window_size`), and on a
            map of a single row of windows the output is rolled by `shift_size` although its
            input was not, and is not masked (CEDNET.md 1.7).

    Raises:
        ValueError: if the channels are not a multiple of `num_heads`, or, with
            `classification_compat`, if a map does not consist of whole windows.
    """

    def __init__(
        self,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        classification_compat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.classification_compat = classification_compat

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                f"{channels} channels cannot be split into {self.num_heads} attention heads: "
                "choose a width that is a multiple of the number of heads."
            )
        self.qkv = _dense(3 * channels, "qkv", self.dtype_policy)
        self.qkv.build(input_shape)
        self.proj = _dense(channels, "proj", self.dtype_policy)
        self.proj.build(input_shape)
        window = self.window_size
        self.relative_position_bias = self.add_weight(
            name="relative_position_bias",
            shape=((2 * window - 1) ** 2, self.num_heads),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        )
        rows, columns = np.divmod(np.arange(window * window), window)
        row_offset = rows[:, None] - rows[None, :] + window - 1
        column_offset = columns[:, None] - columns[None, :] + window - 1
        self._bias_index = (row_offset * (2 * window - 1) + column_offset).reshape(-1)

    def call(self, inputs):
        height, width = ops.shape(inputs)[1:3]
        window, shift = self.window_size, self.shift_size
        outputs = inputs
        if self.classification_compat:
            self._require_whole_windows(height, width)
            padded_height, padded_width = height, width
            shift_input = shift if height > window else 0
        else:
            padded_height = (height + window - 1) // window * window
            padded_width = (width + window - 1) // window * window
            # A fixed surplus, then cut: also works where a size is only known at run time.
            surplus = (0, window - 1)
            outputs = ops.pad(outputs, ((0, 0), surplus, surplus, (0, 0)))
            outputs = outputs[:, :padded_height, :padded_width]
            shift_input = shift
        if shift_input:
            outputs = ops.roll(outputs, (-shift, -shift), axis=(1, 2))
        bias = self._position_bias()
        if shift_input:
            bias = bias + self._shift_mask(padded_height, padded_width)
        outputs = self._attend_in_windows(outputs, padded_height, padded_width, bias)
        if shift:
            outputs = ops.roll(outputs, (shift, shift), axis=(1, 2))
        return outputs[:, :height, :width]

    def _require_whole_windows(self, height, width):
        for size in (height, width):
            if isinstance(size, int) and size % self.window_size:
                raise ValueError(
                    f"With `classification_compat`, maps must consist of whole "
                    f"{self.window_size} x {self.window_size} windows, got {height} x {width}: "
                    "use images whose sides are multiples of 224."
                )

    def _position_bias(self):
        """(1, heads, tokens, tokens)."""
        tokens = self.window_size**2
        bias = ops.take(self.relative_position_bias, self._bias_index, axis=0)
        bias = ops.reshape(bias, (tokens, tokens, self.num_heads))
        return ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)

    def _shift_mask(self, height, width):
        """(windows, 1, tokens, tokens): keeps apart what only the roll made neighbours."""

        def region(size):
            position = ops.arange(size)
            return ops.cast(position >= size - self.window_size, "int32") + ops.cast(
                position >= size - self.shift_size, "int32"
            )

        regions = 3 * ops.expand_dims(region(height), 1) + ops.expand_dims(region(width), 0)
        regions = self._to_windows(ops.reshape(regions, (1, height, width, 1)), height, width)
        regions = regions[0, :, :, 0]
        apart = ops.expand_dims(regions, 1) != ops.expand_dims(regions, 2)
        return ops.expand_dims(ops.cast(apart, self.compute_dtype) * MASKED, 1)

    def _to_windows(self, inputs, height, width):
        """(batch, height, width, channels) -> (batch, windows, tokens, channels)."""
        window, channels = self.window_size, inputs.shape[-1]
        rows, columns = height // window, width // window
        inputs = ops.reshape(inputs, (-1, rows, window, columns, window, channels))
        inputs = ops.transpose(inputs, (0, 1, 3, 2, 4, 5))
        return ops.reshape(inputs, (-1, rows * columns, window * window, channels))

    def _attend_in_windows(self, inputs, height, width, bias):
        window, channels = self.window_size, inputs.shape[-1]
        rows, columns = height // window, width // window
        tokens = window * window
        qkv = self.qkv(self._to_windows(inputs, height, width))
        qkv = ops.reshape(
            qkv, (-1, rows * columns, tokens, 3, self.num_heads, channels // self.num_heads)
        )
        qkv = ops.transpose(qkv, (3, 0, 1, 4, 2, 5))
        outputs = _attend(qkv[0], qkv[1], qkv[2], bias)
        outputs = ops.transpose(outputs, (0, 1, 3, 2, 4))
        outputs = ops.reshape(outputs, (-1, rows, columns, window, window, channels))
        outputs = ops.transpose(outputs, (0, 1, 3, 2, 4, 5))
        return self.proj(ops.reshape(outputs, (-1, height, width, channels)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift_size": self.shift_size,
            "classification_compat": self.classification_compat,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class CrossShapedWindowAttention(keras.layers.Layer):
    """Attention in vertical and horizontal stripes (Dong et al., CSWin, sections 3.2-3.3).

    Half of the heads attend within stripes of full height and `stripe_width` columns, the other
    half within stripes of full width and `stripe_width` rows. Each value map also passes a 3x3
    depthwise convolution inside its stripe, the locally-enhanced position encoding (LePE).

    Input: `(batch, height, width, 3 * channels)`, the projected query, key and value side by side.
    Output: `(batch, height, width, channels)`, not yet projected. Maps that do not divide into
    whole stripes are zero-padded on both sides (the surplus one last); padded keys are attended.

    Args:
        num_heads: number of heads, both halves together.
        stripe_width: width of a stripe in positions, or None: all heads attend over the whole map.

    Raises:
        ValueError: if the channels are not a multiple of `num_heads`, or `num_heads` is odd while
            `stripe_width` is given.
    """

    def __init__(self, num_heads: int, stripe_width: int | None, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.stripe_width = stripe_width

    def build(self, input_shape):
        channels = input_shape[-1] // 3
        branches = 1 if self.stripe_width is None else 2
        if channels % self.num_heads or self.num_heads % branches:
            raise ValueError(
                f"{channels} channels cannot be split into {self.num_heads} heads over {branches} "
                "stripe direction(s): choose another width."
            )
        width = channels // branches
        self.lepe_kernels, self.lepe_biases = [], []
        for branch in range(branches):
            self.lepe_kernels.append(
                self.add_weight(
                    name=f"lepe{branch + 1}_kernel",
                    shape=(3, 3, width, 1),
                    initializer=FanOutNormal(fan_out=9 * width),
                )
            )
            self.lepe_biases.append(
                self.add_weight(name=f"lepe{branch + 1}_bias", shape=(width,), initializer="zeros")
            )

    def call(self, inputs):
        query, key, value = ops.split(inputs, 3, axis=-1)
        if self.stripe_width is None:
            return self._attend_in_stripes((query, key, value), None, 0)
        halves = [ops.split(part, 2, axis=-1) for part in (query, key, value)]
        vertical = self._attend_in_stripes([half[0] for half in halves], self.stripe_width, 0)
        # A horizontal stripe is a vertical one of the transposed map.
        turned = [ops.swapaxes(half[1], 1, 2) for half in halves]
        horizontal = self._attend_in_stripes(turned, self.stripe_width, 1)
        return ops.concatenate([vertical, ops.swapaxes(horizontal, 1, 2)], axis=-1)

    def _attend_in_stripes(self, query_key_value, stripe, branch):
        """Attention in stripes along axis 2 of (batch, rows, columns, channels) maps."""
        rows, columns = ops.shape(query_key_value[0])[1:3]
        channels = query_key_value[0].shape[-1]
        heads = self.num_heads if self.stripe_width is None else self.num_heads // 2
        if stripe is None:
            stripe, before, padded = columns, 0, columns
        else:
            surplus = (-columns) % stripe
            before, padded = surplus // 2, columns + surplus
            # As for square windows: a fixed surplus, then cut.
            query_key_value = [
                ops.pad(part, ((0, 0), (0, 0), (stripe - 1, stripe - 1), (0, 0)))[
                    :, :, stripe - 1 - before : stripe - 1 - before + padded
                ]
                for part in query_key_value
            ]
        count = padded // stripe

        def to_stripes(part):
            """(batch, rows, padded, channels) -> (batch * stripes, rows, stripe, channels)."""
            part = ops.reshape(part, (-1, rows, count, stripe, channels))
            part = ops.transpose(part, (0, 2, 1, 3, 4))
            return ops.reshape(part, (-1, rows, stripe, channels))

        def to_heads(part):
            part = ops.reshape(part, (-1, rows * stripe, heads, channels // heads))
            return ops.transpose(part, (0, 2, 1, 3))

        query, key, value = (to_stripes(part) for part in query_key_value)
        kernel, bias = self.lepe_kernels[branch], self.lepe_biases[branch]
        # The transposed map of branch 1 wants the transposed kernel.
        kernel = ops.swapaxes(kernel, 0, 1) if branch else kernel
        position = depthwise_conv(value, kernel, bias, padding="same", data_format="channels_last")
        outputs = _attend(to_heads(query), to_heads(key), to_heads(value))
        outputs = ops.transpose(outputs, (0, 2, 1, 3))
        outputs = ops.reshape(outputs, (-1, rows, stripe, channels)) + position
        outputs = ops.reshape(outputs, (-1, count, rows, stripe, channels))
        outputs = ops.transpose(outputs, (0, 2, 1, 3, 4))
        outputs = ops.reshape(outputs, (-1, rows, padded, channels))
        return outputs[:, :, before : before + columns]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] // 3)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "stripe_width": self.stripe_width,
        }
