"""Whether boxes are what they are taken for: pixels or shares, sides or corners."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError

_ENOUGH = 10  # boxes; that fewer look like corners may be chance
_NEARLY_ALL = 0.99
_LEAST_OUTSIDE = 0.25  # of boxes read as sizes when they are corners; of real ones hardly any
_LARGEST_SHARE = 2.0  # of an image's side; what is larger is in pixels
_SLACK = 0.01  # shares of an image's side by which exporters round beyond its border
_SMALL_IMAGE = 8  # pixels; in larger ones an object is no part of one pixel


def check_box_form(
    boxes: np.ndarray, image_sizes: np.ndarray, path: str, object_name: Callable[[int], str]
) -> tuple[Finding, ...]:
    """Looks for two mistakes of exporters that otherwise train, to nothing.

    Args:
        boxes: `(N, 4)` float64, as the file has them.
        image_sizes: `(N, 2)`, height and width of each box's image in pixels.
        path: what messages call the file.
        object_name: row -> what a finding calls that object.

    Returns:
        What is suspicious.

    Raises:
        DatasetError: if the boxes are corners `[x1, y1, x2, y2]` or shares of the image's sides.
    """
    limits = image_sizes[:, ::-1].astype(np.float64)
    in_first_pixel = (np.abs(boxes) <= 1).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    in_first_pixel &= (limits > _SMALL_IMAGE).all(axis=1)
    if in_first_pixel.mean() >= _NEARLY_ALL:
        raise DatasetError(
            f"{path}: all boxes lie within one pixel, such as {_shown(boxes[0])} of "
            f"{object_name(0)}, so they look like shares of the image: multiply them by its width "
            "and height, because boxes are [x, y, width, height] in pixels."
        )
    as_corners = (boxes[:, :2] >= -1) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= limits + 1)
    outside = (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(axis=1)
    looks_like_corners = as_corners.all(axis=1).mean() >= _NEARLY_ALL and outside.any()
    if looks_like_corners and len(boxes) >= _ENOUGH and outside.mean() >= _LEAST_OUTSIDE:
        first = int(np.argmax(outside))
        raise DatasetError(
            f"{path}: {outside.sum():,} of {len(boxes):,} boxes reach outside of their image, such "
            f"as {_shown(boxes[first])} of {object_name(first)}, and all would lie inside as "
            "corners [x1, y1, x2, y2]: subtract x1 from x2 and y1 from y2, because boxes are "
            "[x, y, width, height] in pixels."
        )
    corners = "reaching outside the image but inside as corners [x1, y1, x2, y2]: see the samples"
    pixel = "within one pixel, like shares of the image: boxes are in pixels"
    return tuple(
        Finding(
            int(rows.sum()),
            f"{'box' if rows.sum() == 1 else 'boxes'} {what}",
            object_name(int(np.argmax(rows))),
        )
        for rows, what in ((outside & looks_like_corners, corners), (in_first_pixel, pixel))
        if rows.any()
    )


def check_normalised_boxes(
    boxes: np.ndarray, source: str, object_name: Callable[[int], str]
) -> None:
    """The same two mistakes in files that should have centre and sides as shares of the image.

    Args:
        boxes: `(N, 4)` float64, left, top, width and height made from centre and sides.
        source: what messages call the data.
        object_name: row -> what messages call that object.

    Raises:
        DatasetError: if the boxes are in pixels, or corners `[x1, y1, x2, y2]`.
    """
    form = "`class x y width height`, the centre and the sides as shares of the image (0 to 1)"
    high = boxes[:, :2] + boxes[:, 2:]
    if look_like_pixels(boxes):
        in_pixels = _larger_than_images(boxes)
        first = object_name(int(np.argmax(in_pixels)))
        raise DatasetError(
            f"{source}: {in_pixels.sum():,} of {len(boxes):,} boxes are larger than their image, "
            f"such as {first}, so they look like pixels: lines are {form}."
        )
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    as_corners = (centres >= -_SLACK) & (boxes[:, 2:] > centres) & (boxes[:, 2:] <= 1 + _SLACK)
    outside = (boxes[:, :2] < -_SLACK).any(axis=1) | (high > 1 + _SLACK).any(axis=1)
    if len(boxes) < _ENOUGH or outside.mean() < _LEAST_OUTSIDE:
        return
    if as_corners.all(axis=1).mean() >= _NEARLY_ALL:
        raise DatasetError(
            f"{source}: {outside.sum():,} of {len(boxes):,} boxes reach outside of their image, "
            f"such as {object_name(int(np.argmax(outside)))}, and all would lie inside as corners "
            f"x1 y1 x2 y2: lines are {form}."
        )


def look_like_pixels(boxes: np.ndarray) -> bool:
    """Whether most boxes, left, top, width and height, are too large for shares of an image."""
    return len(boxes) > 0 and bool(_larger_than_images(boxes).mean() > 0.5)


def _larger_than_images(boxes: np.ndarray) -> np.ndarray:
    return np.any(boxes[:, 2:] > _LARGEST_SHARE, axis=1)


def _shown(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
