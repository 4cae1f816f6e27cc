"""UperNet on CEDNet in plain `torch.nn`: what our UperNet is benchmarked against.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (ECCV 2018), section 3.1, as
MMSegmentation has it, without the auxiliary head, which is no part of the network in use. Shapes
are NCHW; maps keep the memory format of the images, see `tools.baselines.cednet_torch`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.baselines.cednet_torch import CEDNet, Variant

POOL_SIZES = (1, 2, 3, 6)


def conv_norm(channels: int, filters: int, size: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, between pixel centres."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class CEDNetUperNet(CEDNet):
    """Images (B, 3, H, W) -> logits (B, num_classes, H, W)."""

    def __init__(
        self, variant: str | Variant = "tiny", num_classes: int = 150, width: int = 512
    ) -> None:
        super().__init__(variant)
        *fine, coarsest = (self.variant.p2_width, *self.variant.widths)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), conv_norm(coarsest, width, 1))
            for size in POOL_SIZES
        )
        self.bottleneck = conv_norm(coarsest + len(POOL_SIZES) * width, width, 3)
        self.laterals = nn.ModuleList(conv_norm(channels, width, 1) for channels in fine)
        self.outputs = nn.ModuleList(conv_norm(width, width, 3) for _ in fine)
        self.merge = conv_norm((len(fine) + 1) * width, width, 3)
        self.logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        *fine, c5 = super().forward(images)
        pooled = [resized(pool(c5), c5) for pool in self.pools]
        levels = [self.bottleneck(torch.cat([c5, *pooled], 1))]
        for lateral, x in zip(reversed(self.laterals), reversed(fine), strict=True):
            x = lateral(x)
            levels.append(x + resized(levels[-1], x))
        coarsest, *tops = levels
        tops = [conv(x) for conv, x in zip(self.outputs, reversed(tops), strict=True)]
        finest = tops[0]
        merged = [finest, *(resized(x, finest) for x in (*tops[1:], coarsest))]
        return resized(self.logits(self.merge(torch.cat(merged, 1))), images)
