"""The second stage of two-stage detectors: what is in a region, where in it, and its mask."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.dynamic import DynamicTraining
from keras_densepred.models.rcnn.heads import BOX_SIZE, MASK_SIZE, BoxHead, MaskHead
from keras_densepred.models.rcnn.regions import Sample, Truth, sample_regions
from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.box_masks import crop_masks
from keras_densepred.ops.boxes import decode_boxes, encode_boxes, giou_loss, smooth_l1
from keras_densepred.ops.loops import switch
from keras_densepred.ops.roi_align import roi_align
from keras_densepred.ops.rows import gather_rows
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

GIOU_WEIGHT = 10.0  # of a loss between 0 and 2 beside sums of four deltas (MMDetection)


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """What distinguishes the stages of a cascade.

    Attributes:
        positive_iou: least overlap of a region with its object.
        deviations: standard deviations by which deltas are divided.
        weight: of the stage's losses.
    """

    positive_iou: float
    deviations: tuple[float, float, float, float]
    weight: float


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What one stage makes of a sample of regions.

    Attributes:
        losses: by their names in the logs.
        sample: the regions that trained.
        logits: (B, R, C + 1) float32.
        deltas: (B, R, boxes, 4) float32, or None of a head without regression.
    """

    losses: dict[str, Tensor]
    sample: Sample
    logits: Tensor
    deltas: Tensor


