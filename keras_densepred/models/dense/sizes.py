"""Whole dense detectors by size: a backbone, and how wide and deep its neck and head are."""

import dataclasses
from typing import Any

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone
from keras_densepred.models.dense.model import TaskAlignedDetector
from keras_densepred.necks.pan import CSPPathAggregation


@dataclasses.dataclass(frozen=True)
class DenseSize:
    """One size.

    Attributes:
        preset: of `CSPNetBackbone`.
        width: channels of neck and towers.
        neck_depth: blocks of each fusion.
        head_depth: convolutions of each tower.
    """

    preset: str
    width: int
    neck_depth: int
    head_depth: int


DENSE_SIZES: dict[str, DenseSize] = {
    "pico": DenseSize("csp_dark_pico", 64, 1, 1),
    "nano": DenseSize("csp_dark_nano", 80, 1, 2),
    "tiny": DenseSize("csp_dark_tiny", 96, 1, 2),
    "small": DenseSize("csp_dark_small", 144, 2, 2),
    "medium": DenseSize("csp_dark_medium", 192, 3, 2),
    "large": DenseSize("csp_dark_large", 256, 3, 3),
}
"""Ours, with 1.3, 2.6, 4.7, 10, 19 and 41 million parameters for 80 classes."""


def dense_detector(size: str, num_classes: int, **options: Any) -> TaskAlignedDetector:
    """A `TaskAlignedDetector` of one of our sizes, with random weights.

    Args:
        size: a name of `DENSE_SIZES`.
        num_classes: C.
        **options: of `TaskAlignedDetector`; `image_shape` and `dtype` are the backbone's too.

    Returns:
        The detector, not compiled.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in DENSE_SIZES:
        raise ValueError(f"`size` must be one of {tuple(DENSE_SIZES)}, got {size!r}.")
    chosen = DENSE_SIZES[size]
    shape = options.pop("image_shape", (None, None, 3))
    backbone = CSPNetBackbone.from_preset(
        chosen.preset, image_shape=shape, dtype=options.pop("dtype", None)
    )
    return on_backbone(chosen, backbone, num_classes, **options)


def on_backbone(
    size: DenseSize, backbone: PyramidBackbone, num_classes: int, **options: Any
) -> TaskAlignedDetector:
    """The detector of a size on a backbone that is there, which `dense_detector` makes."""
    neck = CSPPathAggregation(backbone, size.width, size.neck_depth)
    return TaskAlignedDetector(neck, num_classes, **{"head_depth": size.head_depth, **options})
