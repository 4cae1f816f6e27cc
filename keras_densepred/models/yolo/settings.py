"""What YOLOv3 is trained by: anchors and loss settings of the published Darknet cfgs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

Anchor = tuple[float, float]

YOLO_ANCHORS: dict[str, tuple[Anchor, ...]] = {
    "yolov3": (
        *((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119)),
        *((116, 90), (156, 198), (373, 326)),
    ),
    "yolov3_512": (
        *((12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146)),
        *((142, 110), (192, 243), (459, 401)),
    ),
    "yolov3_tiny_3l": (
        *((4, 7), (7, 15), (13, 25), (25, 42), (41, 67), (75, 94)),
        *((91, 162), (158, 205), (250, 332)),
    ),
    "yolov3_tiny": ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)),
}
"""Widths and heights in pixels of the network's input, on COCO: of yolov3.cfg (416 px), of the cfgs
for 512 px, of yolov3-tiny_3l.cfg and yolov3-tiny.cfg. For other data: `tools/yolo_anchors.py`."""


@dataclasses.dataclass(frozen=True)
class YOLOLoss:
    """Settings of a `[yolo]` section of Darknet.

    Attributes:
        box_loss: `"mse"`: squared error of offsets and log sizes; `"giou"`, `"ciou"`.
        box_normalizer: weight of the box loss (`iou_normalizer`).
        class_normalizer: weight of the class loss (`cls_normalizer`).
        objectness_normalizer: weight of the objectness loss (`obj_normalizer`).
        ignore_threshold: a slot that is nobody's has no loss where its box overlaps an object by
            more than this (`ignore_thresh`).
        anchor_threshold: beside the best anchor, all that overlap an object in shape by more than
            this learn it (`iou_thresh`); 1 for the best alone.
        scale_xy: level to the factor by which centres reach beyond their cell (`scale_x_y`), 1
            for a level that is not named.

    Raises:
        ValueError: if a value is out of its range.
    """

    box_loss: Literal["mse", "giou", "ciou"] = "mse"
    box_normalizer: float = 1.0
    class_normalizer: float = 1.0
    objectness_normalizer: float = 1.0
    ignore_threshold: float = 0.7
    anchor_threshold: float = 1.0
    scale_xy: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.box_loss not in ("mse", "giou", "ciou"):
            raise ValueError(f'`box_loss` is {self.box_loss!r}; give "mse", "giou" or "ciou".')
        for name in ("box_normalizer", "class_normalizer", "objectness_normalizer"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give 0 or more.")
        for name in ("ignore_threshold", "anchor_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number from 0 to 1.")
        if any(scale < 1 for scale in self.scale_xy.values()):
            raise ValueError(f"`scale_xy` is {dict(self.scale_xy)}; give factors of 1 or more.")


_REACH = {"P3": 1.2, "P4": 1.1, "P5": 1.05}

YOLO_LOSSES: dict[str, YOLOLoss] = {
    "mse": YOLOLoss(),
    "giou": YOLOLoss("giou", box_normalizer=0.5, scale_xy=_REACH),
    "ciou": YOLOLoss("ciou", box_normalizer=0.07, anchor_threshold=0.213, scale_xy=_REACH),
}
"""Of csresnext50-panet-spp.cfg (the paper), -giou.cfg and -original-optimal.cfg."""


def level_anchors(
    levels: Sequence[str],
    anchors: Sequence[Anchor],
    masks: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Which anchors each level predicts.

    Args:
        levels: the levels with predictions, finest first.
        anchors: all anchors, smallest first.
        masks: level to indices of its anchors (Darknet's `mask`); an anchor may have several
            levels, or none. By default yolov3-tiny's 1, 2, 3 and 3, 4, 5 for two levels and six
            anchors, else equal shares, the smallest for the finest level.

    Returns:
        Level to indices into `anchors`.

    Raises:
        ValueError: if the masks do not fit the levels or the anchors.
    """
    if any(min(anchor) <= 0 for anchor in anchors):
        raise ValueError(f"`anchors` are {anchors}; give widths and heights above 0.")
    if masks is None:
        if len(levels) == 2 and len(anchors) == 6:
            masks = dict(zip(levels, ((1, 2, 3), (3, 4, 5)), strict=True))
        elif anchors and len(anchors) % len(levels) == 0:
            share = len(anchors) // len(levels)
            masks = {
                level: tuple(range(i * share, (i + 1) * share)) for i, level in enumerate(levels)
            }
        else:
            raise ValueError(
                f"{len(anchors)} anchors have no equal shares on {len(levels)} levels: give "
                "`masks`, or another number of anchors."
            )
    indices = [index for mask in masks.values() for index in mask]
    if set(masks) != set(levels) or not all(masks.values()):
        raise ValueError(f"`masks` name {sorted(masks)}; give anchors for {', '.join(levels)}.")
    if not all(0 <= index < len(anchors) for index in indices):
        raise ValueError(f"`masks` are {dict(masks)}; there are {len(anchors)} anchors, from 0.")
    return {level: tuple(masks[level]) for level in levels}
