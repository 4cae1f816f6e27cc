"""The layers of UperNet's heads, and of the CEDNet authors' own, on the maps of a backbone.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (ECCV 2018), section 3.1, in the
form of MMSegmentation 0.30, with which CEDNet and ConvNeXt are measured on ADE20K.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_densepred.backbones.cednet import StageBuilder
from keras_densepred.layers.conv import Pointwise
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.initializers import FixedNormal
from keras_densepred.layers.norm import GELU, batch_norm
from keras_densepred.layers.pooling import AdaptiveMean
from keras_densepred.layers.residual import ChannelDropout
from keras_densepred.layers.stateless import Add, Concat
from keras_densepred.layers.token_mixers import NeXtMixer
from keras_densepred.layers.upsampling import ResizeLike

Tensor = Any

MOMENTUM, EPSILON = 0.9, 1e-5  # PyTorch's of batch norms
_EXTRA_WIDTH = 512  # no level of the CED head's encoder is wider


@dataclasses.dataclass(frozen=True)
class GELUConvNorm(ConvNorm):
    """`ConvNorm` with exact GELUs for activations."""

    def act(self, x: Tensor, name: str) -> Tensor:
        return GELU(name=name, dtype=self.dtype)(x)


@dataclasses.dataclass(frozen=True)
class BatchNormNeXtMixer(NeXtMixer):
    """ConvNeXt's blocks with batch norms in place of layer norms."""

    def norm(self, x: Tensor, name: str) -> Tensor:
        return batch_norm(name, MOMENTUM, EPSILON, self.sync_batch_norm, self.dtype)(x)


def uper_decoder(
    kit: ConvNorm, maps: Mapping[str, Tensor], width: int, pool_sizes: Sequence[int]
) -> Tensor:
    """UperNet's decoder: pooling pyramid, top-down path, and one map of all levels.

    Args:
        kit: convolution, batch norm and ReLU.
        maps: level such as `"P2"` to `(batch, height, width, channels)`, finest first.
        width: channels of every convolution.
        pool_sizes: grids of the pooling pyramid on the coarsest level.

    Returns:
        `(batch, height, width, channels)` of the finest level's size.
    """
    names = list(maps)
    tops = {names[-1]: pooling_pyramid(kit, maps[names[-1]], width, pool_sizes)}
    for coarse, fine in zip(names[::-1], names[-2::-1], strict=False):
        label = fine.lower()
        lateral = kit.unit(maps[fine], width, 1, f"lateral_{label}")
        above = _resized(kit, tops[coarse], lateral, f"top_down_{label}")
        tops[fine] = Add(name=f"top_down_{label}_add", dtype=kit.dtype)(lateral, above)
    levels = [kit.unit(tops[name], width, 3, f"fpn_{name.lower()}") for name in names[:-1]]
    levels.append(tops[names[-1]])
    return _merged(kit, names, levels, width)


def pooling_pyramid(kit: ConvNorm, x: Tensor, width: int, pool_sizes: Sequence[int]) -> Tensor:
    """PSPNet's module (Zhao et al., 2017): a map with its means over grids of several sizes.

    Args:
        kit: convolution, norm and activation.
        x: map `(batch, height, width, channels)`.
        width: channels of each grid and of the result.
        pool_sizes: cells of each grid along an axis.

    Returns:
        `(batch, height, width, width)`.
    """
    branches = [x]
    for size in pool_sizes:
        pooled = AdaptiveMean(size, name=f"pool{size}", dtype=kit.dtype)(x)
        pooled = kit.unit(pooled, width, 1, f"pool{size}")
        branches.append(_resized(kit, pooled, x, f"pool{size}"))
    x = Concat(name="pool_concat", dtype=kit.dtype)(branches)
    return kit.unit(x, width, 3, "bottleneck")


def ced_decoder(
    kit: ConvNorm,
    backbone: keras.Model,
    maps: Mapping[str, Tensor],
    width: int,
    pool_sizes: Sequence[int],
) -> Tensor:
    """The authors' `CEDHead` with its wrapper, which is in their code and not in the paper.

    One more stage of the cascade, with batch norms, on P3; a 1x1 convolution for each of its
    levels; the pooling pyramid on the coarsest; a decoder down to P2; and one map of all levels.

    Args:
        kit: convolution, batch norm and ReLU.
        backbone: a `CEDNetBackbone`, whose widths and depths the stage has; none is wider than 512.
        maps: with `"P2"` and `"P3"`, `(batch, height, width, channels)`.
        width: channels of the last convolution; the pooling pyramid's are those of its level.
        pool_sizes: grids of the pooling pyramid.

    Returns:
        `(batch, height, width, channels)` of P2's size.
    """
    mixer = BatchNormNeXtMixer(
        layer_scale_init=backbone.layer_scale_init,
        lr_dilation=backbone.lr_dilation,
        sync_batch_norm=kit.sync_batch_norm,
        dtype=kit.dtype,
    )
    widths = tuple(min(channels, _EXTRA_WIDTH) for channels in backbone.widths)
    depths = backbone.depths if isinstance(backbone.depths[0], int) else backbone.depths[-1]
    stage = StageBuilder(mixer, widths, "fpn", backbone.lr_blocks)
    encoded = stage.encoder((maps["P3"], None, None), depths, [0.0] * sum(depths), "last_encoder")
    reduced = []
    for level, x in zip((3, 4, 5), encoded, strict=True):
        x = mixer.conv(x, x.shape[-1], 1, f"reduce_p{level}_conv")
        reduced.append(mixer.norm(x, f"reduce_p{level}_norm"))
    c3, c4, c5 = reduced
    pool_kit = GELUConvNorm(**{f.name: getattr(kit, f.name) for f in dataclasses.fields(kit)})
    c5 = pooling_pyramid(pool_kit, c5, widths[-1], pool_sizes)
    c4 = stage.fuse(c4, c5, 1, "last_decoder")
    c3 = stage.fuse(c3, c4, 2, "last_decoder")
    c2 = stage.fuse(maps["P2"], c3, 3, "last_decoder")
    return _merged(kit, ["P2", "P3", "P4", "P5"], [c2, c3, c4, c5], width)


def classify(kit: ConvNorm, x: Tensor, num_classes: int, dropout: float, name: str) -> Tensor:
    """Dropout of channels, then logits of each position."""
    if dropout:
        x = ChannelDropout(dropout, name=f"{name}_dropout", dtype=kit.dtype)(x)
    return Pointwise(num_classes, kernel_initializer=FixedNormal(0.01), name=name, dtype=kit.dtype)(
        x
    )


def _merged(kit: ConvNorm, names: Sequence[str], levels: list[Tensor], width: int) -> Tensor:
    """All levels at the size of the finest, through one 3x3 convolution."""
    finest, *coarser = levels
    resized = [
        _resized(kit, level, finest, f"merge_{name.lower()}")
        for name, level in zip(names[1:], coarser, strict=True)
    ]
    x = Concat(name="merge_concat", dtype=kit.dtype)([finest, *resized])
    return kit.unit(x, width, 3, "merge")


def _resized(kit: ConvNorm, x: Tensor, like: Tensor, name: str) -> Tensor:
    return ResizeLike(name=f"{name}_resize", dtype=kit.dtype)(x, like)
