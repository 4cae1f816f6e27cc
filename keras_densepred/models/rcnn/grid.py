"""Grid R-CNN's localisation: boxes from nine grid points, and what the head of them learns.

Lu et al., "Grid R-CNN" (CVPR 2019), section 3, and "Grid R-CNN Plus: Faster and Better" (2019): the
heat maps cover a region enlarged to twice its size, of which each point sees a window as large as
the region itself.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.grid_head import GRID_SIZE, HEAT_SIZE, POINTS, SIDE, GridHead
from keras_densepred.models.rcnn.region_stage import on_filled_places, pool_regions
from keras_densepred.models.rcnn.regions import Sample, Truth, draw_rows
from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import clip_boxes
from keras_densepred.ops.rows import gather_rows
from keras_densepred.runtime.replicas import devices_of_a_replica, loss_normalizer

Tensor = Any

GRID_WEIGHT = 15.0  # of the heat maps' mean cross-entropies
JITTER = 0.15  # of a region's size, largest shift of its centre and change of its sides
SMALLEST = 3.0  # pixels; an enlarged region of such a side has no targets
# Not all four as for masks: XLA took 79 s for a small training step with four, 40 with these two.
SHARES = (4, 1)
WHOLE = 2 * HEAT_SIZE  # cells on a side of the enlarged region
# First cell of the window of the points at each index along an axis.
STARTS = np.array([0, HEAT_SIZE // 2, HEAT_SIZE], "int32")


def jitter_boxes(
    random: Tensor, boxes: Tensor, height: int | Tensor, width: int | Tensor
) -> Tensor:
    """Regions moved and resized at random, so that the head does not only see good ones.

    Args:
        random: (..., 4) in [-`JITTER`, `JITTER`]: shifts of the centre along x and y and changes of
            width and height, all in shares of the size.
        boxes: (..., 4) xyxy in pixels.
        height: of the image in pixels; boxes end at the centre of its last row.
        width: likewise.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    centre = 0.5 * (boxes[..., :2] + boxes[..., 2:]) + random[..., :2] * size
    half = 0.5 * size * (1.0 + random[..., 2:])
    return clip_boxes(ops.concatenate([centre - half, centre + half], -1), height - 1, width - 1)


