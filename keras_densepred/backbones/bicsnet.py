"""BiCSNet: a bidirectional cross-scale backbone, and the block list it shares with its Lite form.

Peng et al., "BiCSNet: A Bidirectional Cross-Scale Backbone for Recognition and Localization"
(TCSVT 2022). Section, equation and table numbers are the paper's.

    image -> stem S0 S1 (stride 4) -> D3 D4 D5 D6 D7 -> U6 U5 U4 U3 U2 -> E3 E4 E5 E6 E7 -> P3..P7

The network goes down, up and down again, one block a level, and three pathways tie the parts
together across scales, so a detector needs no FPN. No code and no weights were ever published:
this is a reconstruction from the paper's text that meets its published parameter and FLOP counts
(`tools/model_table.py`). Where neither decides, layers follow SpineNet, which the paper builds on,
and what is our choice among equals is an argument. The built-in presets are architectures.
"""

import dataclasses
from collections.abc import Sequence

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.basic_blocks import EXPANSION, bottleneck_block, residual_block
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.pooling import MaxPool
from keras_densepred.layers.spatial_fusion import PlainResampling, SpatialFusion

MIN_LEVEL, MAX_LEVEL = 3, 7


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of the main path.

    Attributes:
        name: its part (D down, U up, M second down, E end) and its level.
        path: the block before it on the main path.
        pathway: the second block it takes its input from.
        kind: which pathway that is: `"stem"`, `"gap"` (eq. 4), `"skip"` (5), `"long_range"` (6).
    """

    name: str
    path: str
    pathway: str
    kind: str

    @property
    def level(self) -> int:
        return level_of(self.name)


def level_of(block: str) -> int:
    """The level of a block, by its name: both stem blocks are at level 2."""
    return 2 if block in ("S0", "S1") else int(block[1:])


DOWN_PART = (
    # Equation 4 names no source for level 3; taking both stem blocks is SpineNet's habit.
    Block("D3", "S1", "S0", "stem"),
    Block("D4", "D3", "S1", "gap"),
    Block("D5", "D4", "D3", "gap"),
    Block("D6", "D5", "D4", "gap"),
    Block("D7", "D6", "D5", "gap"),
)
UP_PART = (
    Block("U6", "D7", "D6", "skip"),
    Block("U5", "U6", "D5", "skip"),
    Block("U4", "U5", "D4", "skip"),
    Block("U3", "U4", "D3", "skip"),
    Block("U2", "U3", "S1", "skip"),
)
END_PART = (
    Block("E3", "U2", "S1", "long_range"),
    Block("E4", "E3", "D3", "long_range"),
    Block("E5", "E4", "D4", "long_range"),
    Block("E6", "E5", "D5", "long_range"),
    Block("E7", "E6", "D6", "long_range"),
)
# CSNet (Table IX) has a Down-Sampling Part M in place of the Up-Sampling Part. Our reading: parts
# are tied at equal levels, so that no block is left without a reader.
SECOND_DOWN_PART = (
    Block("M3", "S1", "D3", "skip"),
    Block("M4", "M3", "D4", "skip"),
    Block("M5", "M4", "D5", "skip"),
    Block("M6", "M5", "D6", "skip"),
    Block("M7", "M6", "D7", "skip"),
)
SECOND_END_PART = (
    Block("E3", "S1", "M3", "long_range"),
    Block("E4", "E3", "M4", "long_range"),
    Block("E5", "E4", "M5", "long_range"),
    Block("E6", "E5", "M6", "long_range"),
    Block("E7", "E6", "M7", "long_range"),
)
MAIN_PATHS = {
    "up": (*DOWN_PART, *UP_PART, *END_PART),
    "down": (*DOWN_PART, *SECOND_DOWN_PART, *SECOND_END_PART),
}
# Of any two equal-level blocks of the Down and the middle part, one is a residual block.
RESIDUAL_BLOCKS = {"up": ("D3", "D5", "U6", "U4", "U2"), "down": ("D3", "D5", "M4", "M6", "M7")}
LONG_RANGES = ("down", "up", None)


def main_path(
    middle: str = "up",
    gap: bool = True,
    skip: bool = True,
    long_range: str | None = "down",
    stem_pathway: bool = True,
) -> list[tuple[Block, tuple[str, ...]]]:
    """The blocks after the stem, each with the blocks it takes its input from, the path's first.

    Args:
        middle: `"up"` for BiCSNet, `"down"` for CSNet.
        gap: whether there are Gap-Connections.
        skip: whether there are Skip-Connections.
        long_range: where Long-Range Gap-Connections start, `"down"`, `"up"`, or None for none; in
            CSNet they start in its middle part in any case.
        stem_pathway: whether S0 feeds D3 too.

    Returns:
        Pairs of a block and the names of its sources, in order of execution.

    Raises:
        ValueError: if `middle` or `long_range` is none of these, or a part of CSNet would be tied
            to nothing.
    """
    if middle not in MAIN_PATHS:
        raise ValueError(f"`middle` must be one of {tuple(MAIN_PATHS)}, got {middle!r}.")
    if long_range not in LONG_RANGES:
        raise ValueError(f"`long_range` must be one of {LONG_RANGES}, got {long_range!r}.")
    if middle == "down" and (not skip or long_range is None):
        raise ValueError(
            'With `middle="down"` only `skip` and `long_range` tie the parts together: leave both '
            "on."
        )
    used = {
        "gap": gap,
        "skip": skip,
        "long_range": long_range is not None,
        "stem": stem_pathway,
    }
    path: list[tuple[Block, tuple[str, ...]]] = []
    for block in MAIN_PATHS[middle]:
        pathway = block.pathway
        if block.kind == "long_range" and long_range == "up" and middle == "up":
            pathway = f"U{block.level - 1}"
        wanted = used[block.kind] and pathway != block.path  # E3's path comes from U2 already
        path.append((block, (block.path, pathway) if wanted else (block.path,)))
    return path


def drop_path_rates(middle: str, last: float) -> dict[str, float]:
    """SpineNet's rule: rates rise linearly over the 15 blocks to `last`; none in the stem."""
    names = [block.name for block in MAIN_PATHS[middle]]
    return {name: last * (index + 1) / len(names) for index, name in enumerate(names)}


