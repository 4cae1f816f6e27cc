"""The residual blocks CEDNet is built of: NeXt, ResNet, Swin and CSwin token mixers.

Each token mixer comes as a *base* block and as a *long-range* (LR) block, which enlarges the
receptive field on the coarsest maps with a dilated 7x7 depthwise convolution (CEDNet, section 3.2
and figure 3; the layers, where the paper is silent, as in the authors' code). All blocks map
`(batch, height, width, channels)` to the same shape.
"""

import abc
import dataclasses

import keras
from keras import layers

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.norm import GELU, ConvBatchNorm, LayerNorm, batch_norm
from keras_densepred.layers.residual import LayerScale, drop_path
from keras_densepred.layers.stateless import Add
from keras_densepred.layers.window_attention import (
    CrossShapedWindowAttention,
    ShiftedWindowAttention,
)

HEAD_DIM = 32  # channels of one attention head, in every Swin and CSwin variant
CSWIN_STRIPES = {2: 1, 3: 2, 4: 7}  # stripe width at each level; LR blocks attend over all


@dataclasses.dataclass(frozen=True)
class TokenMixer(abc.ABC):
    """Blocks of one kind. Subclasses implement `base_block` and `lr_block`.

    Attributes:
        layer_scale_init: start of the layer scale, or None for none (NeXt only).
        lr_dilation: dilation of the LR blocks' depthwise convolution.
        swin_classification_compat: see `ShiftedWindowAttention` (Swin only).
        sync_batch_norm: whether replicas share the statistics of a batch (ResNet only).
        dtype: dtype policy of all layers.
    """

    layer_scale_init: float | None = None
    lr_dilation: int = 3
    swin_classification_compat: bool = False
    sync_batch_norm: bool = False
    dtype: object = None

    def norm(self, x, name: str):
        """Layer normalisation over the channels of each position."""
        return LayerNorm(name=name, dtype=self.dtype)(x)

    def act(self, x, name: str):
        """Exact GELU."""
        return GELU(name=name, dtype=self.dtype)(x)

    def conv(self, x, channels: int, kernel: int, name: str, stride: int = 1, use_bias=True):
        """Convolution that keeps the size or, with a stride, divides it."""
        if kernel == 1:
            # On channels-last maps a 1x1 convolution is a matrix product, and faster as one.
            return self.dense(x, channels, name, use_bias)
        return Conv(channels, kernel, stride, use_bias, name=name, dtype=self.dtype)(x)

    def dense(self, x, units: int, name: str, use_bias=True):
        return Pointwise(
            units,
            use_bias=use_bias,
            kernel_initializer=FanOutNormal(),
            name=name,
            dtype=self.dtype,
        )(x)

    def depthwise(self, x, kernel: int, name: str, dilation: int = 1):
        return DepthwiseConv(kernel, dilation, name=name, dtype=self.dtype)(x)

    def mlp(self, x, name: str):
        """Two pointwise layers with an expansion of 4 and an activation between them."""
        channels = x.shape[-1]
        x = self.dense(x, 4 * channels, f"{name}_pwconv1")
        x = self.act(x, f"{name}_act")
        return self.dense(x, channels, f"{name}_pwconv2")

    def add(self, x, branch, name: str):
        return Add(name=name, dtype=self.dtype)(x, branch)

    def drop(self, x, rate: float, name: str):
        return drop_path(x, rate, name, self.dtype)

    def check_width(self, width: int):  # noqa: B027 - most mixers take any width
        """Raises ValueError if blocks of `width` channels cannot be built."""

    @abc.abstractmethod
    def base_block(self, x, *, name: str, rate: float, index: int, level: int):
        """The block of every level but the coarsest.

        Args:
            x: `(batch, height, width, channels)`.
            name: prefix of the layer names.
            rate: drop-path probability.
            index: position of the block in its level, which decides Swin's shift.
            level: pyramid level of `x`, which decides CSwin's stripe width.
        """

    @abc.abstractmethod
    def lr_block(self, x, *, name: str, rate: float, index: int, level: int):
        """The long-range block; arguments as for `base_block`."""


class NeXtMixer(TokenMixer):
    """ConvNeXt's block; the LR block has a second, dilated depthwise convolution."""

    def _scale(self, x, name: str):
        if not self.layer_scale_init:
            return x
        return LayerScale(self.layer_scale_init, name=name, dtype=self.dtype)(x)

    def base_block(self, x, *, name, rate, index, level):
        y = self.depthwise(x, 7, f"{name}_dwconv")
        y = self.norm(y, f"{name}_norm")
        y = self._scale(self.mlp(y, name), f"{name}_layer_scale")
        return self.add(x, self.drop(y, rate, f"{name}_drop_path"), f"{name}_add")

    def lr_block(self, x, *, name, rate, index, level):
        y = x
        for part, dilation in ((1, 1), (2, self.lr_dilation)):
            z = self.depthwise(y, 7, f"{name}_dwconv{part}", dilation)
            z = self.act(self.norm(z, f"{name}_norm{part}"), f"{name}_act{part}")
            y = self.add(z, y, f"{name}_add{part}")
        y = self._scale(self.mlp(y, name), f"{name}_layer_scale")
        return self.add(x, self.drop(y, rate, f"{name}_drop_path"), f"{name}_add")