def grid_targets(boxes: Tensor, objects: Tensor) -> Tensor:
    """The cells that the points of an object fill: a plus of five around each, inside its window.

    Args:
        boxes: (N, 4) xyxy in pixels, the regions.
        objects: (N, 4), the boxes of their objects.

    Returns:
        (N, 28, 28, 9) float32, rows before columns, 1 on a point; all 0 for regions that are too
        thin, and for points that lie outside of their windows.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    begin = boxes[:, :2] - 0.5 * size
    low, high = objects[:, :2], objects[:, 2:]
    lines = ops.stack([low, 0.5 * (low + high), high], axis=1)
    cell = (lines - begin[:, None]) / ops.maximum(2.0 * size, 1e-6)[:, None] * WHOLE
    # The cast cuts off towards 0: what lies just left of the enlarged region marks column 0.
    cell = ops.cast(ops.clip(cell, -2.0 * WHOLE, 2.0 * WHOLE), "int32")
    windows = ops.convert_to_tensor(STARTS[:, None] + np.arange(HEAT_SIZE, dtype="int32"))
    distance = ops.square(windows[None, :, :, None] - cell[:, :, None])  # (N, 3, 28, 2)
    of_x, of_y = distance[..., 0], distance[..., 1]
    squared = of_y[:, None, :, :, None] + of_x[:, :, None, None]  # (N, 3, 3, 28, 28)
    wide = ops.all(2.0 * size > SMALLEST, axis=-1)[:, None, None, None, None]
    filled = ops.cast(ops.logical_and(squared <= 1, wide), "float32")
    filled = ops.reshape(filled, (-1, POINTS, HEAT_SIZE, HEAT_SIZE))
    return ops.transpose(filled, (0, 2, 3, 1))


def decode_grid(logits: Tensor, boxes: Tensor) -> Tensor:
    """Boxes from heat maps: each side is the mean of three points, weighted by their probability.

    Args:
        logits: (N, 28, 28, 9) float32.
        boxes: (N, 4) xyxy in pixels, the regions.

    Returns:
        (N, 4), not cut at the image.
    """
    cells = ops.reshape(logits, (-1, HEAT_SIZE**2, POINTS))
    place = argmax(cells, axis=1)
    by_axis = (-1, SIDE, SIDE)  # x index, y index
    place = ops.reshape(
        ops.stack([place % HEAT_SIZE, place // HEAT_SIZE], 1), (-1, 2, *by_axis[1:])
    )
    starts = np.stack(np.meshgrid(STARTS, STARTS, indexing="ij"))
    cell = ops.cast(place + ops.convert_to_tensor(starts), "float32") + 0.5
    size = (boxes[:, 2:] - boxes[:, :2])[..., None, None]
    begin = boxes[:, :2][..., None, None] - 0.5 * size
    x, y = ops.unstack(begin + cell / HEAT_SIZE * size, 2, axis=1)
    # Shares of probabilities, which may be too small for float32, from their logarithms.
    vote = ops.reshape(ops.log_sigmoid(ops.max(cells, axis=1)), by_axis)

    def side(values: Tensor, votes: Tensor) -> Tensor:
        return ops.sum(values * ops.softmax(votes, axis=-1), axis=-1)

    sides = [side(x[:, 0], vote[:, 0]), side(y[:, :, 0], vote[:, :, 0])]
    sides += [side(x[:, -1], vote[:, -1]), side(y[:, :, -1], vote[:, :, -1])]
    return ops.stack(sides, axis=-1)


class GridStage(keras.layers.Layer):
    """The grid head, and what it learns: where in a region its object is.

    Args:
        head: built.
        levels: pyramid levels that regions are pooled from, finest first.
        sampling_ratio: points on a side of a RoIAlign bin.
        num_samples: regions of a device's images that train, at most.
        most_positive: regions of objects in an image's sample, at most.
        seed_generator: draws these regions and moves them.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    loss_names = ("grid_loss",)

    def __init__(
        self,
        head: GridHead,
        levels: Sequence[int],
        sampling_ratio: int,
        num_samples: int,
        most_positive: int,
        seed_generator: keras.random.SeedGenerator,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.head = head
        self.levels = tuple(levels)
        self.sampling_ratio = sampling_ratio
        self.num_samples = num_samples
        self.most_positive = most_positive
        self.seed_generator = seed_generator
        self.built = True

    def call(
        self,
        features: dict[str, Tensor],
        boxes: Tensor,
        height: int | Tensor,
        width: int | Tensor,
    ) -> Tensor:
        """Better boxes (B, N, 4), inside the image, for boxes (B, N, 4) xyxy in pixels."""
        logits = self.head(self._pool(features, boxes))
        found = decode_grid(logits, ops.reshape(boxes, (-1, 4)))
        return clip_boxes(ops.reshape(found, ops.shape(boxes)), height, width)

    def compute_losses(
        self,
        features: dict[str, Tensor],
        sample: Sample,
        truth: Truth,
        height: int | Tensor,
        width: int | Tensor,
    ) -> dict[str, Tensor]:
        """The cross-entropy of the heat maps, of fused points and of those before.

        Of all regions of objects `num_samples` are drawn and jittered. They are mostly far fewer,
        and the head is the most expensive part of training: see `on_filled_places`.

        Args:
            features: level to map.
            sample: of the box head, whose own boxes stay as they are.
            truth: the objects.
            height: of the images in pixels.
            width: likewise.

        Returns:
            `"grid_loss"`, divided by the regions that the whole batch drew.
        """
        places = min(self.most_positive, sample.labels.shape[1])  # regions of objects come first
        # A row for each device, which draws of its own images' regions.
        devices = devices_of_a_replica()
        positive = ops.reshape(sample.positive[:, :places], (devices, -1))
        random = keras.random.uniform(ops.shape(positive), seed=self.seed_generator)
        nothing = ops.zeros_like(positive)
        index, drawn = draw_rows(random, positive, nothing, self.num_samples, self.num_samples)
        boxes = ops.reshape(sample.boxes[:, :places], (devices, -1, 4))
        objects = gather_rows(truth.boxes, sample.matched[:, :places])
        objects = gather_rows(ops.reshape(objects, (devices, -1, 4)), index)
        shape = (devices, index.shape[1], 4)
        moved = keras.random.uniform(shape, -JITTER, JITTER, seed=self.seed_generator)
        boxes = jitter_boxes(moved, gather_rows(boxes, index), height, width)
        boxes = ops.where(drawn[..., None], boxes, 0.0)
        weight = ops.cast(drawn, "float32")

        def error(count: int) -> Tensor:
            regions = self._pool(features, boxes[:, :count], index[:, :count] // places)
            targets = grid_targets(*(ops.reshape(x[:, :count], (-1, 4)) for x in (boxes, objects)))
            return ops.sum(
                self.heat_error(regions, targets) * ops.reshape(weight[:, :count], (-1,))
            )

        num = ops.sum(ops.cast(drawn, "int32"), axis=1)
        total = on_filled_places(error, ops.max(num), index.shape[1], SHARES)
        normalizer = loss_normalizer(ops.cast(ops.sum(num), "float32"))
        return {"grid_loss": GRID_WEIGHT * total / normalizer}

    def heat_error(self, regions: Tensor, targets: Tensor) -> Tensor:
        """(R,) sum of the mean cross-entropies with and without fusion, of each region.

        Args:
            regions: (R, 14, 14, channels).
            targets: (R, 28, 28, 9) float32.
        """
        points = self.head.points(regions)
        maps = (self.head.heat(points), self.head.heat(self.head.fuse(points)))
        return sum(
            ops.mean(losses.sigmoid_cross_entropy(logits, targets), axis=(1, 2, 3))
            for logits in maps
        )

    def _pool(
        self, features: dict[str, Tensor], boxes: Tensor, images: Tensor | None = None
    ) -> Tensor:
        return pool_regions(features, self.levels, boxes, GRID_SIZE, self.sampling_ratio, images)
