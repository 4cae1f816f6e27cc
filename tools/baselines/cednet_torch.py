"""CEDNet in plain `torch.nn`: what our Keras CEDNet is benchmarked against.

Zhang et al., "CEDNet: A Cascade Encoder-Decoder Network for Dense Prediction" (2023),
https://arxiv.org/abs/2302.06052; section numbers are the paper's. NeXt token mixer, FPN-style
decoder, no final decoder: the released tiny, small and base. Only the names of the parameters are
the authors' (github.com/zhanggang001/CEDNet), so that `state_dict()` reads and writes their files.

    image -> stem -> p2 blocks (stride 4) -> [encoder C3 C4 C5 -> decoder C4 C3] x stages -> C2..C5

Shapes are NCHW. Feature maps keep the memory format of the images, contiguous or
`torch.channels_last`; in the latter no permute below copies. Convert the model likewise
(`model.to(memory_format=torch.channels_last)`), or each call converts the convolutions' weights.
`torch.compile(model, fullgraph=True)` works.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_WIDTH = 32
HEAD_WIDTH = 2048
PYRAMID_WIDTH = 256
LR_DILATION = 3


class Variant(NamedTuple):
    """Sizes of a model, as the authors' code has them."""

    p2_width: int
    p2_depth: int
    widths: tuple[int, int, int]  # channels of C3, C4, C5
    depths: tuple[int, int, int]  # blocks at C3, C4, C5, in every stage
    num_stages: int


VARIANTS = {
    "tiny": Variant(96, 3, (192, 352, 512), (2, 4, 2), 3),
    "small": Variant(96, 3, (192, 352, 512), (2, 7, 2), 4),
    "base": Variant(128, 3, (256, 448, 704), (2, 7, 2), 4),
}


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel: (B, C, H, W) -> same shape and memory format."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = F.layer_norm(y, self.normalized_shape, self.weight, self.bias, self.eps)
        y = y.permute(0, 3, 1, 2)
        # `y` lies in memory as channels_last. Left so, a contiguous network would silently turn
        # into a channels_last one at its first norm, and timing the two would time one.
        return y.contiguous() if x.is_contiguous() else y


class DropPath(nn.Module):
    """Drops the whole residual of a sample: (B, ...) -> (B, ...)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4f}"


class ResidualMLP(nn.Module):
    """What the blocks share: layer scale, two linear layers, drop path."""

    def __init__(self, width: int, rate: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W)."""
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return self.drop_path(x.permute(0, 3, 1, 2))


class Block(ResidualMLP):
    """CED block, that of ConvNeXt (section 3.2): (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int, rate: float):
        super().__init__(width, rate)
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # The norm stays between the same two permutes as the linear layers. `x` comes first in
        # the sum because the first operand decides the memory format of the result.
        return x + self.residual(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))


class LRBlock(ResidualMLP):
    """Long-range CED block of stride 32 (section 3.2): (B, C, H, W) -> (B, C, H, W).

    Norm and activation follow each depthwise convolution; there is none before the linear layers.
    """

    def __init__(self, width: int, rate: float):
        super().__init__(width, rate)
        self.dwconv1 = self._depthwise(width, dilation=1)
        self.dwconv2 = self._depthwise(width, dilation=LR_DILATION)

    @staticmethod
    def _depthwise(width: int, dilation: int) -> nn.Sequential:
        conv = nn.Conv2d(width, width, 7, padding=3 * dilation, dilation=dilation, groups=width)
        return nn.Sequential(conv, LayerNorm2d(width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.dwconv1(x)
        y = y + self.dwconv2(y)
        return x + self.residual(y.permute(0, 2, 3, 1))


def conv_norm(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and norm; 3x3 keeps or halves sizes, 2x2 of stride 2 halves them."""
    conv = nn.Conv2d(channels, filters, size, stride, padding=(size - 1) // 2)
    return nn.Sequential(conv, LayerNorm2d(filters))


class Encoder(nn.Module):
    """C3 of the stage before, (B, d3, H/8, W/8) -> C3, C4, C5 (section 3.1)."""

    def __init__(self, variant: Variant, rates: list[float]):
        super().__init__()
        (d3, d4, d5), (n3, n4, _) = variant.widths, variant.depths
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(*(Block(d3, rate) for rate in rates[:n3])),
                nn.Sequential(*(Block(d4, rate) for rate in rates[n3 : n3 + n4])),
                nn.Sequential(*(LRBlock(d5, rate) for rate in rates[n3 + n4 :])),
            ]
        )
        self.encoder_downsample = nn.ModuleList([conv_norm(d3, d4, 2, 2), conv_norm(d4, d5, 2, 2)])

    def forward(self, c3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.encoder[0](c3)
        c4 = self.encoder[1](self.encoder_downsample[0](c3))
        c5 = self.encoder[2](self.encoder_downsample[1](c4))
        return c3, c4, c5


class Decoder(nn.Module):
    """FPN-style top-down path (section 3.3, figure 4): C3, C4, C5 -> C3, C4, C5."""

    def __init__(self, variant: Variant):
        super().__init__()
        d3, d4, d5 = variant.widths
        # The convolution comes first: it costs a quarter of what it would after up-sampling.
        self.decoder_upsample = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, fine, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
            for coarse, fine in ((d5, d4), (d4, d3))
        )
        self.decoder_norm = nn.ModuleList([LayerNorm2d(d4), LayerNorm2d(d3)])

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c4 = self.decoder_norm[0](c4 + self.decoder_upsample[0](c5))
        c3 = self.decoder_norm[1](c3 + self.decoder_upsample[1](c4))
        return c3, c4, c5


