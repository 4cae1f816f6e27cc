"""Instance masks of a batch: each object's cut out by its box, at one size."""

from __future__ import annotations

import numpy as np


def cut_by_boxes(masks: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Masks from edge to edge of their boxes.

    A hundred masks of a 1024 px image are 100 MB as they are, cut out at 112 px 1.3 MB, and a mask
    head of 28 px sees no difference.

    Args:
        masks: `(N, H, W)` bool.
        boxes: `(N, 4)` xyxy in pixels, inside of the masks.
        size: cells on a side of the result.

    Returns:
        `(N, size, size)` uint8: 1 where a cell's centre is on the object, else 0.
    """
    cut = np.zeros((len(masks), size, size), np.uint8)
    steps = (np.arange(size) + 0.5) / size
    for number, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes, strict=True)):
        rows = np.clip((y1 + steps * (y2 - y1)).astype(int), 0, mask.shape[0] - 1)
        columns = np.clip((x1 + steps * (x2 - x1)).astype(int), 0, mask.shape[1] - 1)
        cut[number] = mask[rows].take(columns, axis=1)
    return cut
