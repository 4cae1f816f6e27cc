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
        best, least = None, np.inf
        for rank, (x, y) in enumerate(_candidates(boxes[i], width, height, areas[i])):
            x = min(max(x, 0.0), max(canvas[0] - width, 0.0))
            if not 0 <= y <= canvas[1] - height:
                continue
            tag = np.array([x, y, x + width, y + height])
            if _common(tag, taken).any():
                continue
            hidden = np.where(areas < _LARGE * width * height, _common(tag, boxes) / areas, 0)
            cost = 0.02 * rank + hidden.sum()
            if hidden.max() <= _MOST_HIDDEN and cost < least:
                best, least = tag, cost
        if best is not None:
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


def _common(tag: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that a rectangle has in common with each of others."""
    low = np.maximum(tag[:2], others[:, :2])
    high = np.minimum(tag[2:], others[:, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=1)
