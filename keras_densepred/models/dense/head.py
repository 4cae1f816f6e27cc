"""Decoupled heads: for each level a tower for classes and one for the sides of boxes."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.conv import Pointwise
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.initializers import FixedNormal
from keras_densepred.models.retinanet.head import FOCAL_PRIOR, PREDICTION_STDDEV

Tensor = Any

_FIRST_DISTANCE = 2.0  # strides that every side is away at the start


@keras.saving.register_keras_serializable(package="keras_densepred")
class DistanceBias(keras.initializers.Initializer):
    """Logits of a geometric distribution over 0 to R strides, for each of the four sides.

    A uniform one, which zeros are, starts with boxes of 16 strides a side: most of an image.

    Args:
        mean: of the distribution without an end, in strides.
    """

    def __init__(self, mean: float = _FIRST_DISTANCE):
        self.mean = mean

    def __call__(self, shape, dtype=None):
        step = math.log(self.mean / (1.0 + self.mean))
        logits = np.tile(step * np.arange(shape[0] // 4, dtype=np.float32), 4)
        return ops.convert_to_tensor(logits, dtype=dtype)

    def get_config(self):
        return {"mean": self.mean}


def predict_levels(
    kit: ConvNorm,
    features: Mapping[str, Tensor],
    num_classes: int,
    width: int,
    depth: int,
    reach: int,
    prefix: str = "head",
) -> tuple[dict[str, Tensor], list[keras.layers.Layer]]:
    """Runs a level's own towers on each level and lines the places up.

    Of no layer that levels share, so that batch norms fold into the convolutions before them.

    Args:
        kit: convolutions, norms and activation.
        features: level to map (B, H, W, any channels), finest first.
        num_classes: C.
        width: channels of the towers.
        depth: 3x3 convolutions of each tower.
        reach: R, the largest distance in strides.
        prefix: of the layers' names.

    Returns:
        `"classification"` (B, N, C) and `"distances"` (B, N, 4, R + 1) logits, float32, places
        level by level, row by row; sides are left, top, right, bottom. And the layers that give
        the class logits.
    """
    classes, distances, class_layers = [], [], []
    for level, feature in features.items():
        name = f"{prefix}_{level.lower()}"
        x = _tower(kit, feature, width, depth, f"{name}_class")
        layer = _output(kit, num_classes, FOCAL_PRIOR, f"{name}_class_logits")
        class_layers.append(layer)
        # float32 from here on: losses and decoding are not for half precision.
        classes.append(
            keras.layers.Reshape((-1, num_classes), name=f"{name}_classes", dtype="float32")(
                layer(x)
            )
        )
        x = _tower(kit, feature, width, depth, f"{name}_box")
        x = _output(kit, 4 * (reach + 1), None, f"{name}_box_logits")(x)
        distances.append(
            keras.layers.Reshape((-1, 4, reach + 1), name=f"{name}_boxes", dtype="float32")(x)
        )
    outputs = {"classification": classes, "distances": distances}
    return {
        name: keras.layers.Concatenate(axis=1, name=f"{prefix}_{name}", dtype="float32")(parts)
        if len(parts) > 1
        else parts[0]
        for name, parts in outputs.items()
    }, class_layers


def _tower(kit: ConvNorm, x: Tensor, width: int, depth: int, name: str) -> Tensor:
    for number in range(depth):
        x = kit.unit(x, width, 3, f"{name}_{number}")
    return x


def _output(kit: ConvNorm, filters: int, prior: float | None, name: str) -> keras.layers.Layer:
    """The linear layer of a level: classes that start at a probability, or distances."""
    bias: Any = DistanceBias()
    if prior is not None:
        bias = keras.initializers.Constant(-math.log((1.0 - prior) / prior))
    return Pointwise(
        filters,
        kernel_initializer=FixedNormal(PREDICTION_STDDEV),
        bias_initializer=bias,
        name=name,
        dtype=kit.dtype,
    )


def boxes_of(distances: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """The boxes of the distances' means.

    Args:
        distances: (B, N, 4, R + 1) logits of 0 to R strides to left, top, right, bottom.
        places: (N, 2) x, y in pixels.
        strides: (N,) pixels.

    Returns:
        (B, N, 4) float32 xyxy in pixels, not clipped.
    """
    numbers = ops.arange(distances.shape[-1], dtype="float32")
    means = ops.sum(ops.softmax(distances, axis=-1) * numbers, axis=-1) * strides[:, None]
    return ops.concatenate([places - means[..., :2], places + means[..., 2:]], axis=-1)
