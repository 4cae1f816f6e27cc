"""COCO segmentations: polygons and run lengths to compressed RLE, and RLE to masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.readers.coco_checks import show

_LARGEST_COORDINATE = 1e8  # The mask code turns five times a coordinate into a 32-bit integer.


class SegmentationError(ValueError):
    """A segmentation that gives no mask; the message completes "annotation id 7 ..."."""


def encode_segmentation(segmentation: Any, height: int, width: int) -> bytes:
    """Brings any COCO segmentation to one form, compressed RLE, by COCO's own rules.

    Requires faster-coco-eval, extra `data`.

    Args:
        segmentation: what the JSON file holds: a list of polygons `[x0, y0, x1, y1, ...]` in
            pixels, or a dict with `size` `[height, width]` and `counts`, run lengths down the
            columns as a list or compressed to a text.
        height: height of the image in pixels.
        width: width of the image.

    Returns:
        Compressed `counts`, about 150 bytes for a polygon of COCO.

    Raises:
        SegmentationError: if there is no segmentation, or none of this size.
    """
    check_segmentation(segmentation, height, width)
    api = require("faster_coco_eval.core.mask", "data")
    if isinstance(segmentation, list):
        pieces = api.frPyObjects(segmentation, height, width)
        return (pieces[0] if len(pieces) == 1 else api.merge(pieces))["counts"]
    if isinstance(segmentation["counts"], list):
        counts = [int(run) for run in segmentation["counts"]]
        return api.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    counts = segmentation["counts"].encode("ascii")
    try:
        api.decode({"size": [height, width], "counts": counts})
    except (ValueError, RuntimeError) as error:
        raise SegmentationError(f"has a damaged compressed RLE ({error})") from error
    return counts


def decode_masks(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Masks of the objects of one image.

    Args:
        counts: compressed run lengths of `N` objects, from `encode_segmentation`.
        height: height of the image in pixels.
        width: width of the image.

    Returns:
        `(N, height, width)` bool.
    """
    if not counts:
        return np.zeros((0, height, width), bool)
    api = require("faster_coco_eval.core.mask", "data")
    masks = api.decode([{"size": [height, width], "counts": runs} for runs in counts])
    return np.ascontiguousarray(masks.transpose(2, 0, 1)).astype(bool)


def mask_areas(counts: Sequence[bytes], sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """Pixels of masks.

    Args:
        counts: compressed run lengths of `N` objects, from `encode_segmentation`.
        sizes: height and width of the image of each.

    Returns:
        `(N,)` integers.
    """
    api = require("faster_coco_eval.core.mask", "data")
    rles = [{"size": size, "counts": runs} for size, runs in zip(sizes, counts, strict=True)]
    return np.asarray(api.area(rles))


def mask_boxes(counts: Sequence[bytes], sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """Boxes around masks; the arguments are those of `mask_areas`.

    Returns:
        `(N, 4)` `[x, y, width, height]` in pixels, all 0 of empty masks.
    """
    api = require("faster_coco_eval.core.mask", "data")
    rles = [{"size": size, "counts": runs} for size, runs in zip(sizes, counts, strict=True)]
    return np.asarray(api.toBbox(rles), np.float64).reshape(-1, 4)


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Finds what is wrong with a segmentation without making its mask.

    Args:
        segmentation: as in `encode_segmentation`.
        height: height of the image in pixels.
        width: width of the image.

    Raises:
        SegmentationError: if it is missing, malformed, or of another size; a compressed RLE is
            checked by `encode_segmentation` only.
    """
    if not segmentation:
        raise SegmentationError("has no segmentation")
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not _is_polygon(polygon):
                raise SegmentationError(
                    "has a polygon that is not a list of at least three points "
                    "[x0, y0, x1, y1, x2, y2, ...]"
                )
        return
    if not isinstance(segmentation, dict):
        raise SegmentationError("has a segmentation that is neither polygons nor RLE")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise SegmentationError(
            f"has an RLE of size {show(size)}, and its image is [{height}, {width}] (height, width)"
        )
    if isinstance(counts, list):
        whole = set(map(type, counts)) <= {int, float} and all(run >= 0 for run in counts)
        if not whole or any(run == math.inf or run != int(run) for run in counts):
            raise SegmentationError("has an RLE with run lengths that are not whole numbers")
        if sum(counts) != height * width:
            raise SegmentationError(
                f"has an RLE of {int(sum(counts))} pixels, and its image has {height * width}"
            )
    elif not isinstance(counts, str) or not counts.isascii():
        raise SegmentationError("has an RLE whose counts are neither a list nor COCO's text")


def _is_polygon(polygon: Any) -> bool:
    # COCO has 40 million coordinates: built-in functions over whole lists, not a check for each.
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and set(map(type, polygon)) <= {int, float}
        and min(polygon) > -_LARGEST_COORDINATE
        and max(polygon) < _LARGEST_COORDINATE
        and not math.isnan(sum(polygon))
    )
