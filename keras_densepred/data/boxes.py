"""Boxes in pixels: how far they overlap, the boxes of masks, and masks cut out by their boxes."""

from __future__ import annotations

import numpy as np


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `(N, 4)` and `(M, 4)` xyxy: `(N, M)`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area_first, area_second = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second))
    union = area_first[:, None] + area_second[None] - shared
    return shared / np.maximum(union, np.finfo(np.float32).tiny)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The tightest xyxy boxes `(N, 4)` float32 around masks `(N, H, W)` bool, none empty."""
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    height, width = masks.shape[1:]
    edges = (
        columns.argmax(1),
        rows.argmax(1),
        width - columns[:, ::-1].argmax(1),
        height - rows[:, ::-1].argmax(1),
    )
    return np.stack(edges, axis=1).astype(np.float32)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes `(N, 4)` xyxy cut at the borders of an image, float32."""
    return np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)


def has_pixels(masks: np.ndarray) -> np.ndarray:
    """Whether each of the masks `(N, H, W)` has a pixel: `(N,)` bool."""
    return np.asarray(masks.any(axis=(1, 2)))


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
