"""Instance masks of a detector as COCO results: laid onto the image, in run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require

BORDER = 0.5  # least probability of a pixel that belongs to an object


def masks_to_rle(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> list[dict[str, Any]]:
    """Run lengths of masks that reach from edge to edge of their boxes.

    Bilinear between cells, as `ops.box_masks.paste_masks`; only the box of each is computed.
    Requires faster-coco-eval, extra `data`.

    Args:
        masks: `(N, S, S)` probabilities.
        boxes: `(N, 4)` xyxy in pixels of the image.
        height: height of the image in pixels.
        width: its width.

    Returns:
        For each mask `{"size": [height, width], "counts": compressed run lengths as text}`.
    """
    canvas = np.zeros((height, width), np.uint8, order="F")
    results = []
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(boxes, np.float64), strict=True):
        top, bottom = _pixels(y1, y2, height)
        left, right = _pixels(x1, x2, width)
        canvas[:] = 0
        if bottom > top and right > left:
            rows = _interpolation(np.arange(top, bottom), y1, y2, mask.shape[0])
            columns = _interpolation(np.arange(left, right), x1, x2, mask.shape[1])
            canvas[top:bottom, left:right] = rows @ mask @ columns.T >= BORDER
        results.append(run_lengths(canvas))
    return results


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask, `(H, W)` of 0 and 1, as in `masks_to_rle`."""
    canvas = np.asfortranarray(mask, np.uint8)
    counts = require("faster_coco_eval.core.mask", "data").encode(canvas)["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": list(mask.shape), "counts": text}


def masks_on_image(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The masks of `masks_to_rle` as `(N, height, width)` bool, for drawing."""
    return rle_to_masks(masks_to_rle(masks, boxes, height, width), height, width)


def rle_to_masks(lengths: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Compressed run lengths as `(N, height, width)` bool."""
    if not lengths:
        return np.zeros((0, height, width), bool)
    stacked = require("faster_coco_eval.core.mask", "data").decode(list(lengths))
    return np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(bool)


def segmentations_as_arrays(detections: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The `segmentation` of results as numbers, which processes can send each other."""
    counts = [item["segmentation"]["counts"].encode("ascii") for item in detections]
    sizes = [item["segmentation"]["size"] for item in detections]
    return {
        "rle_bytes": np.frombuffer(b"".join(counts), np.uint8),
        "rle_lengths": np.array([len(text) for text in counts], np.int64),
        "rle_sizes": np.array(sizes, np.int64).reshape(-1, 2),
    }


def segmentations_from_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The inverse of `segmentations_as_arrays`."""
    text = arrays["rle_bytes"].astype(np.uint8).tobytes().decode("ascii")
    ends = np.cumsum(arrays["rle_lengths"]).tolist()
    starts = [0, *ends][:-1]
    return [
        {"size": size, "counts": text[start:end]}
        for size, start, end in zip(arrays["rle_sizes"].tolist(), starts, ends, strict=True)
    ]


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    return max(int(np.floor(low)), 0), min(int(np.ceil(high)), limit)


def _interpolation(pixel: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    """`(pixels, cells)`: how much of each cell a pixel takes, along one axis."""
    position = (pixel + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)
