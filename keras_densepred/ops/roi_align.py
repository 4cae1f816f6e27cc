"""RoIAlign: the features of a box, resampled to a fixed size (He et al., "Mask R-CNN", section 3).

Each box reads from one level of a feature pyramid, chosen by its size. All levels are concatenated
into one table of positions, so a box gathers from its own level only and all shapes are static: a
step compiles once, however the boxes are spread over the levels.
"""

import functools
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.ops.weighted_gather import weighted_gather
from keras_densepred.runtime.replicas import on_own_rows

Tensor = Any

CANONICAL_CELLS = 14.0  # boxes of 14 to 28 cells a side belong to a level


def roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    images: Tensor | None = None,
) -> Tensor:
    """Bilinear samples of each box's features, averaged over its `size` x `size` bins.

    A bin's value is the mean of `sampling_ratio` x `sampling_ratio` points spread evenly in it. A
    point more than one cell outside of the map counts as 0; less than that, it has the value of
    the nearest border.

    Args:
        features: maps (B, H_l, W_l, C) of rising stride.
        boxes: (B, N, 4) xyxy in pixels of the image. They take no gradient. Boxes without area
            are points; nothing else happens to padding rows, which only have to be finite.
        strides: pixels per cell of each map.
        size: bins on a side.
        sampling_ratio: points on a side of a bin; 2 as in TensorFlow's detectors (the PyTorch
            detectors' 0 takes as many as there are cells, which no static shape allows).
        aligned: whether a cell's centre is at +0.5 (Detectron2, MMDetection) or, as in the first
            implementations, at its corner, where boxes are at least one cell wide.
        images: (D, N) int32, the image of each box, where boxes (D, N, 4) are not those of one
            image a row: of the B / D images that belong to the row.

    Returns:
        (B, N, size, size, C) in the features' type, or (D, N, ...).

    Raises:
        ValueError: if there is not one stride for each map, the maps are not equally wide, or a
            number is not positive.
    """
    if len(features) != len(strides) or not features:
        raise ValueError(
            f"There are {len(features)} maps and {len(strides)} strides: give one each."
        )
    if size < 1 or sampling_ratio < 1:
        raise ValueError(
            f"`size` and `sampling_ratio` must be positive, got {size} and {sampling_ratio}."
        )
    features = [ops.convert_to_tensor(feature) for feature in features]
    channels = features[0].shape[-1]
    if any(feature.shape[-1] != channels for feature in features):
        widths = ", ".join(str(feature.shape[-1]) for feature in features)
        raise ValueError(f"RoIAlign needs maps with equally many channels, got {widths}.")
    boxes = ops.stop_gradient(ops.cast(boxes, "float32"))
    pool = functools.partial(
        _roi_align, strides=strides, size=size, sampling_ratio=sampling_ratio, aligned=aligned
    )
    return on_own_rows(pool, features, boxes, images)


def _roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor | None,
    strides: Sequence[int],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    batch, channels = ops.shape(features[0])[0], features[0].shape[-1]
    rows, num = ops.shape(boxes)[:2]
    heights, widths, starts, positions = _layout(features)
    table = ops.concatenate(
        [ops.reshape(feature, (batch, -1, channels)) for feature in features], axis=1
    )
    table = ops.reshape(table, (-1, channels))

    level = assign_levels(boxes, strides)
    scale = ops.take(ops.convert_to_tensor([1.0 / s for s in strides], "float32"), level)
    boxes = boxes * scale[..., None] - (0.5 if aligned else 0.0)
    height, width, start = (ops.take(x, level) for x in (heights, widths, starts))
    y_index, y_weight = _corners(
        boxes[..., 1], boxes[..., 3], height, size, sampling_ratio, aligned
    )
    x_index, x_weight = _corners(boxes[..., 0], boxes[..., 2], width, size, sampling_ratio, aligned)

    # Every row of a bin's points meets every column: (B * N, size, size, 2s, 2s). Of no more than
    # five axes, which LiteRT can index.
    row = start[..., None, None] + y_index * width[..., None, None]
    first = ops.arange(rows, dtype="int32")[:, None]
    images = first if images is None else images + first * (batch // rows)
    row = row + (images * positions)[..., None, None]
    points = 2 * sampling_ratio
    row, y_weight = (ops.reshape(x, (-1, size, 1, points, 1)) for x in (row, y_weight))
    column, x_weight = (ops.reshape(x, (-1, 1, size, 1, points)) for x in (x_index, x_weight))
    index, weight = row + column, y_weight * x_weight
    taps = points**2
    pooled = weighted_gather(table, ops.reshape(index, (-1, taps)), ops.reshape(weight, (-1, taps)))
    return ops.reshape(pooled, (rows, num, size, size, channels))


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The level of each box ("Feature Pyramid Networks", equation 1: 224 px belong to stride 16).

    Args:
        boxes: (..., 4) xyxy in pixels.
        strides: of the levels, each twice the one before.

    Returns:
        (...) int32 index into `strides`.
    """
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    area = sides[..., 0] * sides[..., 1]
    # Comparing areas needs no logarithm, whose rounding at a border differs by backend.
    level = ops.zeros(ops.shape(area), "int32")
    for stride in strides[1:]:
        level = level + ops.cast(area >= (CANONICAL_CELLS * stride) ** 2, "int32")
    return level


def _layout(features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Height and width of each level and its first position (L,) int32; positions of an image."""
    heights = [ops.shape(feature)[1] for feature in features]
    widths = [ops.shape(feature)[2] for feature in features]
    starts, positions = [], 0
    for height, width in zip(heights, widths, strict=True):
        starts.append(positions)
        positions = positions + height * width
    stacked = (
        ops.stack([ops.cast(value, "int32") for value in values])
        for values in (heights, widths, starts)
    )
    return (*stacked, positions)


def _corners(
    low: Tensor, high: Tensor, limit: Tensor, size: int, samples: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Along one axis: the cells that a bin's points lie between, and their weights.

    Args:
        low: (B, N) begin of each box in cells.
        high: (B, N) its end.
        limit: (B, N) int32 cells of its level.
        size: bins.
        samples: points of a bin.
        aligned: see `roi_align`.

    Returns:
        Cells (B, N, size, 2 * samples) int32 and weights float32, which sum to 1 over a bin that
        lies on the map.
    """
    length = high - low
    if not aligned:
        length = ops.maximum(length, 1.0)
    offset = (ops.arange(size * samples, dtype="float32") + 0.5) / (size * samples)
    point = low[..., None] + offset * length[..., None]
    last = ops.cast(limit, "float32")[..., None] - 1.0
    on_map = ops.cast(ops.logical_and(point >= -1.0, point <= last + 1.0), "float32") / samples
    point = ops.minimum(ops.maximum(point, 0.0), last)
    cell = ops.floor(point)
    share = point - cell
    cell = ops.cast(cell, "int32")
    beyond = ops.minimum(cell + 1, limit[..., None] - 1)
    index = ops.stack([cell, beyond], axis=-1)
    weight = ops.stack([(1.0 - share) * on_map, share * on_map], axis=-1)
    shape = (*ops.shape(low), size, 2 * samples)
    return ops.reshape(index, shape), ops.reshape(weight, shape)
