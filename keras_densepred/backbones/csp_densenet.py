"""PeleeNet and its relatives, plain and in cross-stage-partial form.

Wang et al., "Pelee: A Real-Time Object Detection System on Mobile Devices" (2018),
https://arxiv.org/abs/1804.06882, and Wang et al., "CSPNet: A New Backbone that can Enhance
Learning Capability of CNN" (2019), https://arxiv.org/abs/1911.11929, tables 1 and 2, figures 2 to
4 and 7. The authors published neither code nor weights of CSPNet's dense networks. What is here
meets the paper's parameters and BFLOPs (`tools/model_table.py`): for most to the last digit, by
layers read from the bars of its figure 7; for the fusion-first form, whose wiring is one of those
that could; and for the Reference networks and the place of squeeze-excitation only nearly, by
layers of our own choice.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.cross_stage import FUSIONS, CrossStage
from keras_densepred.layers.dense_blocks import DenseBlock
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.pooling import MaxPool
from keras_densepred.layers.stateless import Concat

STEM_WIDTH = 32
STEMS = ("pelee", "plain")
POOLS = ("max", "average")
VARIANTS = (None, "next", "sparse")


@register_backbone
class PeleeNetBackbone(PyramidBackbone):
    """PeleeNet backbone (Wang et al., 2018), PeleeNeXt and SparsePeleeNet (CSPNet, table 1).

    Input: normalised RGB images `(batch, height, width, 3)`, float, of any size.

    Output: `{"P2", ..., "P5"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    channels)` of strides 4 to 32, each the transition after a stage, before the pooling.

    Batch norms have momentum 0.99 and epsilon 1e-5.

    Args:
        depths: number of two-way dense layers of each of the four stages.
        bottlenecks: channels of the dense layers' 1x1 convolutions, of each stage.
        growth: channels a dense layer adds.
        variant: None for PeleeNet; `"next"` for PeleeNeXt, whose ways start with a 3x3 convolution
            in groups of 4 channels; `"sparse"` for SparsePeleeNet, whose layer n reads only the
            results of the layers n - 1, n - 2, n - 4, n - 8 ...
        pool: what halves maps between stages: `"max"`, as in the CSPNet paper's counts, or
            `"average"`, as in PeleeNet's own code. The stem's pooling is max-pooling in both.
        se: whether the channels a dense layer adds are scaled by squeeze-excitation.
        activation: `"leaky_relu"`, `"swish"`, `"mish"` or `"relu"`, everywhere.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.PeleeNetBackbone.from_preset("peleenet")
    >>> tuple(backbone(numpy.zeros((1, 97, 131, 3)))["P3"].shape[1:3])
    (13, 17)
    """

    _preset_file = "peleenet.json"
    size_divisor = 1

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 8, 6),
        bottlenecks: Sequence[int] = (16, 32, 64, 64),
        growth: int = 32,
        variant: str | None = None,
        pool: str = "max",
        se: bool = False,
        activation: str = "leaky_relu",
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        _check_stages(depths, bottlenecks, (4,))
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {VARIANTS}, got {variant!r}.")
        if pool not in POOLS:
            raise ValueError(f"`pool` must be one of {POOLS}, got {pool!r}.")
        kit = ConvNorm(activation, epsilon=1e-5, sync_batch_norm=sync_batch_norm, dtype=dtype)
        dense = DenseBlock(
            kit, growth, grouped=variant == "next", sparse=variant == "sparse", se=se
        )

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        x = kit.unit(_pelee_stem(kit, x, pool_unit=False), STEM_WIDTH, 1, "stem_fuse")
        maps = {}
        for number, (depth, bottleneck) in enumerate(zip(depths, bottlenecks, strict=True), 1):
            name = f"stage{number}"
            if number > 1:
                x = _halve(kit, x, f"{name}_pool", pool)
            x = dense(x, depth, bottleneck, name)
            x = maps[f"P{number + 1}"] = kit.unit(x, x.shape[-1], 1, f"{name}_transition")
        super().__init__(
            inputs=inputs,
            pyramid_outputs=maps,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=kit,
            **kwargs,
        )

        # === Config ===
        self.depths = tuple(depths)
        self.bottlenecks = tuple(bottlenecks)
        self.growth = growth
        self.variant = variant
        self.pool = pool
        self.se = se
        self.activation = activation
        self.sync_batch_norm = sync_batch_norm


@register_backbone
class CSPDenseNetBackbone(PyramidBackbone):
    """Dense networks in cross-stage-partial form: CSPPeleeNet and the Reference networks.

    Input: normalised RGB images `(batch, height, width, 3)`, float, of any size.

    Output: `{"P2", ..., "P5"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    channels)` of strides 4 to 32: the concats that end the stages, before their pooling, and the
    network's last convolution.

    The defaults are CSPPeleeNet. Batch norms have momentum 0.99 and epsilon 1e-5.

    Args:
        depths: number of dense layers of each stage, four stages or, in the Reference networks,
            three.
        bottlenecks: channels of the dense layers' 1x1 convolutions, of each stage.
        growth: channels a dense layer adds.
        ways: of a dense layer: 2 as in PeleeNet, 1 as in DenseNet.
        gamma: share of a stage's channels that bypasses its dense layers; half in the first stage
            in any case.
        fusion: the paper's figure 3: `"both"`; `"last"`, without the transitions after concats;
            `"first"`, without those before them, and with the pooling between stages after the
            bypass' split and before the branch's. The convolution that ends the network stays.
        stem: `"pelee"`, or `"plain"` for two strided 3x3 convolutions.
        end_kernel: side of the last convolution's kernel: 1, or 3 in the Reference networks but
            their b forms.
        se: whether the channels a dense layer adds are scaled by squeeze-excitation.
        activation: `"leaky_relu"`, `"swish"`, `"mish"` or `"relu"`, everywhere.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.CSPDenseNetBackbone.from_preset("csp_peleenet")
    >>> tuple(backbone(numpy.zeros((1, 97, 131, 3)))["P3"].shape[1:3])
    (13, 17)
    """

    _preset_file = "csp_densenet.json"
    size_divisor = 1

    def __init__(
        self,
        depths: Sequence[int] = (2, 4, 8, 4),
        bottlenecks: Sequence[int] = (16, 32, 64, 64),
        growth: int = 32,
        ways: int = 2,
        gamma: float = 0.5,
        fusion: str = "both",
        stem: str = "pelee",
        end_kernel: int = 1,
        se: bool = False,
        activation: str = "leaky_relu",
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        _check_stages(depths, bottlenecks, (3, 4))
        if ways not in (1, 2):
            raise ValueError(f"`ways` must be 1 or 2, got {ways}.")
        if fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {FUSIONS}, got {fusion!r}.")
        if stem not in STEMS:
            raise ValueError(f"`stem` must be one of {STEMS}, got {stem!r}.")
        if end_kernel not in (1, 3):
            raise ValueError(f"`end_kernel` must be 1 or 3, got {end_kernel}.")
        kit = ConvNorm(activation, epsilon=1e-5, sync_batch_norm=sync_batch_norm, dtype=dtype)
        builder = _Builder(kit, DenseBlock(kit, growth, ways, se=se), gamma, fusion)

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        if stem == "pelee":
            x = _pelee_stem(kit, x, pool_unit=fusion == "both")
        else:
            x = kit.unit(x, STEM_WIDTH, 3, "stem1", stride=2)
            x = kit.unit(x, 2 * STEM_WIDTH, 3, "stem2", stride=2)
        maps = {}
        for number, (depth, bottleneck) in enumerate(zip(depths, bottlenecks, strict=True), 1):
            x = maps[f"P{number + 1}"] = builder.stage(x, depth, bottleneck, number)
        if len(depths) == 3:
            x = _halve(kit, x, "end_pool")
        maps["P5"] = kit.unit(x, x.shape[-1], end_kernel, "end")
        super().__init__(
            inputs=inputs,
            pyramid_outputs=maps,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=kit,
            **kwargs,
        )

        # === Config ===
        self.depths = tuple(depths)
        self.bottlenecks = tuple(bottlenecks)
        self.growth = growth
        self.ways = ways
        self.gamma = gamma
        self.fusion = fusion
        self.stem = stem
        self.end_kernel = end_kernel
        self.se = se
        self.activation = activation
        self.sync_batch_norm = sync_batch_norm


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds the cross-stage-partial stages of `CSPDenseNetBackbone`."""

    kit: ConvNorm
    dense: DenseBlock
    gamma: float
    fusion: str

    def stage(self, x, depth: int, bottleneck: int, number: int):
        """A stage up to its concat, from the concat of the one before it."""
        name = f"stage{number}"
        partial = self._cross_stage(number)
        if number > 1 and self.fusion == "last":
            x = _halve(self.kit, x, f"{name}_pool")
        elif number > 1 and self.fusion == "both":
            # The previous stage's transition runs here, at half the size.
            x = self._cross_stage(number - 1).transition(x, f"stage{number - 1}")
        return partial.partial(x, lambda branch: self.dense(branch, depth, bottleneck, name), name)

    def _cross_stage(self, number: int) -> CrossStage:
        pools = {"both": "transition", "first": "parts" if number > 1 else None, "last": None}
        return CrossStage(
            self.kit,
            gamma=self.gamma if number > 1 else 0.5,
            fusion=self.fusion,
            pool=pools[self.fusion],
        )


