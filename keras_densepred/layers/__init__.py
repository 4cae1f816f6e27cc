"""What the networks are built from."""

from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.image_input import SizeCheck
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.pointwise import Pointwise
from keras_densepred.layers.residual import LayerScale, drop_path
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
    "TOKEN_MIXERS",
    "CSwinMixer",
    "CrossShapedWindowAttention",
    "DepthwiseConv",
    "FanOutNormal",
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