@keras.saving.register_keras_serializable(package="keras_densepred")
class BatchNormalization(ConvBatchNorm):
    """`ConvBatchNorm` under the class name by which saved files address the weights of the blocks.

    They once had Keras' own layer.
    """


class ResNetMixer(TokenMixer):
    """Inverted bottleneck of plain convolutions with batch normalisation and ReLU."""

    def norm(self, x, name: str):
        """Batch normalisation with PyTorch's constants (momentum 0.1 there is 0.9 here)."""
        norm = batch_norm(
            name, 0.9, 1e-5, self.sync_batch_norm, self.dtype, plain=BatchNormalization
        )
        return norm(x)

    def act(self, x, name: str):
        """ReLU."""
        return layers.ReLU(name=name, dtype=self.dtype)(x)

    def _conv_norm(self, x, channels: int, kernel: int, name: str, part: int):
        x = self.conv(x, channels, kernel, f"{name}_conv{part}", use_bias=False)
        return self.norm(x, f"{name}_norm{part}")

    def _pointwise(self, x, y, name: str, rate: float):
        channels = x.shape[-1]
        y = self.act(self._conv_norm(y, 4 * channels, 1, name, 2), f"{name}_act2")
        y = self._conv_norm(y, channels, 1, name, 3)
        y = self.add(x, self.drop(y, rate, f"{name}_drop_path"), f"{name}_add")
        return self.act(y, f"{name}_act3")

    def base_block(self, x, *, name, rate, index, level):
        y = self.act(self._conv_norm(x, x.shape[-1], 3, name, 1), f"{name}_act1")
        return self._pointwise(x, y, name, rate)

    def lr_block(self, x, *, name, rate, index, level):
        y = self.act(self._conv_norm(x, x.shape[-1], 3, name, 1), f"{name}_act1")
        y = self.add(y, x, f"{name}_add1")
        z = self.depthwise(y, 7, f"{name}_dwconv", self.lr_dilation)
        z = self.act(self.norm(z, f"{name}_dwconv_norm"), f"{name}_dwconv_act")
        return self._pointwise(x, self.add(z, y, f"{name}_dwconv_add"), name, rate)


class _AttentionMixer(TokenMixer):
    def check_width(self, width: int):
        if width % HEAD_DIM:
            raise ValueError(
                f"Attention token mixers need widths that are multiples of {HEAD_DIM}, the "
                f"channels of one head, got {width}."
            )

    def _mlp_half(self, x, name: str, rate: float):
        y = self.mlp(self.norm(x, f"{name}_norm2"), name)
        return self.add(x, self.drop(y, rate, f"{name}_drop_path2"), f"{name}_add2")


class SwinMixer(_AttentionMixer):
    """Swin's block with windows of 7, every second block shifted by 3."""

    def _attention(self, x, name: str, index: int):
        return ShiftedWindowAttention(
            num_heads=x.shape[-1] // HEAD_DIM,
            window_size=7,
            shift_size=3 * (index % 2),
            classification_compat=self.swin_classification_compat,
            name=f"{name}_attention",
            dtype=self.dtype,
        )(x)

    def base_block(self, x, *, name, rate, index, level):
        y = self._attention(self.norm(x, f"{name}_norm1"), name, index)
        y = self.add(x, self.drop(y, rate, f"{name}_drop_path1"), f"{name}_add1")
        return self._mlp_half(y, name, rate)

    def lr_block(self, x, *, name, rate, index, level):
        a = self.norm(x, f"{name}_norm1")
        z = self.norm(self._attention(a, name, index), f"{name}_attention_norm")
        a = self.add(self.act(z, f"{name}_attention_act"), a, f"{name}_attention_add")
        z = self.depthwise(a, 7, f"{name}_dwconv", self.lr_dilation)
        z = self.act(self.norm(z, f"{name}_dwconv_norm"), f"{name}_dwconv_act")
        a = self.add(z, a, f"{name}_dwconv_add")
        y = self.add(x, self.drop(a, rate, f"{name}_drop_path1"), f"{name}_add1")
        return self._mlp_half(y, name, rate)


class CSwinMixer(_AttentionMixer):
    """CSwin's block; its LR block attends over the whole map and has no dilated convolution."""

    def _block(self, x, name: str, rate: float, stripe_width: int | None):
        channels = x.shape[-1]
        y = self.dense(self.norm(x, f"{name}_norm1"), 3 * channels, f"{name}_qkv")
        y = CrossShapedWindowAttention(
            num_heads=channels // HEAD_DIM,
            stripe_width=stripe_width,
            name=f"{name}_attention",
            dtype=self.dtype,
        )(y)
        y = self.dense(y, channels, f"{name}_proj")
        y = self.add(x, self.drop(y, rate, f"{name}_drop_path1"), f"{name}_add1")
        return self._mlp_half(y, name, rate)

    def base_block(self, x, *, name, rate, index, level):
        # Without LR blocks the coarsest level keeps C4's stripes; the papers name no other.
        return self._block(x, name, rate, CSWIN_STRIPES.get(level, CSWIN_STRIPES[4]))

    def lr_block(self, x, *, name, rate, index, level):
        return self._block(x, name, rate, None)


TOKEN_MIXERS: dict[str, type[TokenMixer]] = {
    "next": NeXtMixer,
    "resnet": ResNetMixer,
    "swin": SwinMixer,
    "cswin": CSwinMixer,
}
