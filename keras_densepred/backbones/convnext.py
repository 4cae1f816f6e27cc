"""ConvNeXt, the plain network of CEDNet's NeXt blocks, which the CEDNet paper compares with.

Liu et al., "A ConvNet for the 2020s" (CVPR 2022), https://arxiv.org/abs/2201.03545, and the
authors' code (github.com/facebookresearch/ConvNeXt). Detectors put a layer norm behind each stage,
as their `mmdet/models/backbones/convnext.py` does.

    image -> 4x4 patches (stride 4) -> stage 1 -> norm, 2x2/2 -> stage 2 .. stage 4 -> P2..P5

The blocks are those of `CEDNetBackbone`, at its speed; keras.applications' network, which
`HostBackbone` takes, has plain grouped convolutions. The built-in presets are architectures;
`from_preset("applications/convnext_tiny_imagenet")` takes keras.applications' weights,
`from_preset("hf://timm/convnext_tiny.fb_in22k_ft_in1k")` timm's (`convert.convnext`).
"""

import re
from collections.abc import Sequence

from keras_densepred.backbones.converted import ConvertedPresets
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv import PatchConv
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.token_mixers import NeXtMixer

_BLOCKS_OF_A_LAYER = 3  # of stage 3, in the authors' layer-wise rates


@register_backbone
class ConvNeXtBackbone(ConvertedPresets):
    """ConvNeXt-T by default.

    Input: normalised RGB images `(batch, height, width, 3)`, float; height and width multiples of
    32. The published weights want mean (123.675, 116.28, 103.53) and standard deviation (58.395,
    57.12, 57.375) of images in 0..255.

    Output: `{"P2", "P3", "P4", "P5"}`, maps `(batch, height / stride, width / stride, channels)` of
    strides 4, 8, 16, 32.

    Args:
        depths: number of blocks in each of the four stages.
        widths: channels of each stage.
        stage_norms: whether a layer norm follows each stage on the way out, for detectors and
            segmenters; it has no published weights.
        drop_path_rate: drop-path probability of the last block; rates rise linearly from 0.
        layer_scale_init: start of the blocks' layer scale; 0 or None leaves it out.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here, or `image_shape` has a size
            that is not a multiple of 32.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.ConvNeXtBackbone.from_preset("convnext_tiny")
    >>> tuple(backbone(numpy.zeros((1, 64, 96, 3)))["P3"].shape)
    (1, 8, 12, 192)
    """

    _preset_file = "convnext.json"
    _counterparts = ("convnext_",)
    _timm = r"convnext_(tiny|small|base|large|xlarge)"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        stage_norms: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        if len(depths) != 4 or len(widths) != 4 or min(*depths, *widths) < 1:
            raise ValueError(
                f"`depths` and `widths` must be four positive numbers, got {depths} and {widths}."
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` must be in [0, 1), got {drop_path_rate}.")
        mixer = NeXtMixer(layer_scale_init=layer_scale_init, dtype=dtype)
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * block / last for block in range(sum(depths))])

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype, self.size_divisor)
        x = PatchConv(widths[0], 4, 4, name="stem_conv", dtype=dtype)(x)
        x = mixer.norm(x, "stem_norm")
        maps = {}
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            name = f"stage{stage}"
            if stage > 1:
                x = mixer.norm(x, f"{name}_downsample_norm")
                x = PatchConv(width, 2, 2, name=f"{name}_downsample_conv", dtype=dtype)(x)
            for block in range(depth):
                x = mixer.base_block(
                    x, name=f"{name}_block{block + 1}", rate=next(rates), index=block, level=stage
                )
            maps[f"P{stage + 1}"] = mixer.norm(x, f"{name}_norm") if stage_norms else x
        super().__init__(
            inputs=inputs,
            pyramid_outputs=maps,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=mixer,
            **kwargs,
        )

        # === Config ===
        self.depths = tuple(depths)
        self.widths = tuple(widths)
        self.stage_norms = stage_norms
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init = layer_scale_init

    @property
    def num_layers(self) -> int:
        """Depth of the last stage: 6 in T, 12 in the others."""
        return 4 + (self.depths[2] - 1) // _BLOCKS_OF_A_LAYER

    def layer_depth(self, path: str) -> int | None:
        """The ids of the authors' detection code (`layer_wise`).

        Args:
            path: `variable.path`, such as `"stage1_block1_dwconv/kernel"`.

        Returns:
            0 for the stem, 1 and 2 for the first two stages, 3 and up for three blocks each of the
            third, `num_layers` for the last; a down-sampling layer is of the stage it leads to.
            None for the norms behind stages and for what is not the backbone's.
        """
        for name in path.split("/"):
            if name.startswith("stem_"):
                return 0
            match = re.match(r"stage(\d)_(?:downsample|block(\d+))_", name)
            if match is None:
                continue
            stage, block = int(match[1]), int(match[2] or 1)
            if stage == 3:
                return 3 + (block - 1) // _BLOCKS_OF_A_LAYER
            return self.num_layers if stage == 4 else stage
        return None
