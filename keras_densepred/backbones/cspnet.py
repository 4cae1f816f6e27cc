"""CSPNet's residual networks: CSPResNet-10, CSPResNet-50, CSPResNeXt-50, CSPDarkNet-53.

Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (2019),
https://arxiv.org/abs/1911.11929, and the authors' Darknet configurations
(github.com/WongKinYiu/CrossStagePartialNetworks). `backbones.csp_densenet` has the dense ones.

KerasHub's `CSPNetBackbone` (keras-hub 0.32.0) builds timm's relatives of three of these networks,
and `flavour="timm"` gives the same outputs from the same weights. The paper's own it cannot
express: they have leaky ReLU of slope 0.1 (there 0.01), 2x2 max-pooling in the stem (3x3), a first
stage whose shortcut adds 64 channels to 128 (128 to 128), splits without activation in some stages
only, and the branch first in the concat. Its classes are therefore not what this builds on.

No weights are shipped; `convert.darknet` reads the authors', `convert.timm` timm's, of which
KerasHub's are copies: `from_preset("csp_resnext_50_ra_imagenet")`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_densepred.backbones.converted import ConvertedPresets
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv_norm import ConvNorm, OrderedConvNorm
from keras_densepred.layers.cross_stage import CrossStage
from keras_densepred.layers.darknet import PartialAdd
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.pooling import MaxPool

BLOCKS = ("bottleneck", "dark", "basic")
MIN_LEVEL, MAX_LEVEL = 2, 5


@dataclasses.dataclass(frozen=True)
class Flavour:
    """Where Darknet's and timm's networks of the same stages differ."""

    negative_slope: float
    stem_pool_size: int
    bypass_first: bool


FLAVOURS = {
    "darknet": Flavour(negative_slope=0.1, stem_pool_size=2, bypass_first=False),
    "timm": Flavour(negative_slope=0.01, stem_pool_size=3, bypass_first=True),
}


@dataclasses.dataclass(frozen=True)
class CSPStage:
    """One stage: a strided convolution if it has one, blocks in cross-stage-partial form.

    Attributes:
        depth: number of blocks.
        width: channels that a block gives out.
        bottleneck: channels inside of a block; a `"basic"` one has no others than `width`.
        parts: channels of the bypass and of the branch; None for blocks on the whole map.
        out: channels of the stage's last transition, where there are parts.
        down: channels of the 3x3 convolution of stride 2 that starts the stage; None for none.
        linear_split: whether the convolutions that make the parts go without activation.
    """

    depth: int
    width: int
    bottleneck: int | None = None
    parts: tuple[int, int] | None = None
    out: int | None = None
    down: int | None = None
    linear_split: bool = False

    def __post_init__(self):
        if self.parts is not None:
            object.__setattr__(self, "parts", tuple(self.parts))
        if self.depth < 1 or self.width < 1:
            raise ValueError(
                f"A stage's `depth` and `width` must be positive, got {self.depth}, {self.width}."
            )


@register_backbone
class CSPNetBackbone(ConvertedPresets):
    """CSPNet backbone of residual blocks (Wang et al., 2019).

    Input: normalised RGB images `(batch, height, width, 3)`, float, of any size; Darknet's
    networks take RGB in 0..1, timm's the ImageNet mean and standard deviation taken off.

    Output: `{"P2", ..., "P5"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    channels)` of strides 4 to 32, each the end of a stage.

    The defaults are CSPResNet-50. Batch norms have momentum 0.99 and epsilon 1e-5.

    Args:
        stages: `CSPStage`s or dictionaries of their attributes; None for CSPResNet-50's.
        block: `"bottleneck"` (1x1, 3x3, 1x1, shortcut, activation), `"dark"` (1x1, 3x3, shortcut)
            or `"basic"` (3x3, 3x3, shortcut, activation).
        groups: of the blocks' and the strided 3x3 convolutions, 32 for ResNeXt.
        stem_width: channels of the first convolution.
        stem_kernel: side of the first convolution's kernel.
        stem_stride: input pixels per position of the stem's output: 4, a convolution of stride 2
            and max-pooling; or 1, a convolution.
        flavour: `"darknet"`, as in the paper, or `"timm"`: leaky ReLU's slope, 0.1 or 0.01; the
            stem's max-pooling, 2x2 or 3x3; what comes first in the concat, branch or bypass. The
            networks of timm's weights also differ in their stages (presets `..._timm`).
        activation: `"leaky_relu"`, `"mish"`, `"swish"` or `"relu"`.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here, or the last stage's stride is
            not 32.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.CSPNetBackbone.from_preset("csp_resnet_10")
    >>> tuple(backbone(numpy.zeros((1, 97, 131, 3)))["P3"].shape[1:3])
    (13, 17)
    """

    _preset_file = "cspnet.json"
    _counterparts = ("CSPNetBackbone",)
    _timm = r"csp(darknet53|resnet50|resnext50)"
    size_divisor = 1

    def __init__(
        self,
        stages: Sequence[CSPStage | Mapping[str, Any]] | None = None,
        block: str = "bottleneck",
        groups: int = 1,
        stem_width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 4,
        flavour: str = "darknet",
        activation: str = "leaky_relu",
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        specs = self.complete_config({"stages": stages})["stages"]
        if block not in BLOCKS:
            raise ValueError(f"`block` must be one of {BLOCKS}, got {block!r}.")
        if flavour not in FLAVOURS:
            raise ValueError(f"`flavour` must be one of {tuple(FLAVOURS)}, got {flavour!r}.")
        _check_strides(specs, stem_stride)
        kit = OrderedConvNorm(
            activation,
            epsilon=1e-5,
            sync_batch_norm=sync_batch_norm,
            dtype=dtype,
            negative_slope=FLAVOURS[flavour].negative_slope,
        )
        builder = _Builder(kit, block, groups, FLAVOURS[flavour])

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        x = builder.stem(x, stem_width, stem_kernel, stem_stride)
        level, maps = stem_stride.bit_length() - 1, {}
        for number, spec in enumerate(specs, 1):
            x = builder.stage(x, spec, f"stage{number}")
            level += spec.down is not None
            if level >= MIN_LEVEL:
                maps[f"P{level}"] = x
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
        self.stages = specs
        self.block = block
        self.groups = groups
        self.stem_width = stem_width
        self.stem_kernel = stem_kernel
        self.stem_stride = stem_stride
        self.flavour = flavour
        self.activation = activation
        self.sync_batch_norm = sync_batch_norm
        self._convolutions = tuple(kit.order)

    @classmethod
    def complete_config(cls, config):
        complete = super().complete_config(config)
        stages = complete["stages"]
        if stages is None:
            stages = cls.architecture_presets()["csp_resnet_50"]["config"]["stages"]
        complete["stages"] = tuple(s if isinstance(s, CSPStage) else CSPStage(**s) for s in stages)
        return complete

    @property
    def convolutions(self) -> tuple[str, ...]:
        """The names of the convolutions in the order they were built in."""
        return self._convolutions

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of the authors' files (`convert.darknet`).

        Raises:
            ValueError: if the network is of timm's flavour.
        """
        if self.flavour != "darknet":
            raise ValueError(
                f'{self.name} is of the flavour "{self.flavour}", which computes other outputs '
                'from Darknet\'s weights: build it of the flavour "darknet".'
            )
        return self._convolutions