def _pelee_stem(kit: ConvNorm, x, pool_unit: bool):
    """PeleeNet's stem, 64 channels at stride 4: strided convolution beside 2x2 max-pooling.

    Args:
        kit: convolution, norm and activation.
        x: images `(batch, height, width, 3)`.
        pool_unit: whether a 1x1 unit follows the pooling.
    """
    x = kit.unit(x, STEM_WIDTH, 3, "stem1", stride=2)
    pooled = MaxPool(2, 2, name="stem_pool", dtype=kit.dtype)(x)
    if pool_unit:
        pooled = kit.unit(pooled, STEM_WIDTH, 1, "stem_pooled")
    x = kit.unit(x, STEM_WIDTH // 2, 1, "stem2_reduce")
    x = kit.unit(x, STEM_WIDTH, 3, "stem2", stride=2)
    return Concat(name="stem_concat", dtype=kit.dtype)([x, pooled])


def _halve(kit: ConvNorm, x, name: str, pool: str = "max"):
    if pool == "max":
        return MaxPool(2, 2, name=name, dtype=kit.dtype)(x)
    return keras.layers.AveragePooling2D(
        2, padding="same", data_format="channels_last", name=name, dtype=kit.dtype
    )(x)


def _check_stages(depths: Sequence[int], bottlenecks: Sequence[int], stages: tuple) -> None:
    if len(depths) not in stages or len(bottlenecks) != len(depths) or min(depths) < 1:
        raise ValueError(
            f"`depths` and `bottlenecks` must be one positive number for each of "
            f"{' or '.join(map(str, stages))} stages, got {tuple(depths)} and {tuple(bottlenecks)}."
        )
