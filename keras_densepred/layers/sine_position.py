"""Positions as sines and cosines of many wavelengths ("Attention Is All You Need", section 3.5)."""

import math
from typing import Any

import numpy as np
from keras import ops

Tensor = Any

TEMPERATURE = 10000.0  # the longest wavelength in units of 2 pi
EPSILON = 1e-6  # DETR's, in the division by the size of the image


def sine_embedding(angles: Tensor, features: int) -> Tensor:
    """Sines (even features) and cosines (odd ones) of angles.

    Args:
        angles: (...) float32, in radians at the shortest wavelength.
        features: even number of features.

    Returns:
        (..., features) float32 in -1..1.
    """
    rates = TEMPERATURE ** (-2.0 * np.arange(features // 2) / features)
    phases = angles[..., None] * ops.convert_to_tensor(rates, "float32")
    pairs = ops.stack([ops.sin(phases), ops.cos(phases)], axis=-1)
    return ops.reshape(pairs, (*ops.shape(angles), features))


def sine_positions(
    shape: tuple[Any, Any], counts: Tensor | None, width: int, offset: float
) -> Tensor:
    """The position of each cell of a map, relative to the part that is image.

    "End-to-End Object Detection with Transformers", as Deformable DETR and Mask2Former have it.
    Cells behind the image's end go on counting; what they get is of no consequence.

    Args:
        shape: height and width of the map, integers or scalar int32 tensors.
        counts: (B, 2) int32, rows and columns that are image, from the top left; None for all.
        width: features of a position, a multiple of 4: half for y, then half for x.
        offset: of the first cell: -0.5 in Deformable DETR (cell i of n is at (i + 0.5) / n), 0 in
            Mask2Former ((i + 1) / n).

    Returns:
        (B, height, width of the map, width) float32; B is 1 without `counts`.
    """
    axes = []
    for axis, size in enumerate(shape):
        total = ops.cast(size, "float32") if counts is None else counts[:, axis, None]
        steps = ops.cast(ops.arange(1, size + 1), "float32")[None] + offset
        angles = steps / (ops.cast(total, "float32") + EPSILON) * (2.0 * math.pi)
        axes.append(sine_embedding(angles, width // 2))
    whole = (ops.shape(axes[0])[0], *shape, width // 2)
    return ops.concatenate(
        [ops.broadcast_to(axes[0][:, :, None], whole), ops.broadcast_to(axes[1][:, None], whole)],
        axis=-1,
    )