def _check_strides(specs: Sequence[CSPStage], stem_stride: int) -> None:
    if stem_stride not in (1, 4):
        raise ValueError(f"`stem_stride` must be 1 or 4, got {stem_stride}.")
    stride = stem_stride * 2 ** sum(spec.down is not None for spec in specs)
    if stride != 2**MAX_LEVEL:
        raise ValueError(
            f"The last stage must have stride {2**MAX_LEVEL}, but a stem of stride {stem_stride} "
            f"and these `stages` make it {stride}: choose which stages have a `down`."
        )


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds stem, stages and blocks."""

    kit: ConvNorm
    block: str
    groups: int
    flavour: Flavour

    def stem(self, x, width: int, kernel: int, stride: int):
        if stride == 1:
            return self.kit.unit(x, width, kernel, "stem")
        x = self.kit.unit(x, width, kernel, "stem", stride=2)
        return MaxPool(self.flavour.stem_pool_size, name="stem_pool", dtype=self.kit.dtype)(x)

    def stage(self, x, spec: CSPStage, name: str):
        if spec.down is not None:
            x = self.kit.unit(x, spec.down, 3, f"{name}_down", stride=2, groups=self.groups)
        if spec.parts is None:
            return self.blocks(x, spec, name)
        partial = CrossStage(
            self.kit,
            part_widths=spec.parts,
            linear_split=spec.linear_split,
            width=spec.out,
            bypass_first=self.flavour.bypass_first,
        )
        return partial(x, lambda branch: self.blocks(branch, spec, name), name)

    def blocks(self, x, spec: CSPStage, name: str):
        build = {"bottleneck": self.bottleneck, "dark": self.dark, "basic": self.basic}[self.block]
        for number in range(1, spec.depth + 1):
            x = build(x, spec, f"{name}_block{number}")
        return x

    def bottleneck(self, x, spec: CSPStage, name: str):
        inside = spec.bottleneck or spec.width
        y = self.kit.unit(x, inside, 1, f"{name}_reduce")
        y = self.kit.unit(y, inside, 3, f"{name}_spatial", groups=self.groups)
        y = self.kit.unit(y, spec.width, 1, f"{name}_expand", act=False)
        return self.kit.act(self.shortcut(y, x, name), f"{name}_act")

    def dark(self, x, spec: CSPStage, name: str):
        y = self.kit.unit(x, spec.bottleneck or spec.width, 1, f"{name}_reduce")
        y = self.kit.unit(y, spec.width, 3, f"{name}_spatial", groups=self.groups)
        return self.shortcut(y, x, name)

    def basic(self, x, spec: CSPStage, name: str):
        y = self.kit.unit(x, spec.width, 3, f"{name}_first", groups=self.groups)
        y = self.kit.unit(y, spec.width, 3, f"{name}_second", act=False, groups=self.groups)
        return self.kit.act(self.shortcut(y, x, name), f"{name}_act")

    def shortcut(self, y, x, name: str):
        """The sum, in the first block of ResNe(X)t's stage 1 of as many channels as `x` has."""
        if x.shape[-1] == y.shape[-1]:
            return self.kit.add(y, x, f"{name}_add")
        return PartialAdd(name=f"{name}_add", dtype=self.kit.dtype)(y, x)
