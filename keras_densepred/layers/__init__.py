"""What the networks are built from."""

from keras_densepred.layers.batch_norm import BatchNorm
from keras_densepred.layers.conv import Conv
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.image_input import SizeCheck
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.norm import GELU, LayerNorm
from keras_densepred.layers.pointwise import Pointwise
from keras_densepred.layers.residual import Add, DropPath, LayerScale, drop_path
from keras_densepred.layers.token_mixers import (
    TOKEN_MIXERS,
    CSwinMixer,
    NeXtMixer,
    ResNetMixer,
    SwinMixer,
    TokenMixer,
)
from keras_densepred.layers.window_attention import (
    CrossShapedWindowAttention,
    ShiftedWindowAttention,
)

__all__ = [
    "GELU",
    "TOKEN_MIXERS",
    "Add",
    "BatchNorm",
    "CSwinMixer",
    "Conv",
    "CrossShapedWindowAttention",
    "DepthwiseConv",
    "DropPath",
    "FanOutNormal",
    "LayerNorm",
    "LayerScale",
    "NeXtMixer",
    "Pointwise",
    "ResNetMixer",
    "ShiftedWindowAttention",
    "SizeCheck",
    "SwinMixer",
    "TokenMixer",
    "drop_path",
]
