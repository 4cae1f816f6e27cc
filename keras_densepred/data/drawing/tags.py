"""Where the names of boxes stand, so that they can be read and hide nothing small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LARGE = 5  # times a name's area: a box that may have it inside, and is seen below another's
_MOST_HIDDEN = 0.35  # of a box that is not large


def place_tags(
    boxes: np.ndarray, sizes: Sequence[tuple[float, float]], canvas: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Finds a place for the name of each box, none of them over another.

    Small boxes choose first: large ones have room inside. Of the free places around a box (above
    it first, inside of large ones last) the one that hides least of other boxes is taken.

    Args:
        boxes: `(N, 4)` xyxy in pixels of the canvas.
        sizes: width and height of each name.
        canvas: width and height.

    Returns:
        Left and top of each name; None where all places are taken.
    """
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 1, None), axis=1)
    places: list[tuple[float, float] | None] = [None] * len(boxes)
    taken = np.zeros((0, 4))
    for i in np.argsort(areas, kind="stable").tolist():
        width, height = sizes[i]
        at = np.array(_candidates(boxes[i], width, height, areas[i]))
        at[:, 0] = np.clip(at[:, 0], 0, max(canvas[0] - width, 0))
        tags = np.concatenate([at, at + np.array([width, height])], axis=1)
        free = (at[:, 1] >= 0) & (at[:, 1] <= canvas[1] - height)
        free &= ~_common(tags, taken).any(axis=1)
        hidden = np.where(areas < _LARGE * width * height, _common(tags, boxes) / areas, 0)
        free &= hidden.max(axis=1) <= _MOST_HIDDEN
        if free.any():
            cost = np.where(free, 0.02 * np.arange(len(at)) + hidden.sum(axis=1), np.inf)
            best = tags[cost.argmin()]
            places[i] = (float(best[0]), float(best[1]))
            taken = np.concatenate([taken, best[None]])
    return places


def _candidates(
    box: np.ndarray, width: float, height: float, area: float
) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box.tolist()
    around = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    around += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    if area < _LARGE * width * height:
        return around
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    # Down the left side, for boxes whose corners others have taken.
    steps = np.arange(y1 + height, y2 - 2 * height, height).tolist()
    return [around[0], *inside, *around[1:], *((x1, y) for y in steps)]


def _common(tags: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`(K, N)` areas that K rectangles have in common with N others."""
    low = np.maximum(tags[:, None, :2], others[:, :2])
    high = np.minimum(tags[:, None, 2:], others[:, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)