def map_at_level(maps: dict, level: int):
    """A map of a level's size among those of the Down-Sampling Part, which is always there."""
    return maps["S1" if level == 2 else f"D{level}"]


@register_backbone
class BiCSNetBackbone(PyramidBackbone):
    """BiCSNet backbone (Peng et al., 2022).

    Input: normalised RGB images `(batch, height, width, 3)`, float, of any size.

    Output: `{"P3", ..., "P7"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    output_width)` of strides 8 to 128, each a 1x1 convolution with norm and activation after the
    End Down-Sampling Part's block. RetinaNet's heads run on them as they are: the model goes into
    `models.RetinaNetKerasHub`, `models.RetinaNetKerasCV` and `keras_hub.models.
    RetinaNetObjectDetector` as `backbone=`.

    Blocks are named as in the module's docstring. The defaults are training strategy A of the
    paper (section V-A); strategy B is `activation="swish", drop_path_rate=0.2`, whose rate is
    SpineNet's, the paper giving none. Batch norms have momentum 0.99 and epsilon 1e-3.

    Args:
        depth_repeat: how often each block is repeated in a row, d in Table I.
        gamma: width within a Spatial Fusion Module, over that of the source block's 3x3
            convolution.
        width_multiplier: w in Table I; the stem's first convolution has 64 channels in any case.
        output_width: channels of every output.
        residual_blocks: which blocks are residual blocks, in place of bottlenecks; None is our
            choice, five blocks: of any two that a Skip-Connection ties, one is a bottleneck.
            Stem blocks are bottlenecks.
        context: the global context of Spatial Fusion Modules, `"mean"` or `"conv"`
            (`layers.SpatialFusion`); our choice of the paper's two references.
        long_range: where Long-Range Gap-Connections (eq. 6) start: `"down"` or `"up"`, between
            which the paper is ambiguous, or None for none (Table X).
        gap: whether there are Gap-Connections (eq. 4).
        skip: whether there are Skip-Connections (eq. 5).
        stem_pathway: whether the first stem block feeds D3 too, as in SpineNet; our choice.
        spatial_fusion: whether maps pass through Spatial Fusion Modules, or else through plain
            convolutions (Table X; `layers.PlainResampling`).
        middle: `"up"`, or `"down"` for CSNet (Table IX), which has a second Down-Sampling Part in
            place of the Up-Sampling Part; `skip` and `long_range` must then be on.
        activation: `"relu"` or `"swish"`, everywhere.
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
    >>> backbone = keras_densepred.BiCSNetBackbone.from_preset("bicsnet_48s")
    >>> tuple(backbone(numpy.zeros((1, 97, 131, 3)))["P3"].shape[1:3])
    (13, 17)
    """

    _preset_file = "bicsnet.json"
    size_divisor = 1
    min_level, max_level = MIN_LEVEL, MAX_LEVEL  # read by KerasHub's RetinaNet

    def __init__(
        self,
        depth_repeat: int = 1,
        gamma: float = 0.6,
        width_multiplier: float = 1.0,
        output_width: int = 256,
        residual_blocks: Sequence[str] | None = None,
        context: str = "mean",
        long_range: str | None = "down",
        gap: bool = True,
        skip: bool = True,
        stem_pathway: bool = True,
        spatial_fusion: bool = True,
        middle: str = "up",
        activation: str = "relu",
        drop_path_rate: float = 0.0,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        check_sizes(depth_repeat, width_multiplier, output_width, drop_path_rate)
        if gamma <= 0:
            raise ValueError(f"`gamma` must be positive, got {gamma}.")
        path = main_path(middle, gap, skip, long_range, stem_pathway)
        rates = drop_path_rates(middle, drop_path_rate)
        residual_blocks = RESIDUAL_BLOCKS[middle] if residual_blocks is None else residual_blocks
        unknown = sorted(set(residual_blocks) - set(rates))
        if unknown:
            raise ValueError(
                f"`residual_blocks` may name {', '.join(rates)}, got {', '.join(unknown)}."
            )
        kit = ConvNorm(activation, sync_batch_norm=sync_batch_norm, dtype=dtype)
        resample = SpatialFusion(kit, context) if spatial_fusion else PlainResampling(kit)
        builder = _Builder(
            kit, resample, depth_repeat, gamma, width_multiplier, frozenset(residual_blocks)
        )

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        maps = builder.stem(x)
        for block, sources in path:
            x = builder.fuse(maps, block, sources)
            maps[block.name] = builder.blocks(x, block.name, rates[block.name])
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
        self.depth_repeat = depth_repeat
        self.gamma = gamma
        self.width_multiplier = width_multiplier
        self.output_width = output_width
        self.residual_blocks = tuple(residual_blocks)
        self.context = context
        self.long_range = long_range
        self.gap = gap
        self.skip = skip
        self.stem_pathway = stem_pathway
        self.spatial_fusion = spatial_fusion
        self.middle = middle
        self.activation = activation
        self.drop_path_rate = drop_path_rate
        self.sync_batch_norm = sync_batch_norm

    @classmethod
    def complete_config(cls, config):
        complete = super().complete_config(config)
        if complete["residual_blocks"] is None:
            complete["residual_blocks"] = RESIDUAL_BLOCKS[complete["middle"]]
        return complete


def check_sizes(depth_repeat: int, width_multiplier: float, output_width: int, rate: float) -> None:
    """Raises ValueError for what no member of the family can be built with."""
    if depth_repeat < 1:
        raise ValueError(f"`depth_repeat` must be at least 1, got {depth_repeat}.")
    if width_multiplier <= 0:
        raise ValueError(f"`width_multiplier` must be positive, got {width_multiplier}.")
    if output_width < 1:
        raise ValueError(f"`output_width` must be at least 1, got {output_width}.")
    if not 0 <= rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1), got {rate}.")