class CEDNet(nn.Module):
    """The body: images (B, 3, H, W), H and W multiples of 32 -> C2..C5 of strides 4, 8, 16, 32.

    C2 is the map before the cascade; C3..C5 leave the last stage's encoder. `drop_path_rate` is
    that of the last block; rates rise linearly from 0 in order of execution.
    """

    def __init__(self, variant: str | Variant = "tiny", drop_path_rate: float = 0.0):
        super().__init__()
        v = self.variant = VARIANTS[variant] if isinstance(variant, str) else variant
        per_stage = sum(v.depths)
        total = v.p2_depth + v.num_stages * per_stage
        rates = [drop_path_rate * index / max(total - 1, 1) for index in range(total)]
        self.stem = nn.Sequential(
            *(*conv_norm(3, STEM_WIDTH, 3, 2), nn.GELU()),
            *(*conv_norm(STEM_WIDTH, v.p2_width, 3, 2), nn.GELU()),
        )
        p2 = [Block(v.p2_width, rate) for rate in rates[: v.p2_depth]]
        self.stages = nn.ModuleList(
            [nn.ModuleList([*p2, conv_norm(v.p2_width, v.widths[0], 2, 2)])]
        )
        for stage in range(v.num_stages):
            start = v.p2_depth + stage * per_stage
            parts: list[nn.Module] = [Encoder(v, rates[start : start + per_stage])]
            if stage < v.num_stages - 1:  # the released models end with an encoder
                parts.append(Decoder(v))
            self.stages.append(nn.ModuleList(parts))
        self.apply(init_weights)

    def forward_stages(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """C2, and (C3, C4, C5) as each stage hands them on, first stage first."""
        p2_stage, *cascade = cast("Iterable[nn.ModuleList]", self.stages)
        *p2_blocks, p2_downsample = p2_stage
        c2 = self.stem(images)
        for block in p2_blocks:
            c2 = block(c2)
        c3 = p2_downsample(c2)
        outputs = []
        for encoder, *decoder in cascade:
            maps = encoder(c3)
            if decoder:
                maps = decoder[0](*maps)
            outputs.append(maps)
            # All scales are fused into C3, the only map that goes on (section 3.1).
            c3 = maps[0]
        return c2, outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        c2, stages = self.forward_stages(images)
        return (c2, *stages[-1])


class CEDNetClassifier(CEDNet):
    """Images (B, 3, H, W) -> logits (B, classes) of the last stage's head.

    In training, the list of the logits of all stages' heads: deep supervision, of which the paper
    says nothing. The authors minimise the mean of their losses.
    """

    def __init__(
        self,
        variant: str | Variant = "tiny",
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(variant, drop_path_rate)
        stages = range(self.variant.num_stages)
        c5_width = self.variant.widths[2]
        self.final_layers = nn.ModuleList(
            nn.Sequential(*conv_norm(c5_width, HEAD_WIDTH, 1), nn.GELU()) for _ in stages
        )
        self.norms = nn.ModuleList(nn.LayerNorm(HEAD_WIDTH, eps=1e-6) for _ in stages)
        self.heads = nn.ModuleList(nn.Linear(HEAD_WIDTH, num_classes) for _ in stages)
        self.final_layers.apply(init_weights)
        self.heads.apply(init_weights)

    def head(self, stage: int, c5: Tensor) -> Tensor:
        """(B, d5, H/32, W/32) -> (B, classes)."""
        x = self.final_layers[stage](c5).mean((2, 3))
        return self.heads[stage](self.norms[stage](x))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:  # type: ignore[override]
        _, stages = self.forward_stages(images)
        if self.training:
            return [self.head(stage, c5) for stage, (_, _, c5) in enumerate(stages)]
        return self.head(len(stages) - 1, stages[-1][2])


class CEDNetPyramid(CEDNet):
    """RetinaNet's backbone: images (B, 3, H, W) -> P3..P7 of strides 8..128, each (B, 256, h, w).

    There is no FPN: each map is only projected. H and W are best multiples of 128, so that P7 has
    no rounding.
    """

    def __init__(self, variant: str | Variant = "tiny", drop_path_rate: float = 0.0):
        super().__init__(variant, drop_path_rate)
        self.reduce_convs = nn.ModuleList(
            conv_norm(width, PYRAMID_WIDTH, 1) for width in self.variant.widths
        )
        self.add_blocks = nn.ModuleList(
            conv_norm(PYRAMID_WIDTH, PYRAMID_WIDTH, 3, 2) for _ in ("P6", "P7")
        )
        self.reduce_convs.apply(init_weights)
        self.add_blocks.apply(init_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, stages = self.forward_stages(images)
        levels = [reduce(x) for reduce, x in zip(self.reduce_convs, stages[-1], strict=True)]
        for add_level in self.add_blocks:
            levels.append(add_level(levels[-1]))
        return tuple(levels)


def init_weights(module: nn.Module) -> None:
    """The authors' start, for `apply`: normal of deviation 1 / sqrt(fan out), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
