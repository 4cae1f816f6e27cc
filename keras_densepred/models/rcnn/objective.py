"""What two-stage detectors learn from: targets, samples and losses of both stages."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.dynamic import DynamicTraining
from keras_densepred.models.rcnn.regions import Sample, Truth, draw_rows, sample_regions
from keras_densepred.ops.box_masks import crop_masks
from keras_densepred.ops.loops import switch
from keras_densepred.ops.nms import gather_rows
from keras_densepred.runtime.replicas import loss_for_logs, loss_normalizer

Tensor = Any

# The first stage: "Faster R-CNN", section 3.1.
RPN_POSITIVE_IOU, RPN_NEGATIVE_IOU = 0.7, 0.3
RPN_SAMPLES, RPN_MOST_POSITIVE = 256, 128
TRAIN_PRE_NMS = 2000  # anchors of a level that may become proposals
GIOU_WEIGHT = 10.0  # of a loss between 0 and 2 beside sums of four deltas (MMDetection)


class TwoStageObjective:
    """Mixin, before `keras.Model`: the losses of `TwoStageDetector`, whose attributes it reads.

    Training looks at a random sample of the proposals and needs the objects for it, so the second
    stage runs here and not in `call`.
    """

    # Of the detector: its arguments and layers, ...
    stages: tuple[tuple[float, tuple[float, ...], float], ...]
    num_classes: int
    bounding_box_format: str
    samples: int
    box_loss: str
    with_masks: bool
    dynamic_training: DynamicTraining | None
    seed_generator: keras.random.SeedGenerator
    loss_trackers: list[keras.metrics.Mean]
    losses: list[Tensor]
    # ... and the parts of its graph.
    _anchors: Callable[..., list[Tensor]]
    _propose: Callable[..., tuple[Tensor, Tensor]]
    _box_head: Callable[..., tuple[Tensor, Tensor]]
    _mask_head: Callable[..., Tensor]
    _of_class: Callable[[Tensor, Tensor], Tensor]
    _stds: Callable[[int], Tensor]

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Any],
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """The sum of all stages' losses, each divided by the regions that the whole batch sampled.

        Args:
            x: (B, H, W, 3) images.
            y: `"boxes"` (B, M, 4) in `bounding_box_format`, `"labels"` (B, M), padded with -1, and
                for masks `"masks"` (B, M, S, S), 1 on the object and else 0, each from edge to edge
                of its box.
            y_pred: what `call` returns.
            sample_weight: not taken.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss; a batch without any object has that of its background.

        Raises:
            ValueError: if `sample_weight` is given, or `y` lacks a key.
        """
        if sample_weight is not None:
            raise ValueError("Detectors weigh regions themselves: fit without `sample_weight`.")
        wanted = {"boxes", "labels", "masks"} if self.with_masks else {"boxes", "labels"}
        if wanted - set(y):
            raise ValueError(
                f"The targets hold {sorted(y)}; fit on (images, {{{', '.join(sorted(wanted))}}})."
            )
        height, width = ops.shape(x)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            y["boxes"], self.bounding_box_format, "xyxy", height=height, width=width
        )
        truth = Truth(
            ops.cast(boxes, "float32"),
            ops.cast(y["labels"], "int32"),
            y["masks"] if self.with_masks else None,
        )
        parts = self._first_stage_losses(y_pred, truth, height, width)
        parts += self._second_stage_losses(x, y_pred, truth, training)
        for tracker, part in zip(self.loss_trackers, parts, strict=True):
            tracker.update_state(loss_for_logs(part))
        total: Tensor = sum(parts)
        for extra in self.losses:
            total = total + ops.sum(extra)
        return total

    def _first_stage_losses(
        self, outputs: dict[str, Any], truth: Truth, height: int | Tensor, width: int | Tensor
    ) -> list[Tensor]:
        anchors = ops.concatenate(self._anchors(height, width), axis=0)
        logits = ops.concatenate(list(outputs["objectness"].values()), axis=1)
        deltas = ops.concatenate(list(outputs["deltas"].values()), axis=1)
        targets, labels = anchor_ops.assign_targets(
            anchors,
            truth.boxes,
            ops.where(truth.labels >= 0, 0, -1),
            RPN_POSITIVE_IOU,
            RPN_NEGATIVE_IOU,
            RPN_NEGATIVE_IOU,
        )
        index, drawn = draw_rows(
            keras.random.uniform(ops.shape(logits), seed=self.seed_generator),
            labels >= 0,
            labels == anchor_ops.BACKGROUND,
            RPN_SAMPLES,
            RPN_MOST_POSITIVE,
        )
        positive = ops.cast(gather_rows(labels, index) >= 0, "float32")
        drawn = ops.cast(drawn, "float32")
        positive = positive * drawn
        objectness = losses.sigmoid_cross_entropy(gather_rows(logits, index), positive)
        error = gather_rows(deltas, index) - gather_rows(targets, index)
        normalizer = loss_normalizer(ops.sum(drawn))
        return [
            ops.sum(objectness * drawn) / normalizer,
            ops.sum(losses.smooth_l1(error, 0.0) * positive) / normalizer,
        ]

    def _second_stage_losses(
        self, images: Tensor, outputs: dict[str, Any], truth: Truth, training: bool
    ) -> list[Tensor]:
        height, width = ops.shape(images)[1:3]
        boxes, valid = self._propose(outputs, images, TRAIN_PRE_NMS)
        parts = []
        for stage, (positive_iou, _, weight) in enumerate(self.stages):
            if self.dynamic_training is not None:
                positive_iou = ops.convert_to_tensor(self.dynamic_training.iou)
            shape = (ops.shape(boxes)[0], boxes.shape[1] + truth.labels.shape[1])
            sample, overlaps = sample_regions(
                keras.random.uniform(shape, seed=self.seed_generator),
                boxes,
                valid,
                truth,
                self.num_classes,
                positive_iou,
                self.samples,
                self.samples // 4,
            )
            logits, deltas = self._box_head(stage, outputs["features"], sample.boxes, training)
            parts += [
                weight * part
                for part in self._box_losses(stage, sample, truth, logits, deltas, overlaps)
            ]
            if self.with_masks:
                part = self._mask_loss(stage, outputs["features"], sample, truth)
                parts.append(weight * part)
            if stage < len(self.stages) - 1:
                best = ops.cast(ops.argmax(logits[..., :-1], axis=-1), "int32")
                best = ops.where(sample.positive, sample.labels, best)
                shifts = ops.stop_gradient(self._of_class(deltas, best))
                boxes = anchor_ops.decode_boxes(sample.boxes, shifts, height, width)
                # Objects' own boxes join the sample of every stage anew.
                valid = ops.logical_and(sample.valid, ops.logical_not(sample.is_truth))
        return parts

    def _box_losses(
        self,
        stage: int,
        sample: Sample,
        truth: Truth,
        logits: Tensor,
        deltas: Tensor,
        overlaps: Tensor,
    ) -> list[Tensor]:
        valid = ops.cast(sample.valid, "float32")
        positive = ops.cast(sample.positive, "float32")
        normalizer = loss_normalizer(ops.sum(valid))
        deltas = self._of_class(deltas, sample.labels)
        matched = gather_rows(truth.boxes, sample.matched)
        targets = anchor_ops.encode_boxes(sample.boxes, matched) / self._stds(stage)
        if self.box_loss == "giou":
            # As far as targets go, and not cut at the image: the gradient would end there.
            decoded = anchor_ops.decode_boxes(sample.boxes, deltas)
            box = GIOU_WEIGHT * losses.giou_loss(decoded, matched)
        else:
            beta: float | Tensor = 0.0 if self.box_loss == "l1" else 1.0
            if self.dynamic_training is not None:
                self.dynamic_training.update(overlaps, targets, sample.positive)
                beta = ops.convert_to_tensor(self.dynamic_training.beta)
            box = losses.smooth_l1(deltas / self._stds(stage) - targets, beta)
        return [
            ops.sum(losses.cross_entropy(logits, sample.labels) * valid) / normalizer,
            ops.sum(box * positive) / normalizer,
        ]

    def _mask_loss(
        self, stage: int, features: dict[str, Tensor], sample: Sample, truth: Truth
    ) -> Tensor:
        """Of the regions of objects, which stand first and mostly are far fewer than there may be.

        The mask head is the dearest part of training, so it runs on the first eighth, quarter or
        half of the places where these hold all regions of objects: the same loss for less.
        """
        places = min(self.samples // 4, sample.labels.shape[1])
        sizes = sorted({-(-places // share) for share in (8, 4, 2, 1)})
        positive = ops.sum(ops.cast(sample.positive, "int32"), axis=1)
        most = ops.max(positive)

        def total_of(count: int) -> Callable[[], Tensor]:
            def total() -> Tensor:
                return self._masks_error(stage, features, sample, truth, count)

            return total

        index = sum((ops.cast(most > size, "int32") for size in sizes[:-1]), 0)
        error = switch(index, [total_of(size) for size in sizes])
        return error / loss_normalizer(ops.cast(ops.sum(positive), "float32"))

    def _masks_error(
        self,
        stage: int,
        features: dict[str, Tensor],
        sample: Sample,
        truth: Truth,
        count: int,
    ) -> Tensor:
        """Sum of the mask losses of the first `count` regions of each image."""
        boxes, labels = sample.boxes[:, :count], sample.labels[:, :count]
        matched, positive = sample.matched[:, :count], sample.positive[:, :count]
        logits = self._mask_head(stage, features, boxes, labels)
        targets = crop_masks(
            gather_rows(truth.masks, matched),
            gather_rows(truth.boxes, matched),
            boxes,
            logits.shape[-1],
        )
        targets = ops.cast(targets >= 0.5, "float32")
        each = ops.mean(losses.sigmoid_cross_entropy(logits, targets), axis=(2, 3))
        return ops.sum(each * ops.cast(positive, "float32"))
