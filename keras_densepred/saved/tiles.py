"""Large photographs looked at in overlapping pieces, for objects that are small in them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from keras_densepred.saved import prediction

if TYPE_CHECKING:
    from keras_densepred.saved.opening import SavedModel

_SAME = 0.5  # intersection over union of two boxes of one object
_PART = 0.6  # share of a box that lies in another: the first is a part of that object


def in_tiles(
    model: SavedModel, image: np.ndarray, score: float, side: int, overlap: float
) -> prediction.Objects:
    """The objects of an image, found piece by piece; see `SavedModel.predict`.

    An image that fits into one piece is predicted as a whole. Where pieces overlap, an object is
    found twice, or a part of it in one and all of it in another: boxes that no inner edge cuts go
    first, then others by confidence, and of a class each drops those that it covers.

    Raises:
        ValueError: if an argument is out of range, or the model has no boxes or has masks.
    """
    if model.task != "detection":
        raise ValueError(f"{model.path} is no detector: pictures in pieces are for those.")
    if side < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f"The pieces have {side} pixels and overlap by {overlap}: give a side of 1 at least "
            "and an overlap from 0, less than 1."
        )
    height, width = image.shape[:2]
    rows, columns = (starts(length, side, overlap) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return prediction.predict(model, [image], score)[0]
    corners = [(top, left) for top in rows for left in columns]
    pieces = [image[top : top + side, left : left + side] for top, left in corners]
    found = prediction.predict(model, pieces, score)
    if any(part.masks is not None for part in found):
        raise ValueError(f"{model.path} finds masks: pictures in pieces are for boxes alone.")
    boxes = np.concatenate(
        [
            part.boxes + np.array([left, top] * 2, np.float32)
            for part, (top, left) in zip(found, corners, strict=True)
        ]
    )
    cut = np.concatenate(
        [
            _is_cut(part.boxes, piece.shape[:2], corner, (height, width))
            for part, piece, corner in zip(found, pieces, corners, strict=True)
        ]
    )
    labels, scores = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("labels", "scores")
    )
    kept = np.array(_kept(boxes, labels, np.lexsort((-scores, cut))), np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return dataclasses.replace(
        found[0], image=image, boxes=boxes[kept], labels=labels[kept], scores=scores[kept]
    )


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where pieces of `side` begin along `length` pixels, the last one at its end."""
    if length <= side:
        return [0]
    step = max(1, int(side * (1 - overlap)))
    return [*range(0, length - side, step), length - side]


def _is_cut(
    boxes: np.ndarray, size: tuple[int, int], corner: tuple[int, int], whole: tuple[int, int]
) -> np.ndarray:
    """(N,) bool: whether a box of a piece ends at an edge that is none of the whole image."""
    cut = np.zeros(len(boxes), bool)
    for axis in (0, 1):
        first, last = boxes[:, 1 - axis], boxes[:, 3 - axis]
        cut |= (first < 1) & (corner[axis] > 0)
        cut |= (last > size[axis] - 1) & (corner[axis] + size[axis] < whole[axis])
    return cut


def _kept(boxes: np.ndarray, labels: np.ndarray, order: np.ndarray) -> list[int]:
    """The boxes that none before them in `order`, of the same class, covers."""
    kept: list[int] = []
    for index in order.tolist():
        rivals = np.array([k for k in kept if labels[k] == labels[index]], np.int64)
        low = np.maximum(boxes[rivals, :2], boxes[index, :2])
        high = np.minimum(boxes[rivals, 2:], boxes[index, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(boxes[rivals, 2:] - boxes[rivals, :2], axis=1)
        area = np.prod(boxes[index, 2:] - boxes[index, :2])
        if not ((shared > _SAME * (areas + area - shared)) | (shared > _PART * area)).any():
            kept.append(index)
    return kept