def endpoints(maps: dict, kit: ConvNorm, width: int) -> dict:
    """P3..P7 of the End Down-Sampling Part: 1x1 convolution, norm, activation."""
    return {
        f"P{level}": kit.unit(maps[f"E{level}"], width, 1, f"p{level}")
        for level in range(MIN_LEVEL, MAX_LEVEL + 1)
    }


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds BiCSNet's stem, fusions and blocks."""

    kit: ConvNorm
    resample: SpatialFusion | PlainResampling
    depth_repeat: int
    gamma: float
    width_multiplier: float
    residual_blocks: frozenset[str]

    def width(self, block: str) -> int:
        """Channels of the block's 3x3 convolutions: 64 at level 2, 128 at 3, 256 from 4 on."""
        return max(int(min(16 * 2 ** level_of(block), 256) * self.width_multiplier), 1)

    def channels(self, block: str) -> int:
        """Channels the block takes in and gives out."""
        return self.width(block) * (1 if block in self.residual_blocks else EXPANSION)

    def stem(self, x) -> dict:
        """ResNet's stem and SpineNet's two bottlenecks at stride 4."""
        x = self.kit.unit(x, 64, 7, "stem", stride=2)
        x = MaxPool(name="stem_pool", dtype=self.kit.dtype)(x)
        s0 = self.blocks(x, "S0", 0.0)
        return {"S0": s0, "S1": self.blocks(s0, "S1", 0.0)}

    def fuse(self, maps: dict, block: Block, sources: Sequence[str]):
        """The sum of the sources, each at the block's level and width, then activation."""
        name = block.name.lower()
        parts = [
            self.resample(
                maps[source],
                squeeze=max(int(self.gamma * self.width(source)), 1),
                channels=self.channels(block.name),
                steps=block.level - level_of(source),
                name=f"{name}_from_{source.lower()}",
                like=map_at_level(maps, block.level) if level_of(source) > block.level else None,
            )
            for source in sources
        ]
        x = parts[0] if len(parts) == 1 else self.kit.add(parts[0], parts[1], f"{name}_fuse")
        return self.kit.act(x, f"{name}_fuse_act")

    def blocks(self, x, block: str, rate: float):
        """The block, `depth_repeat` times in a row."""
        build = residual_block if block in self.residual_blocks else bottleneck_block
        for repeat in range(1, self.depth_repeat + 1):
            x = build(self.kit, x, self.width(block), f"{block.lower()}_block{repeat}", rate)
        return x
