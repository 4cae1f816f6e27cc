"""CEDNet: a cascade encoder-decoder network for dense prediction.

Zhang et al., "CEDNet: A Cascade Encoder-Decoder Network for Dense Prediction" (2023),
https://arxiv.org/abs/2302.06052. Section numbers are the paper's; where it is silent, layers
follow the authors' code (github.com/zhanggang001/CEDNet), as `convert.cednet` lets one check.

    image -> stem -> p2 blocks (stride 4) -> [encoder C3 C4 C5 -> decoder C4 C3] x stages -> P2..P5

Multi-scale features are fused from the first stage on, so a detector needs no separate FPN. No
pretrained weights were ever published; the built-in presets are architectures.
"""

import re
from collections.abc import Sequence

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.token_mixers import TOKEN_MIXERS, TokenMixer
from keras_densepred.layers.upsampling import BilinearUpsample

STYLES = ("fpn", "full_fpn", "unet", "hourglass")

# What the authors' `layer_wise_cednet_small` takes for the first half of a stage.
_FIRST_HALF = re.compile(r"encoder_(c3_|downsample1_|c4_block[1-4](_|$))")
_BLOCKS_OF_FIRST_HALF = 4


@register_backbone
class CEDNetBackbone(PyramidBackbone):
    """CEDNet backbone (Zhang et al., 2023).

    Input: normalised RGB images `(batch, height, width, 3)`, float; height and width multiples of
    32 (of 224 with `swin_classification_compat`). The authors' normalisation of images in 0..255
    is mean (123.675, 116.28, 103.53), standard deviation (58.395, 57.12, 57.375).

    Output: `{"P2", "P3", "P4", "P5"}`, maps `(batch, height / stride, width / stride, channels)` of
    strides 4, 8, 16, 32. P2 is the map before the cascade; P3..P5 leave the last stage.

    Args:
        p2_width: channels of the stem's output and of the blocks at stride 4.
        p2_depth: number of blocks at stride 4 (n0 in the paper).
        widths: channels of C3, C4, C5.
        depths: number of blocks at C3, C4, C5 in every stage, or one such triple for each stage
            (the early-fusion ablation, Table 4).
        num_stages: number of cascade stages m.
        style: how a stage decodes (section 3.3, figure 4). `"fpn"`: blocks only in the encoder,
            additive top-down path. `"full_fpn"`: with 3x3 convolutions after fusion, and all three
            maps handed to the next encoder (the authors' `_fpn` variant, not in the paper).
            `"unet"`, `"hourglass"`: blocks shared out between encoder and decoder; hourglass adds
            a block on each lateral connection.
        token_mixer: `"next"` (ConvNeXt), `"resnet"`, `"swin"` or `"cswin"`.
        final_decoder: whether the last stage has a decoder. The authors' FPN-style models have
            none; the paper's figures for UNet and Hourglass style need one.
        lr_blocks: whether the blocks at stride 32 are long-range blocks (section 3.2).
        lr_dilation: dilation of the long-range blocks' 7x7 depthwise convolution.
        drop_path_rate: drop-path probability of the last block; rates rise linearly from 0.
        layer_scale_init: start of the NeXt blocks' layer scale; 0 or None leaves it out.
        stem_width: channels of the first of the stem's two convolutions.
        swin_classification_compat: reproduce a fault of the authors' ImageNet code in Swin's
            shifted windows, which their ImageNet weights have learned (`ShiftedWindowAttention`).
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if an argument is outside of what is listed here, or `image_shape` has a size
            that is not a multiple of 32.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_pico")
    >>> tuple(backbone(numpy.zeros((1, 64, 96, 3)))["P3"].shape[1:3])
    (8, 12)

    The maps each stage hands on are in `stage_outputs`, a list of `{"P3", "P4", "P5"}` of symbolic
    tensors, first stage first: deep supervision and auxiliary heads attach there.
    """

    _preset_file = "cednet.json"

    def __init__(
        self,
        p2_width: int = 96,
        p2_depth: int = 3,
        widths: Sequence[int] = (192, 352, 512),
        depths: Sequence[int] | Sequence[Sequence[int]] = (2, 4, 2),
        num_stages: int = 3,
        style: str = "fpn",
        token_mixer: str = "next",
        final_decoder: bool = False,
        lr_blocks: bool = True,
        lr_dilation: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        stem_width: int = 32,
        swin_classification_compat: bool = False,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        if style not in STYLES:
            raise ValueError(f"`style` must be one of {STYLES}, got {style!r}.")
        if token_mixer not in TOKEN_MIXERS:
            raise ValueError(
                f"`token_mixer` must be one of {tuple(TOKEN_MIXERS)}, got {token_mixer!r}."
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` must be in [0, 1), got {drop_path_rate}.")
        if swin_classification_compat and token_mixer != "swin":
            raise ValueError('`swin_classification_compat` needs `token_mixer="swin"`.')
        stage_depths = _depths_per_stage(depths, num_stages)
        mixer = TOKEN_MIXERS[token_mixer](
            layer_scale_init=layer_scale_init,
            lr_dilation=lr_dilation,
            swin_classification_compat=swin_classification_compat,
            sync_batch_norm=sync_batch_norm,
            dtype=dtype,
        )
        for width in (p2_width, *widths):
            mixer.check_width(width)
        size_divisor = 224 if swin_classification_compat else 32

        # === Functional model ===
        builder = StageBuilder(mixer, tuple(widths), style, lr_blocks)
        rates = _drop_path_rates(drop_path_rate, p2_depth, stage_depths)
        inputs, x = image_input(image_shape, data_format, dtype, size_divisor)
        x = _stem(x, mixer, stem_width, p2_width)
        p2 = builder.blocks(x, "p2", rates.pop(0), level=2)
        maps = (builder.downsample(p2, widths[0], "p2_downsample"), None, None)
        stages = []
        for stage in range(num_stages):
            name = f"stage{stage + 1}"
            decode = stage < num_stages - 1 or final_decoder
            maps = builder.stage(maps, stage_depths[stage], rates[stage], name, decode)
            stages.append(maps)
        super().__init__(
            inputs=inputs,
            pyramid_outputs={"P2": p2, **dict(zip(("P3", "P4", "P5"), maps, strict=True))},
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=mixer,
            size_divisor=size_divisor,
            **kwargs,
        )

        # === Config ===
        self.p2_width = p2_width
        self.p2_depth = p2_depth
        self.widths = tuple(widths)
        self.depths = tuple(tuple(d) if isinstance(d, Sequence) else d for d in depths)
        self.num_stages = num_stages
        self.style = style
        self.token_mixer = token_mixer
        self.final_decoder = final_decoder
        self.lr_blocks = lr_blocks
        self.lr_dilation = lr_dilation
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init = layer_scale_init
        self.stem_width = stem_width
        self.swin_classification_compat = swin_classification_compat
        self.sync_batch_norm = sync_batch_norm
        # Channels-last whatever the data format: internal taps, not the public pyramid.
        self._stage_outputs = [dict(zip(("P3", "P4", "P5"), s, strict=True)) for s in stages]

    @property
    def stage_outputs(self) -> list[dict]:
        """Per stage the symbolic channels-last maps `{"P3", "P4", "P5"}` it hands on."""
        return self._stage_outputs

    @property
    def mixer(self) -> TokenMixer:
        """The token mixer, which is also the `kit`."""
        return self.kit

    @property
    def _halves(self) -> int:
        """Into how many parts layer-wise rates divide a stage: 2 where C4 has many blocks."""
        depths = _depths_per_stage(self.depths, self.num_stages)
        return 2 if max(c4 for _, c4, _ in depths) > _BLOCKS_OF_FIRST_HALF else 1

    @property
    def num_layers(self) -> int:
        """Depth of the last stage: 4 in T, R50 and Swin, 9 in S and B, 7 in CSwin."""
        return 1 + self._halves * self.num_stages

    def layer_depth(self, path: str) -> int | None:
        """The ids of the authors' detection code.

        Args:
            path: `variable.path`, such as `"stage1_encoder_c3_block1_dwconv/kernel"`.

        Returns:
            0 for the stem, 1 for the P2 blocks, i + 1 for stage i (`layer_wise_cednet`). If a stage
            has more than four blocks at C4 (S, B and CSwin), 2i for its C3 blocks, first
            down-sampling and first four C4 blocks, and 2i + 1 for the rest of it
            (`layer_wise_cednet_small`). None for what is not the backbone's.
        """
        for name in path.split("/"):
            if name.startswith("stem_"):
                return 0
            if name.startswith("p2_"):
                return 1
            stage = re.match(r"stage(\d+)_(.*)", name)
            if stage:
                first = self._halves == 1 or _FIRST_HALF.match(stage[2])
                return 1 + self._halves * int(stage[1]) - (0 if first is None else self._halves - 1)
        return None

    @classmethod
    def complete_config(cls, config):
        complete = super().complete_config(config)
        complete["depths"] = _depths_per_stage(complete["depths"], complete["num_stages"])
        return complete


def _depths_per_stage(depths, num_stages: int) -> list[tuple[int, int, int]]:
    if all(isinstance(depth, int) for depth in depths):
        depths = [depths] * num_stages
    if len(depths) != num_stages or any(len(triple) != 3 for triple in depths):
        raise ValueError(
            "`depths` must be three block counts (C3, C4, C5), or one such triple for each of the "
            f"{num_stages} stages, got {depths}."
        )
    return [tuple(triple) for triple in depths]


def _drop_path_rates(last: float, p2_depth: int, depths) -> list[list[float]]:
    """Rates in order of execution, rising from 0 to `last`: the p2 blocks', then each stage's."""
    total = p2_depth + sum(sum(triple) for triple in depths)
    rates = [last * index / max(total - 1, 1) for index in range(total)]
    groups = []
    for size in (p2_depth, *(sum(triple) for triple in depths)):
        groups.append(rates[:size])
        rates = rates[size:]
    return groups


def _stem(x, mixer: TokenMixer, stem_width: int, p2_width: int):
    """Two 3x3 convolutions of stride 2, each with norm and activation: stride 4."""
    for part, channels in ((1, stem_width), (2, p2_width)):
        x = mixer.conv(x, channels, 3, f"stem_conv{part}", stride=2)
        x = mixer.act(mixer.norm(x, f"stem_norm{part}"), f"stem_act{part}")
    return x


class StageBuilder:
    """Builds one stage of the cascade: an encoder down to C5 and a decoder back up to C3."""

    def __init__(self, mixer: TokenMixer, widths: tuple[int, ...], style: str, lr: bool):
        self.mixer = mixer
        self.widths = widths
        self.style = style
        self.lr = lr

    def stage(self, maps, depths, rates: list[float], name: str, decode: bool):
        """Maps (C3, C4, C5) of the previous stage -> those of this one."""
        n3, n4, n5 = depths
        encoder_depths = depths
        if self.style in ("unet", "hourglass"):
            # Section 3.3: the decoder gets the other half of the C3 and C4 blocks.
            encoder_depths = (n3 // 2, n4 // 2, n5)
        encoder_rates = rates[: sum(encoder_depths)]
        maps = self.encoder(maps, encoder_depths, encoder_rates, f"{name}_encoder")
        if decode:
            decoder_depths = (n4 - n4 // 2, n3 - n3 // 2)
            decoder_rates = rates[sum(encoder_depths) :]
            maps = self.decoder(maps, decoder_depths, decoder_rates, f"{name}_decoder")
        return maps

    def encoder(self, maps, depths, rates: list[float], name: str):
        c3, previous_c4, previous_c5 = maps
        if self.style != "full_fpn":
            # All scales are already fused into C3, the only map that goes on (section 3.1).
            previous_c4 = previous_c5 = None
        n3, n4, _ = depths
        c3 = self.blocks(c3, f"{name}_c3", rates[:n3], level=3)
        c4 = self.downsample(c3, self.widths[1], f"{name}_downsample1")
        if previous_c4 is not None:
            c4 = self.mixer.add(previous_c4, c4, f"{name}_add1")
        c4 = self.blocks(c4, f"{name}_c4", rates[n3 : n3 + n4], level=4)
        c5 = self.downsample(c4, self.widths[2], f"{name}_downsample2")
        if previous_c5 is not None:
            c5 = self.mixer.add(previous_c5, c5, f"{name}_add2")
        c5 = self.blocks(c5, f"{name}_c5", rates[n3 + n4 :], level=5)
        return c3, c4, c5

    def decoder(self, maps, depths, rates: list[float], name: str):
        c3, c4, c5 = maps
        if self.style == "hourglass":
            c4 = self.lateral(c4, f"{name}_lateral1", level=4)
            c3 = self.lateral(c3, f"{name}_lateral2", level=3)
        c4 = self.fuse(c4, c5, 1, name)
        if self.style in ("unet", "hourglass"):
            c4 = self.blocks(c4, f"{name}_c4", rates[: depths[0]], level=4)
        c3 = self.fuse(c3, c4, 2, name)
        if self.style in ("unet", "hourglass"):
            # From the first decoder rate again, not the next: so the authors trained.
            c3 = self.blocks(c3, f"{name}_c3", rates[: depths[1]], level=3)
        if self.style == "full_fpn":
            c3, c4, c5 = (
                self.smooth(x, f"{name}_output{level}")
                for level, x in zip((3, 4, 5), (c3, c4, c5), strict=True)
            )
        return c3, c4, c5

    def blocks(self, x, name: str, rates: list[float], level: int):
        """One block a rate; long-range blocks at level 5."""
        block = self.mixer.lr_block if level == 5 and self.lr else self.mixer.base_block
        for index, rate in enumerate(rates):
            x = block(x, name=f"{name}_block{index + 1}", rate=rate, index=index, level=level)
        return x

    def downsample(self, x, channels: int, name: str):
        """2x2 convolution of stride 2, then norm; no activation."""
        x = self.mixer.conv(x, channels, 2, f"{name}_conv", stride=2)
        return self.mixer.norm(x, f"{name}_norm")

    def fuse(self, fine, coarse, part: int, name: str):
        """norm(fine + up(conv(coarse))): 1x1 convolution first, then bilinear x2."""
        x = self.mixer.conv(coarse, fine.shape[-1], 1, f"{name}_upsample{part}_conv")
        x = BilinearUpsample(name=f"{name}_upsample{part}", dtype=self.mixer.dtype)(x)
        return self.mixer.norm(self.mixer.add(fine, x, f"{name}_add{part}"), f"{name}_norm{part}")

    def lateral(self, x, name: str, level: int):
        return self.mixer.base_block(x, name=name, rate=0.0, index=0, level=level)

    def smooth(self, x, name: str):
        """3x3 convolution, then norm."""
        x = self.mixer.conv(x, x.shape[-1], 3, f"{name}_conv")
        return self.mixer.norm(x, f"{name}_norm")
