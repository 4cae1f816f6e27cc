"""From a backbone's maps to the maps that queries look at, and the one that masks are cut from."""

import math
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.deformable_attention import DeformableEncoder
from keras_densepred.layers.initializers import FanInUniform, XavierUniform
from keras_densepred.layers.norm import group_norm
from keras_densepred.layers.token_maps import TokenLayout
from keras_densepred.ops.resize import resize_bilinear

Tensor = Any

LEVELS = 3  # that are mixed
_CAFFE = math.sqrt(3.0)  # Caffe's "Xavier": variance 1 / fan_in


@keras.saving.register_keras_serializable(package="keras_densepred")
class PixelDecoder(keras.layers.Layer):
    """Mixes the three coarse levels by deformable attention and refines the finest with them.

    Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR 2022),
    section 3.2.1; layers as in MMDetection 2.28. Padding is treated as image.

    Input: maps `(B, h, w, any)`, finest first: the finest, then three in whose order strides
    double. The first of the three may be the finest itself (of backbones without P2).
    Output: a list of maps `(B, h, w, width)`: mask features at the finest size, then the three,
    coarsest first.

    Args:
        width: channels of all results; group norms have 32 groups, or as many as divide both.
        num_layers: of the encoder.
        num_heads: of its attention.
        hidden: features inside its feed-forward networks.
    """

    def __init__(
        self,
        width: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        hidden: int = 1024,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden = hidden
        policy = self.dtype_policy
        caffe = [FanInUniform(gain=_CAFFE) for _ in range(3)]
        self.projections = [
            Pointwise(
                width, kernel_initializer=XavierUniform(), name=f"input_{n}_conv", dtype=policy
            )
            for n in range(LEVELS)
        ]
        self.projection_norms = [self._norm(f"input_{n}_norm") for n in range(LEVELS)]
        self.encoder = DeformableEncoder(
            num_layers,
            num_heads,
            LEVELS,
            hidden=hidden,
            xavier="normal",
            offset=0.0,
            name="encoder",
            dtype=policy,
        )
        self.lateral = Pointwise(
            width, use_bias=False, kernel_initializer=caffe[0], name="lateral_conv", dtype=policy
        )
        self.lateral_norm = self._norm("lateral_norm")
        self.output_conv = Conv(
            width, 3, use_bias=False, kernel_initializer=caffe[1], name="output_conv", dtype=policy
        )
        self.output_norm = self._norm("output_norm")
        self.mask_feature = Pointwise(
            width, kernel_initializer=caffe[2], name="mask_feature", dtype=policy
        )

    def _norm(self, name: str) -> keras.layers.GroupNormalization:
        return group_norm(name, self.width, self.dtype_policy)

    def build(self, input_shape: list[tuple[Any, ...]]) -> None:
        own = (None, None, None, self.width)
        for shape, conv, norm in zip(
            reversed(input_shape[1:]), self.projections, self.projection_norms, strict=True
        ):
            conv.build(shape)
            norm.build(own)
        self.encoder.build((None, None, self.width))
        self.lateral.build(input_shape[0])
        for layer in (self.lateral_norm, self.output_conv, self.output_norm, self.mask_feature):
            layer.build(own)

    def compute_output_spec(self, inputs: list[Any], training: bool | None = False) -> list[Any]:
        """Told, for PyTorch would run the layer to learn it."""
        finest, *levels = inputs
        return [
            keras.KerasTensor((*x.shape[:-1], self.width), dtype=self.compute_dtype)
            for x in (finest, *reversed(levels))
        ]

    def call(self, inputs: list[Tensor], training: bool | None = False) -> list[Tensor]:
        finest, *levels = inputs
        maps = [
            norm(conv(x))
            for x, conv, norm in zip(
                reversed(levels), self.projections, self.projection_norms, strict=True
            )
        ]
        layout = TokenLayout.of(maps)
        mixed = layout.split(self.encoder(maps, layout=layout, training=training))
        fine = self.lateral_norm(self.lateral(finest))
        coarse = mixed[-1]
        size = tuple(ops.shape(finest)[1:3])
        if tuple(coarse.shape[1:3]) != size:
            coarse = resize_bilinear(coarse, size)
        fine = ops.relu(self.output_norm(self.output_conv(fine + coarse)))
        return [self.mask_feature(fine), *mixed]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden": self.hidden,
        }
