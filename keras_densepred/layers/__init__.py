"""Building blocks of the networks."""

from keras_densepred.layers.basic_blocks import bottleneck_block, residual_block
from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.conv_norm import ConvNorm, OrderedConvNorm
from keras_densepred.layers.cross_stage import CrossStage
from keras_densepred.layers.darknet import (
    Maxout,
    PartialAdd,
    SpatialPyramidPooling,
    attention_gate,
)
from keras_densepred.layers.deformable_attention import (
    DeformableAttention,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from keras_densepred.layers.deformable_conv import DeformableConv2D, DeformableConvNorm
from keras_densepred.layers.dense_blocks import DenseBlock
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.image_input import SizeCheck
from keras_densepred.layers.initializers import FanInNormal, FanOutNormal
from keras_densepred.layers.mobile import (
    FastFusion,
    SpaceToDepth,
    mb_conv_block,
    squeeze_excitation,
)
from keras_densepred.layers.msfm import MSFM
from keras_densepred.layers.norm import GELU, Activation, BatchNorm, LayerNorm
from keras_densepred.layers.pooling import AdaptiveMean, GlobalMean, MaxPool
from keras_densepred.layers.residual import ChannelDropout, DropPath, LayerScale, drop_path
from keras_densepred.layers.sine_position import sine_embedding, sine_positions
from keras_densepred.layers.spatial_fusion import PlainResampling, SpatialFusion
from keras_densepred.layers.stateless import Add, ChannelSlice, Concat
from keras_densepred.layers.token_attention import FeedForward, TokenAttention, TokenDropout
from keras_densepred.layers.token_maps import TokenLayout, as_tokens
from keras_densepred.layers.token_mixers import (
    TOKEN_MIXERS,
    CSwinMixer,
    NeXtMixer,
    ResNetMixer,
    SwinMixer,
    TokenMixer,
)
from keras_densepred.layers.upsampling import (
    BilinearUpsample,
    BroadcastLike,
    NearestUpsample,
    PyramidMean,
    ResizeLike,
    TransposedConv,
)
from keras_densepred.layers.window_attention import (
    CrossShapedWindowAttention,
    ShiftedWindowAttention,
)

__all__ = [
    "GELU",
    "MSFM",
    "TOKEN_MIXERS",
    "Activation",
    "AdaptiveMean",
    "Add",
    "BatchNorm",
    "BilinearUpsample",
    "BroadcastLike",
    "CSwinMixer",
    "ChannelDropout",
    "ChannelSlice",
    "Concat",
    "Conv",
    "ConvNorm",
    "CrossShapedWindowAttention",
    "CrossStage",
    "DeformableAttention",
    "DeformableConv2D",
    "DeformableConvNorm",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "DenseBlock",
    "DepthwiseConv",
    "DropPath",
    "FanInNormal",
    "FanOutNormal",
    "FastFusion",
    "FeedForward",
    "GlobalMean",
    "LayerNorm",
    "LayerScale",
    "MaxPool",
    "Maxout",
    "NeXtMixer",
    "NearestUpsample",
    "OrderedConvNorm",
    "PartialAdd",
    "PlainResampling",
    "Pointwise",
    "PyramidMean",
    "ResNetMixer",
    "ResizeLike",
    "ShiftedWindowAttention",
    "SizeCheck",
    "SpaceToDepth",
    "SpatialFusion",
    "SpatialPyramidPooling",
    "SwinMixer",
    "TokenAttention",
    "TokenDropout",
    "TokenLayout",
    "TokenMixer",
    "TransposedConv",
    "as_tokens",
    "attention_gate",
    "bottleneck_block",
    "drop_path",
    "mb_conv_block",
    "residual_block",
    "sine_embedding",
    "sine_positions",
    "squeeze_excitation",
]
