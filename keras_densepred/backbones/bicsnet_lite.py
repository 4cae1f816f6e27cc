"""BiCSNet's mobile form: the blocks and pathways of BiCSNet, made of MB-Convs.

Peng et al., "BiCSNet: A Bidirectional Cross-Scale Backbone for Recognition and Localization"
(TCSVT 2022), the paragraphs on mobile models. `backbones.bicsnet` has the family's structure and
says how far this is a reconstruction; what the paper leaves open follows SpineNet-mobile.
"""

import dataclasses
from collections.abc import Sequence

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.bicsnet import (
    MAX_LEVEL,
    MIN_LEVEL,
    Block,
    check_sizes,
    drop_path_rates,
    endpoints,
    level_of,
    main_path,
    map_at_level,
)
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.mobile import FastFusion, SpaceToDepth, mb_conv_block
from keras_densepred.layers.spatial_fusion import upsample

STEM_WIDTH = 8
WIDTHS = {1: 16, 2: 24, 3: 40, 4: 80, 5: 112, 6: 112, 7: 112}  # before the multiplier


@register_backbone
class BiCSNetLiteBackbone(PyramidBackbone):
    """BiCSNet-Lite backbone (Peng et al., 2022).

    Every block is an MB-Conv. Maps go down by space-to-depth and, over two levels, a depthwise
    convolution of stride 2, up by nearest neighbours, without squeeze or global context, and are
    added by fast normalised fusion. Input and output are as of `BiCSNetBackbone`.

    Args:
        width_multiplier: over the widths 16, 24, 40, 80, 112, 112, 112 of levels 1 to 7.
        output_width: channels of every output, and of the detection heads in the paper.
        se_ratio: width of the MB-Convs' squeeze-excitation over the channels they take in; 0
            leaves it out. Our choice: SpineNet-mobile's 0.2 is 10 % short of the paper's
            parameters, 0.4 within 1 %.
        long_range: as of `BiCSNetBackbone`.
        gap: as of `BiCSNetBackbone`.
        skip: as of `BiCSNetBackbone`.
        stem_pathway: as of `BiCSNetBackbone`.
        middle: as of `BiCSNetBackbone`.
        activation: `"swish"` or `"relu"`, everywhere.
        drop_path_rate: drop-path probability of the last block; rates rise linearly to it.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.BiCSNetLiteBackbone.from_preset("bicsnet_lite0")
    >>> tuple(backbone(numpy.zeros((1, 97, 131, 3)))["P3"].shape[1:3])
    (13, 17)
    """

    _preset_file = "bicsnet_lite.json"
    size_divisor = 1
    min_level, max_level = MIN_LEVEL, MAX_LEVEL

    def __init__(
        self,
        width_multiplier: float = 1.0,
        output_width: int = 48,
        se_ratio: float = 0.4,
        long_range: str | None = "down",
        gap: bool = True,
        skip: bool = True,
        stem_pathway: bool = True,
        middle: str = "up",
        activation: str = "swish",
        drop_path_rate: float = 0.0,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        check_sizes(1, width_multiplier, output_width, drop_path_rate)
        if se_ratio < 0:
            raise ValueError(f"`se_ratio` must not be negative, got {se_ratio}.")
        kit = ConvNorm(activation, sync_batch_norm=sync_batch_norm, dtype=dtype)
        builder = _LiteBuilder(kit, width_multiplier, se_ratio)
        path = main_path(middle, gap, skip, long_range, stem_pathway)
        rates = drop_path_rates(middle, drop_path_rate)

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        maps = builder.stem(x)
        for block, sources in path:
            x = builder.fuse(maps, block, sources)
            maps[block.name] = builder.block(x, block.name, rates[block.name])
        super().__init__(
            inputs=inputs,
            pyramid_outputs=endpoints(maps, kit, output_width),
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=kit,
            **kwargs,
        )

        # === Config ===
        self.width_multiplier = width_multiplier
        self.output_width = output_width
        self.se_ratio = se_ratio
        self.long_range = long_range
        self.gap = gap
        self.skip = skip
        self.stem_pathway = stem_pathway
        self.middle = middle
        self.activation = activation
        self.drop_path_rate = drop_path_rate
        self.sync_batch_norm = sync_batch_norm


@dataclasses.dataclass(frozen=True)
class _LiteBuilder:
    """Builds the Lite form's stem, fusions and blocks."""

    kit: ConvNorm
    width_multiplier: float
    se_ratio: float

    def width(self, level: int) -> int:
        return max(int(WIDTHS[level] * self.width_multiplier), 1)

    def stem(self, x) -> dict:
        """SpineNet-mobile's stem: a convolution, one MB-Conv at stride 2, two at stride 4."""
        x = self.kit.unit(x, max(int(STEM_WIDTH * self.width_multiplier), 1), 3, "stem", stride=2)
        x = self._mb_conv(x, 1, "stem_block")
        s0 = self._mb_conv(x, 2, "s0_block1", stride=2)
        return {"S0": s0, "S1": self.block(s0, "S1", 0.0)}

    def block(self, x, block: str, rate: float):
        return self._mb_conv(x, level_of(block), f"{block.lower()}_block1", rate=rate)

    def _mb_conv(self, x, level: int, name: str, stride: int = 1, rate: float = 0.0):
        return mb_conv_block(self.kit, x, self.width(level), name, stride, self.se_ratio, rate)

    def fuse(self, maps: dict, block: Block, sources: Sequence[str]):
        """The weighted mean of the sources at the block's level and width, then activation."""
        name = block.name.lower()
        parts = [
            self._resample(
                maps[source],
                self.width(block.level),
                block.level - level_of(source),
                f"{name}_from_{source.lower()}",
                map_at_level(maps, block.level) if level_of(source) > block.level else None,
            )
            for source in sources
        ]
        x = parts[0]
        if len(parts) > 1:
            x = FastFusion(name=f"{name}_fuse", dtype=self.kit.dtype)(*parts)
        return self.kit.act(x, f"{name}_fuse_act")

    def _resample(self, x, channels: int, steps: int, name: str, like):
        if steps > 0:
            x = SpaceToDepth(name=f"{name}_space_to_depth", dtype=self.kit.dtype)(x)
            x = self.kit.norm(x, f"{name}_space_to_depth_norm")
            x = self.kit.act(x, f"{name}_space_to_depth_act")
            for step in range(1, steps):
                x = self.kit.depthwise_unit(x, f"{name}_down{step}", stride=2)
        elif steps < 0:
            x = upsample(x, -steps, like, name, self.kit.dtype)
        return self.kit.unit(x, channels, 1, f"{name}_project", act=False)
