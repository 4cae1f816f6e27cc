"""Queries that start at the likeliest centres of objects, and masks that know where they are.

Learned queries must tell alike objects apart by positions that the maps hold only faintly: on some
ten pictures of fifty nuclei they learn no mask. Centres are found as in Zhou et al., "Objects as
Points" (2019), section 3; that queries start at the best local maxima is "FastInst" (He et al.,
CVPR 2023), section 3.3. That a query's place is part of its masks is ours.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.initializers import FanInUniform
from keras_densepred.layers.sine_position import sine_positions
from keras_densepred.layers.token_attention import linear, token_norm
from keras_densepred.layers.token_maps import as_tokens, in_float32
from keras_densepred.ops.pooling import max_pool2d
from keras_densepred.ops.rows import gather_rows, highest
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

PRIOR = 0.01  # probability that every position starts with
SPREAD = 0.54 / 6.0  # standard deviation around a centre, in sides of its box (TTFNet, 2020)
POSITIVE, NEGATIVE = 2.0, 4.0  # exponents of the loss
RADIUS = 2.0  # positions of the finest map: of the ellipses that masks start as
LARGEST = 6.0  # logarithm of how many times that they can become
_ROUNDED = 1e-4  # of logits
HEIGHT = 4.0  # logit in the middle of an ellipse; 0 at its edge


@keras.saving.register_keras_serializable(package="keras_densepred")
class CentreQueries(keras.layers.Layer):
    """How likely each position is the centre of an object, and queries at the likeliest.

    Args:
        num_queries: Q; of smaller maps, as many as they have positions.
    """

    def __init__(self, num_queries: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_queries = num_queries

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width, policy = input_shape[-1], self.dtype_policy
        prior = keras.initializers.Constant(-np.log((1.0 - PRIOR) / PRIOR))
        self.hidden = linear(width, "hidden", policy, bias_initializer=FanInUniform(width))
        self.centres = linear(1, "centres", policy, bias_initializer=prior)
        self.content = linear(width, "content", policy, bias_initializer=FanInUniform(width))
        self.content_norm = token_norm("content_norm", policy)
        for layer in (self.hidden, self.centres, self.content, self.content_norm):
            layer.build(input_shape)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        batch, *size, width = input_shape
        queries = (batch, self.num_queries, width)
        return (batch, *size), queries, queries, (batch, self.num_queries, 2)

    def call(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Finds centres.

        Args:
            features: (B, h, w, width).

        Returns:
            Logits (B, h, w) float32; of the queries content and position (B, Q, width), and where
            they stand, (B, Q, 2) float32 x, y in 0..1 of the image.
        """
        logits = in_float32(self.centres(ops.relu(self.hidden(features))))
        heat = ops.stop_gradient(logits)
        around = max_pool2d(heat, pool_size=3, strides=1, padding=1)
        # Maxima first, in their order, then what is beside them. Not by equality: a runtime may
        # compute a map twice, and round it twice.
        rank = ops.where(heat >= around - _ROUNDED, ops.sigmoid(heat) + 1.0, ops.sigmoid(heat))
        _, height, width = ops.shape(heat)[:3]
        cells = heat.shape[1] * heat.shape[2] if None not in heat.shape[1:3] else self.num_queries
        count = min(self.num_queries, cells)
        _, best = highest(ops.reshape(rank, (-1, height * width)), count)
        content = self.content_norm(self.content(gather_rows(as_tokens([features]), best)))
        positions = as_tokens([sine_positions((height, width), None, features.shape[-1], 0.0)])
        positions = ops.cast(ops.take(positions[0], best, axis=0), self.compute_dtype)
        places = [
            (ops.cast(number, "float32") + 0.5) / ops.cast(size, "float32")
            for number, size in ((best % width, width), (best // width, height))
        ]
        return logits[..., 0], content, positions, ops.stack(places, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_queries": self.num_queries}


def ellipses(changes: Tensor, starts: Tensor, shape: tuple[Any, Any]) -> Tensor:
    """Where queries think that their objects are.

    Args:
        changes: (B, Q, 4) float32: of the centre in first radii, of the radii as logarithms.
        starts: (B, Q, 2) float32 x, y in 0..1 of the image.
        shape: height and width of the finest map.

    Returns:
        (B, Q, 4) float32: centre x, y and the two radii in 0..1 of the image.
    """
    unit = RADIUS / ops.cast(ops.stack([shape[1], shape[0]]), "float32")
    radii = unit * ops.exp(ops.clip(changes[..., 2:], -LARGEST, LARGEST))
    return ops.concatenate([starts + unit * changes[..., :2], radii], axis=-1)


def at_points(places: Tensor, points: Tensor) -> Tensor:
    """What ellipses add to the logits of masks.

    Args:
        places: (B, Q, 4) of `ellipses`.
        points: (B, P, 2) float32 x, y in 0..1 of the image.

    Returns:
        (B, Q, P) float32.
    """
    return _height(*(_apart(places, axis, points[:, None, :, axis]) for axis in (0, 1)))


def on_map(places: Tensor, shape: tuple[Any, Any]) -> Tensor:
    """The same at the positions of a map of a height and width: (B, Q, h, w)."""
    x, y = (
        _apart(places, axis, (ops.arange(size, dtype="float32") + 0.5) / ops.cast(size, "float32"))
        for axis, size in ((0, shape[1]), (1, shape[0]))
    )
    return _height(x[:, :, None], y[..., None])


def _apart(places: Tensor, axis: int, where: Tensor) -> Tensor:
    """Squared distances from centres along an axis, in radii."""
    return ops.square((where - places[..., axis, None]) / places[..., axis + 2, None])


def _height(x: Tensor, y: Tensor) -> Tensor:
    """Falls like a paraboloid inside, outside slowly and without end: what is far still pulls."""
    apart = x + y
    return HEIGHT * ops.where(apart < 1.0, 1.0 - apart, -ops.log(ops.maximum(apart, 1.0)))


def centre_loss(logits: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of centres ("Objects as Points", equation 1), by the number of objects.

    Args:
        logits: (B, h, w) float32.
        boxes: (B, M, 4) float32 xyxy in 0..1 of the image.
        labels: (B, M), negative for padding.

    Returns:
        Scalar.
    """
    near = []
    _, height, width = ops.shape(logits)
    for axis, size in ((0, width), (1, height)):
        cells = ops.arange(size, dtype="float32")
        size = ops.cast(size, "float32")
        low, high = (boxes[..., axis + end] * size for end in (0, 2))
        centre = ops.clip(ops.floor((low + high) / 2.0), 0.0, size - 1.0)
        spread = ops.maximum(SPREAD * (high - low), 0.1)  # then 0 in the next position
        near.append(ops.exp(-0.5 * ops.square((cells - centre[..., None]) / spread[..., None])))
    valid = ops.cast(labels >= 0, "float32")
    each = valid[..., None, None] * near[1][..., None] * near[0][:, :, None]
    likely = ops.max(each, axis=1, initial=0.0)  # 0 where M is
    is_centre = likely >= 1.0
    missed = ops.softplus(-logits) * (1.0 - ops.sigmoid(logits)) ** POSITIVE
    found = ops.softplus(logits) * ops.sigmoid(logits) ** POSITIVE * (1.0 - likely) ** NEGATIVE
    total = ops.sum(ops.where(is_centre, missed, found))
    return total / loss_normalizer(ops.sum(valid))
