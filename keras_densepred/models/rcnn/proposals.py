"""The first stage of two-stage detectors: region proposals, and what the proposing head learns."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.heads import RegionProposalHead
from keras_densepred.models.rcnn.regions import Truth, draw_rows, propose
from keras_densepred.ops.boxes import smooth_l1
from keras_densepred.ops.rows import gather_rows
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

# "Faster R-CNN", section 3.1.
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
SAMPLES, MOST_POSITIVE = 256, 128
# Anchors of a level that may become proposals: "Feature Pyramid Networks", section 4.1.
TRAIN_PRE_NMS, TEST_PRE_NMS = 2000, 1000


class ProposalStage(keras.layers.Layer):
    """The region proposal network: which anchors hold an object, and where in them it is.

    Args:
        head: built; shared by all levels.
        levels: pyramid levels, finest first.
        anchor_scale: side of the square anchor over its level's stride.
        num_proposals: regions of an image that reach the second stage.
        seed_generator: draws the anchors that train.
        beta: of the boxes' smooth L1 loss; 0: L1.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        head: RegionProposalHead,
        levels: Sequence[int],
        anchor_scale: float,
        num_proposals: int,
        seed_generator: keras.random.SeedGenerator,
        beta: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.head = head
        self.levels = tuple(levels)
        self.anchor_scale = anchor_scale
        self.num_proposals = num_proposals
        self.seed_generator = seed_generator
        self.beta = beta
        self.built = True

    def call(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Objectness logits, level to (B, A_l), and deltas, level to (B, A_l, 4), float32."""
        objectness, deltas = {}, {}
        for level in self.levels:
            name = f"P{level}"
            logits, shifts = self.head(features[name])
            height, width = ops.shape(logits)[1:3]
            count = height * width * self.head.num_anchors
            objectness[name] = ops.reshape(ops.cast(logits, "float32"), (-1, count))
            deltas[name] = ops.reshape(ops.cast(shifts, "float32"), (-1, count, 4))
        return objectness, deltas

    def propose(
        self, outputs: dict[str, Any], images: Tensor, pre_nms_top_k: int
    ) -> tuple[Tensor, Tensor]:
        """Proposals of a batch, as `regions.propose` returns them.

        Args:
            outputs: with `"objectness"` and `"deltas"`, as `call` returns them.
            images: (B, H, W, 3); only their shape is read.
            pre_nms_top_k: anchors of a level that take part.
        """
        height, width = ops.shape(images)[1:3]
        return propose(
            list(outputs["objectness"].values()),
            list(outputs["deltas"].values()),
            self._anchors(height, width),
            height,
            width,
            pre_nms_top_k,
            self.num_proposals,
        )

    def compute_losses(
        self, outputs: dict[str, Any], images: Tensor, truth: Truth
    ) -> dict[str, Tensor]:
        """`"rpn_objectness_loss"` and `"rpn_box_loss"` of a random sample of the anchors.

        Args:
            outputs: with `"objectness"` and `"deltas"`, as `call` returns them.
            images: (B, H, W, 3); only their shape is read.
            truth: the objects.
        """
        anchors = ops.concatenate(self._anchors(*ops.shape(images)[1:3]), axis=0)
        logits = ops.concatenate(list(outputs["objectness"].values()), axis=1)
        deltas = ops.concatenate(list(outputs["deltas"].values()), axis=1)
        targets, labels = anchor_ops.assign_targets(
            anchors,
            truth.boxes,
            ops.where(truth.labels >= 0, 0, -1),
            POSITIVE_IOU,
            NEGATIVE_IOU,
            NEGATIVE_IOU,
        )
        index, drawn = draw_rows(
            keras.random.uniform(ops.shape(logits), seed=self.seed_generator),
            labels >= 0,
            labels == anchor_ops.BACKGROUND,
            SAMPLES,
            MOST_POSITIVE,
        )
        positive = ops.cast(gather_rows(labels, index) >= 0, "float32")
        drawn = ops.cast(drawn, "float32")
        positive = positive * drawn
        objectness = losses.sigmoid_cross_entropy(gather_rows(logits, index), positive)
        error = gather_rows(deltas, index) - gather_rows(targets, index)
        normalizer = loss_normalizer(ops.sum(drawn))
        return {
            "rpn_objectness_loss": ops.sum(objectness * drawn) / normalizer,
            "rpn_box_loss": ops.sum(smooth_l1(error, self.beta) * positive) / normalizer,
        }

    def _anchors(self, height: int | Tensor, width: int | Tensor) -> list[Tensor]:
        return [
            anchor_ops.anchor_boxes(height, width, (level,), self.anchor_scale, (1.0,))
            for level in self.levels
        ]
