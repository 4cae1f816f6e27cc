"""ResNet of bottlenecks, with Multi-Scale Fusion Modules and deformable convolutions where wanted.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the stride in the 3x3
convolution, as PyTorch's, timm's and KerasHub's weights have it; and "MSFM: Multi-Scale Fusion
Module for Object Detection" (ICLR 2021 submission), whose modules sit after a bottleneck's first,
second or third convolution (`layers.MSFM` has the sources of what the text leaves open).

Deformable convolutions (Dai et al., 2017; "dconv c3-c5" in MSFM's Table 4) take the place of the
3x3 convolutions of whole stages.

    image -> stem (stride 4) -> stage 1 .. stage 4 (strides 4, 8, 16, 32) -> P2..P5

The built-in presets are architectures; `from_preset("resnet_50_imagenet")` takes KerasHub's
weights, `from_preset("hf://timm/resnet50.a1_in1k")` timm's (`convert.resnet`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_densepred.backbones.converted import ConvertedPresets
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.basic_blocks import bottleneck_block
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.deformable_conv import DeformableConvNorm
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.msfm import MSFM
from keras_densepred.layers.pooling import MaxPool

POSITIONS = ("after_conv1", "after_conv2", "after_conv3")


@register_backbone
class ResNetBackbone(ConvertedPresets):
    """ResNet-50 by default.

    Input: normalised RGB images `(batch, height, width, 3)`, float, of any size. Weights of timm
    and torchvision want mean (123.675, 116.28, 103.53) and standard deviation (58.395, 57.12,
    57.375) of images in 0..255.

    Output: `{"P2", "P3", "P4", "P5"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    channels)` of strides 4, 8, 16, 32 and 4, 8, 16, 32 times `width` channels.

    Args:
        depths: number of bottlenecks in each of the four stages.
        width: channels of the stem and of the first stage's 3x3 convolutions; doubles by stage.
        msfm: where Multi-Scale Fusion Modules are: `"after_conv1"`, `"after_conv2"` (both after
            the activation) or `"after_conv3"` (before the shortcut is added), each with a
            dictionary of `"ratios"`, the squeeze ratio in each stage or None for a stage without,
            and other arguments of `layers.MSFM`. Every bottleneck of a stage has modules of its
            own.
        deformable_stages: levels (2 to 5) whose stage has deformable 3x3 convolutions; `(3, 4, 5)`
            in the papers. With a plain ResNet's weights the network starts as that one.
        deformable_modulated: whether these are v2's, whose samples have factors from 0.5 on.
        frozen_stages: None trains all; 0 freezes the stem, n the stem and the first n stages, as
            detectors fine-tune (1 in the MSFM paper).
        fixed_batch_norm: whether batch norms use their moving statistics in training too, as
            detectors fine-tune; their scale and offset train.
        sync_batch_norm: whether replicas share the statistics of a batch in training; where they
            are fixed there are none.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.ResNetBackbone.from_preset("msfm_resnet50")
    >>> tuple(backbone(numpy.zeros((1, 64, 96, 3)))["P3"].shape)
    (1, 8, 12, 512)
    """

    _preset_file = "resnet.json"
    _counterparts = ("ResNetBackbone",)
    _timm = r"resnet(50|101|152)"
    size_divisor = 1

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        msfm: Mapping[str, Mapping[str, Any]] | None = None,
        deformable_stages: Sequence[int] = (),
        deformable_modulated: bool = False,
        frozen_stages: int | None = None,
        fixed_batch_norm: bool = False,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        if len(depths) != 4 or min(depths) < 1 or width < 1:
            raise ValueError(
                "`depths` must be four positive block counts and `width` positive, got "
                f"{depths} and {width}."
            )
        if frozen_stages is not None and not 0 <= frozen_stages <= 4:
            raise ValueError(f"`frozen_stages` must be None or 0 to 4, got {frozen_stages}.")
        if not set(deformable_stages) <= {2, 3, 4, 5}:
            raise ValueError(
                f"`deformable_stages` may have 2, 3, 4 and 5, got {tuple(deformable_stages)}."
            )
        modules = _checked_modules(msfm or {})
        kit = ConvNorm("relu", 0.9, 1e-5, sync_batch_norm, dtype, fixed_statistics=fixed_batch_norm)
        deformable_kit = DeformableConvNorm(**vars(kit), modulated=deformable_modulated)

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        x = kit.unit(x, width, 7, "stem", stride=2)
        x = MaxPool(name="stem_pool", dtype=dtype)(x)
        pyramid_outputs = {}
        for stage, depth in enumerate(depths):
            for block in range(depth):
                name = f"stage{stage + 1}_block{block + 1}"
                x = bottleneck_block(
                    deformable_kit if stage + 2 in deformable_stages else kit,
                    x,
                    width * 2**stage,
                    name,
                    stride=2 if stage > 0 and block == 0 else 1,
                    insert=_inserter(modules, stage, name, dtype),
                )
            pyramid_outputs[f"P{stage + 2}"] = x
        super().__init__(
            inputs=inputs,
            pyramid_outputs=pyramid_outputs,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            # Necks and heads have no pretrained statistics, so theirs are never fixed.
            kit=dataclasses.replace(kit, fixed_statistics=False),
            **kwargs,
        )
        if frozen_stages is not None:
            frozen = ("stem", *(f"stage{n + 1}_" for n in range(frozen_stages)))
            for layer in self.layers:
                if layer.name.startswith(frozen):
                    layer.trainable = False

        # === Config ===
        self.depths = tuple(depths)
        self.width = width
        self.msfm = modules or None
        self.deformable_stages = tuple(sorted(deformable_stages))
        self.deformable_modulated = deformable_modulated
        self.frozen_stages = frozen_stages
        self.fixed_batch_norm = fixed_batch_norm
        self.sync_batch_norm = sync_batch_norm


def _checked_modules(msfm: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`msfm` as plain dictionaries and tuples."""
    modules = {}
    for position, options in msfm.items():
        if position not in POSITIONS:
            raise ValueError(f"`msfm` may name {', '.join(POSITIONS)}, got {position!r}.")
        ratios = options.get("ratios")
        if not isinstance(ratios, Sequence) or len(ratios) != 4:
            raise ValueError(
                f'`msfm` needs "ratios" for {position}, one for each of the four stages and None '
                f"for a stage without modules, got {ratios}."
            )
        modules[position] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.items()
        }
    return modules


def _inserter(modules: dict[str, dict[str, Any]], stage: int, name: str, dtype):
    """What puts a block's modules between its convolutions."""

    def insert(x, position: str):
        options = dict(modules.get(position, {}))
        ratio = options.pop("ratios", (None,) * 4)[stage]
        if ratio is None:
            return x
        return MSFM(ratio, **options, name=f"{name}_{position}_msfm", dtype=dtype)(x)

    return insert
