"""DenseNet-201 with elastic layers, plain and in cross-stage-partial form.

Wang et al., "ELASTIC: Improving CNNs with Dynamic Scaling Policies" (2019),
https://arxiv.org/abs/1812.05262, whose parameters the plain form has to the last digit; and Wang
et al., "CSPNet" (2019), table 2, whose form of it is known by its counts alone: the layers here
are of our choice and nearly meet them (20.20M and about 7.16 BFLOPs, the paper's 20.17M and 7.13).
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.cross_stage import CrossStage
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.pooling import MaxPool
from keras_densepred.layers.stateless import Concat
from keras_densepred.layers.upsampling import BilinearUpsample


@register_backbone
class ElasticDenseNetBackbone(PyramidBackbone):
    """DenseNet of elastic layers (Wang et al., 2019), plain or in cross-stage-partial form.

    A layer is the sum of two bottlenecks, one at the map's resolution and one at half of it, but
    in the last stage one of twice the width. Norm and ReLU come before each convolution.

    Input: normalised RGB images `(batch, height, width, 3)`, float; height and width multiples of
    32.

    Output: `{"P2", ..., "P5"}`, maps `(batch, height / stride, width / stride, channels)` of
    strides 4 to 32: the concats that end the stages, the last with norm and ReLU.

    Args:
        depths: number of layers of each of the four stages.
        growth: channels a layer adds.
        bottleneck: channels of the bottlenecks at either resolution.
        partial: whether each stage is in cross-stage-partial form: half of the channels, as they
            are, bypass the layers.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here, or `image_shape` has a size
            that is not a multiple of 32.
    """

    _preset_file = "elastic_densenet.json"

    def __init__(
        self,
        depths: Sequence[int] = (10, 20, 40, 30),
        growth: int = 32,
        bottleneck: int = 64,
        partial: bool = False,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"`depths` must be four positive numbers, got {tuple(depths)}.")
        kit = _PreActivation("relu", epsilon=1e-5, sync_batch_norm=sync_batch_norm, dtype=dtype)
        builder = _Builder(kit, growth, bottleneck)

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype, self.size_divisor)
        x = kit.act(kit.norm(kit.conv(x, 64, 7, "stem_conv", 2, False), "stem_norm"), "stem_act")
        x = MaxPool(name="stem_pool", dtype=dtype)(x)
        maps = {}
        for number, depth in enumerate(depths, 1):
            build = builder.partial_stage if partial else builder.stage
            maps[f"P{number + 1}"], x = build(x, depth, number)
        maps["P5"] = kit.act(kit.norm(x, "end_norm"), "end_act")
        super().__init__(
            inputs=inputs,
            pyramid_outputs=maps,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.depths = tuple(depths)
        self.growth = growth
        self.bottleneck = bottleneck
        self.partial = partial
        self.sync_batch_norm = sync_batch_norm


@dataclasses.dataclass(frozen=True)
class _PreActivation(ConvNorm):
    """`ConvNorm` whose units have norm and activation before the convolution."""

    def unit(
        self,
        x,
        channels: int,
        kernel: int,
        name: str,
        stride: int = 1,
        act: bool = True,
        groups: int = 1,
    ):
        x = self.norm(x, f"{name}_norm")
        x = self.act(x, f"{name}_act") if act else x
        return self.conv(x, channels, kernel, f"{name}_conv", stride, False, groups)


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds elastic layers and stages."""

    kit: _PreActivation
    growth: int
    bottleneck: int

    def stage(self, x, depth: int, number: int):
        """A stage's concat, and what the next stage starts from."""
        name = f"stage{number}"
        x = concat = self.layers(x, depth, number)
        if number < 4:
            x = self.kit.unit(x, x.shape[-1] // 2, 1, f"{name}_transition")
            x = self.average(x, f"{name}_pool")
        return concat, x

    def partial_stage(self, x, depth: int, number: int):
        """The same in cross-stage-partial form, which keeps the channels of the last concat."""
        last = number == 4
        branch = x.shape[-1] - x.shape[-1] // 2
        channels = x.shape[-1] + depth * self.growth
        cross_stage = CrossStage(
            self.kit,
            part_widths=(x.shape[-1] - branch, branch),
            split="slice_and_conv",
            fusion="first",
            width=channels if last else channels // 2,
            bypass_first=True,
            pool=None if last else "transition",
        )
        name = f"stage{number}"
        concat = cross_stage.partial(x, lambda part: self.layers(part, depth, number), name)
        return concat, cross_stage.transition(concat, name)

    def layers(self, x, depth: int, number: int):
        for index in range(1, depth + 1):
            name = f"stage{number}_layer{index}"
            new = self.layer(x, number < 4, name)
            x = Concat(name=f"{name}_concat", dtype=self.kit.dtype)([x, new])
        return x

    def layer(self, x, elastic: bool, name: str):
        x = self.kit.act(self.kit.norm(x, f"{name}_norm"), f"{name}_act")
        if not elastic:
            return self.branch(x, 2 * self.bottleneck, f"{name}_full")
        half = self.branch(self.average(x, f"{name}_pool"), self.bottleneck, f"{name}_half")
        half = BilinearUpsample(name=f"{name}_upsample", dtype=self.kit.dtype)(half)
        return self.kit.add(self.branch(x, self.bottleneck, f"{name}_full"), half, f"{name}_add")

    def branch(self, x, bottleneck: int, name: str):
        x = self.kit.conv(x, bottleneck, 1, f"{name}_reduce_conv", use_bias=False)
        return self.kit.unit(x, self.growth, 3, f"{name}_spatial")

    def average(self, x, name: str):
        return keras.layers.AveragePooling2D(
            2, data_format="channels_last", name=name, dtype=self.kit.dtype
        )(x)