class RegionStage(keras.layers.Layer):
    """A box head, its mask head, and what they learn: all of Faster R-CNN's second stage.

    Cascade R-CNN has three in a row, each on the boxes of the one before. Training looks at a
    random sample of the regions and needs the objects for it, so it happens in `compute_losses`.

    Args:
        box_head: built.
        mask_head: built, or None.
        settings: of this stage.
        suffix: of the losses' names, such as `"_1"`.
        levels: pyramid levels that regions are pooled from, finest first.
        sampling_ratio: points on a side of a RoIAlign bin.
        num_samples: regions of an image that train, a quarter of them of objects.
        box_loss: a name of `losses.BOX_LOSSES`.
        dynamic: sets overlap and beta in Dynamic R-CNN, or None.
        seed_generator: draws the sample.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        box_head: BoxHead,
        mask_head: MaskHead | None,
        settings: StageSettings,
        suffix: str,
        levels: Sequence[int],
        sampling_ratio: int,
        num_samples: int,
        box_loss: str,
        dynamic: DynamicTraining | None,
        seed_generator: keras.random.SeedGenerator,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.box_head = box_head
        self.mask_head = mask_head
        self.settings = settings
        self.suffix = suffix
        self.levels = tuple(levels)
        self.sampling_ratio = sampling_ratio
        self.num_samples = num_samples
        self.box_loss = box_loss
        self.dynamic = dynamic
        self.seed_generator = seed_generator
        self.built = True

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The keys of the losses."""
        kinds = {"class": True, "box": self.box_head.regression, "mask": self.mask_head is not None}
        return tuple(f"{kind}_loss{self.suffix}" for kind, there in kinds.items() if there)

    def call(
        self, features: dict[str, Tensor], boxes: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, N, C + 1) and deltas (B, N, boxes, 4), if any, of boxes (B, N, 4)."""
        batch, num = ops.shape(boxes)[:2]
        logits, deltas = self.box_head(self._pool(features, boxes, BOX_SIZE), training=training)
        logits = ops.reshape(logits, (batch, num, self.box_head.num_classes + 1))
        if deltas is None:
            return logits, None
        deltas = ops.reshape(deltas, (batch, num, self.box_head.num_boxes, 4))
        return logits, deltas * self._deviations()

    def masks(self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask logits (B, N, 28, 28) of boxes (B, N, 4) and labels (B, N), 0 <= label < C."""
        batch, num = ops.shape(boxes)[:2]
        labels = ops.reshape(labels, (-1,))
        assert self.mask_head is not None
        logits = self.mask_head(self._pool(features, boxes, MASK_SIZE), labels)
        return ops.reshape(logits, (batch, num, 2 * MASK_SIZE, 2 * MASK_SIZE))

    def refine(
        self,
        boxes: Tensor,
        logits: Tensor,
        deltas: Tensor,
        height: int | Tensor,
        width: int | Tensor,
        sample: Sample | None = None,
    ) -> Tensor:
        """The boxes that the next stage looks at, (B, N, 4) like those of this one.

        Each follows the deltas of its best class, or of its object's where a `sample` is given.
        """
        best = argmax(logits[..., :-1], axis=-1)
        if sample is not None:
            best = ops.where(sample.positive, sample.labels, best)
            deltas = ops.stop_gradient(deltas)
        return decode_boxes(boxes, self._of_class(deltas, best), height, width)

    def compute_losses(
        self,
        features: dict[str, Tensor],
        boxes: Tensor,
        valid: Tensor,
        truth: Truth,
        training: bool,
    ) -> StageResult:
        """Draws a sample of regions and objects' own boxes, and computes its losses.

        Args:
            features: level to map.
            boxes: (B, P, 4) xyxy in pixels.
            valid: (B, P) bool, which of them there are.
            truth: the objects.
            training: whether this is a training step.

        Returns:
            Losses divided by the regions that the whole batch sampled, those of masks by its
            regions of objects.
        """
        positive_iou: float | Tensor = self.settings.positive_iou
        if self.dynamic is not None:
            positive_iou = ops.convert_to_tensor(self.dynamic.iou)
        shape = (ops.shape(boxes)[0], boxes.shape[1] + truth.labels.shape[1])
        sample, overlaps = sample_regions(
            keras.random.uniform(shape, seed=self.seed_generator),
            boxes,
            valid,
            truth,
            self.box_head.num_classes,
            positive_iou,
            self.num_samples,
            self.num_samples // 4,
        )
        logits, deltas = self(features, sample.boxes, training=training)
        parts = self._box_losses(sample, truth, logits, deltas, overlaps)
        if self.mask_head is not None:
            parts.append(self.mask_loss(features, sample, truth))
        weighted = (self.settings.weight * part for part in parts)
        return StageResult(
            dict(zip(self.loss_names, weighted, strict=True)), sample, logits, deltas
        )

    def _box_losses(
        self, sample: Sample, truth: Truth, logits: Tensor, deltas: Tensor, overlaps: Tensor
    ) -> list[Tensor]:
        valid = ops.cast(sample.valid, "float32")
        positive = ops.cast(sample.positive, "float32")
        normalizer = loss_normalizer(ops.sum(valid))
        of_class = ops.sum(losses.cross_entropy(logits, sample.labels) * valid) / normalizer
        if deltas is None:
            return [of_class]
        deltas = self._of_class(deltas, sample.labels)
        matched = gather_rows(truth.boxes, sample.matched)
        targets = encode_boxes(sample.boxes, matched) / self._deviations()
        if self.box_loss == "giou":
            # As far as targets go, and not cut at the image: the gradient would end there.
            decoded = decode_boxes(sample.boxes, deltas)
            box = GIOU_WEIGHT * giou_loss(decoded, matched)
        else:
            beta: float | Tensor = 0.0 if self.box_loss == "l1" else 1.0
            if self.dynamic is not None:
                self.dynamic.update(overlaps, targets, sample.positive)
                beta = ops.convert_to_tensor(self.dynamic.beta)
            box = smooth_l1(deltas / self._deviations() - targets, beta)
        return [of_class, ops.sum(box * positive) / normalizer]

    def mask_loss(self, features: dict[str, Tensor], sample: Sample, truth: Truth) -> Tensor:
        """Mean over the regions of objects, which come first in a sample.

        The mask head is the most expensive part of training, and there are mostly far fewer such
        regions than there may be: see `on_filled_places`.
        """
        places = min(self.num_samples // 4, sample.labels.shape[1])
        positive = ops.sum(ops.cast(sample.positive, "int32"), axis=1)
        error_of = functools.partial(self.mask_error, features, sample, truth)
        error = on_filled_places(error_of, ops.max(positive), places)
        return error / loss_normalizer(ops.cast(ops.sum(positive), "float32"))

    def mask_error(
        self, features: dict[str, Tensor], sample: Sample, truth: Truth, count: int
    ) -> Tensor:
        """Sum of the mask losses of the first `count` regions of each image."""
        boxes, labels = sample.boxes[:, :count], sample.labels[:, :count]
        matched, positive = sample.matched[:, :count], sample.positive[:, :count]
        labels = ops.minimum(labels, self.box_head.num_classes - 1)  # that of the background
        logits = self.masks(features, boxes, labels)
        targets = crop_masks(
            gather_rows(truth.masks, matched),
            gather_rows(truth.boxes, matched),
            boxes,
            logits.shape[-1],
        )
        targets = ops.cast(targets >= 0.5, "float32")
        each = ops.mean(losses.sigmoid_cross_entropy(logits, targets), axis=(2, 3))
        return ops.sum(each * ops.cast(positive, "float32"))

    def _pool(self, features: dict[str, Tensor], boxes: Tensor, size: int) -> Tensor:
        return pool_regions(features, self.levels, boxes, size, self.sampling_ratio)

    def _deviations(self) -> Tensor:
        return ops.convert_to_tensor(self.settings.deviations, "float32")

    def _of_class(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """(B, N, boxes, 4) -> (B, N, 4): the box of a label, any where that is the background."""
        if self.box_head.class_agnostic:
            return deltas[:, :, 0]
        is_label = labels[..., None] == ops.arange(self.box_head.num_classes, dtype="int32")
        return ops.sum(ops.where(is_label[..., None], deltas, 0.0), axis=2)


def pool_regions(
    features: dict[str, Tensor],
    levels: Sequence[int],
    boxes: Tensor,
    size: int,
    sampling_ratio: int,
    images: Tensor | None = None,
) -> Tensor:
    """What `ops.roi_align` makes of regions (B, N, 4), as (B * N, size, size, channels)."""
    pooled = roi_align(
        [features[f"P{level}"] for level in levels],
        boxes,
        [2**level for level in levels],
        size,
        sampling_ratio,
        images=images,
    )
    return ops.reshape(pooled, (-1, size, size, pooled.shape[-1]))


def on_filled_places(
    error_of: Callable[[int], Tensor],
    filled: Tensor,
    places: int,
    shares: tuple[int, ...] = (8, 4, 2, 1),
) -> Tensor:
    """The error of all places, computed on no more of them than an eighth, quarter or half.

    Where these hold all places that are filled, it is the same error for less.

    Args:
        error_of: a number of places to the sum of their errors; those that are not filled add 0.
        filled: scalar int32, places that are filled, the first ones.
        places: of them all.
        shares: denominators, the last one 1; each is a program of its own to compile.
    """
    sizes = sorted({-(-places // share) for share in shares})
    index = sum((ops.cast(filled > size, "int32") for size in sizes[:-1]), 0)
    return switch(index, [functools.partial(error_of, size) for size in sizes])
