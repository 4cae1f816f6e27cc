"""What Faster, Mask and Cascade R-CNN share: graph, detection, compile; `objective.py`: losses.

    images -> pyramid -> proposals -> box head (Cascade: three, each on the last one's boxes)
                                   -> mask head, on the regions of objects

Training looks at a random sample of the proposals and needs the objects for it, so it happens where
the losses are computed; `call` ends with the first stage unless it is asked for detections. All
shapes are static: JAX and XLA compile once for a size of images and a number of boxes.
"""

from typing import Any

import keras
from keras import ops

from keras_densepred.layers.residual import ReplicaSeedGenerator
from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.compiling import CompiledAsSaved
from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.dynamic import DynamicTraining
from keras_densepred.models.rcnn.heads import (
    BOX_SIZE,
    MASK_SIZE,
    BoxHead,
    MaskHead,
    RegionProposalHead,
)
from keras_densepred.models.rcnn.objective import TwoStageObjective
from keras_densepred.models.rcnn.regions import propose
from keras_densepred.necks.fpn import FeaturePyramid
from keras_densepred.ops.nms import gather_rows, non_max_suppression
from keras_densepred.ops.roi_align import roi_align

Tensor = Any

# The first stage: "Faster R-CNN", section 3.1, and "Feature Pyramid Networks", section 4.1.
TEST_PRE_NMS = 1000  # anchors of a level that may become proposals
COARSEST_REGION_LEVEL = 5  # levels above serve proposals only

# One stage, and Cascade R-CNN's three (Cai and Vasconcelos, section 4): overlap of positive
# regions, standard deviations that divide their deltas, weight of the stage's losses.
Stages = tuple[tuple[float, tuple[float, ...], float], ...]
SINGLE_STAGE: Stages = ((0.5, (0.1, 0.1, 0.2, 0.2), 1.0),)
CASCADE_STAGES: Stages = (
    (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)


def as_two_stage_pyramid(backbone: keras.Model) -> keras.Model:
    """The model whose levels the heads run on: `backbone` itself, or an FPN around it.

    Args:
        backbone: a pyramid with `min_level` and `max_level` (`DetectionPyramid`,
            `FeaturePyramid`, BiCSNet), or a pyramid backbone with levels to P5.

    Returns:
        `backbone` in the first case, otherwise `FeaturePyramid(backbone)` from its finest level,
        P2 or coarser, to P6.

    Raises:
        ValueError: if `backbone` is neither, or takes channels_first images.
    """
    if getattr(backbone, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"`backbone` {backbone.name!r} is channels_first; detectors here take channels_last "
            'images, so build the backbone with data_format="channels_last".'
        )
    if hasattr(backbone, "min_level") and hasattr(backbone, "max_level"):
        return backbone
    if not hasattr(backbone, "pyramid_outputs"):
        raise ValueError(
            f"`backbone` {backbone.name!r} is neither a pyramid nor a pyramid backbone (it has no "
            "`pyramid_outputs`); pass one of keras_densepred's backbones."
        )
    finest = max(2, min(int(level[1:]) for level in backbone.pyramid_outputs))
    return FeaturePyramid(backbone, min_level=finest, max_level=6)


class TwoStageDetector(TwoStageObjective, CompiledAsSaved, keras.Model):
    """Base of `FasterRCNN`, `MaskRCNN`, `CascadeRCNN` and `CascadeMaskRCNN`, which tell the rest.

    Args:
        backbone: a pyramid, or a backbone for an FPN (`as_two_stage_pyramid`).
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_convs: 3x3 convolutions of a box head, as wide as the pyramid.
        head_fcs: fully connected layers of a box head.
        head_width: units of these.
        head_norm: whether convolutions of box heads have batch norms.
        sync_batch_norm: whether replicas share the statistics of these in training.
        class_agnostic: whether a region has one box or one for each class; None: one in the
            cascades, else one for each class.
        box_loss: `"l1"`, `"smooth_l1"` (beta 1) or `"giou"` (on decoded boxes, weight 10) of the
            second stage; None: smooth L1 in the cascades, else L1. The first stage has L1.
        dynamic: whether overlaps and smooth L1's beta follow training (Dynamic R-CNN); needs one
            stage and smooth L1, which it then sets.
        rpn_width: filters of the first stage's convolution; by default the pyramid's channels.
        anchor_scale: side of the square anchor over its level's stride.
        num_proposals: regions of an image that reach the second stage.
        samples: regions of an image that train, a quarter of them of objects.
        sampling_ratio: points on a side of a RoIAlign bin.
        max_detections: detections of an image.
        confidence_threshold: least score of one.
        iou_threshold: overlap above which the lower-scoring box of a class goes.
        mask_convs: 3x3 convolutions of a mask head, where there are any.
        mask_width: filters of these; by default the pyramid's channels.
        dtype: dtype policy of the heads; by default the backbone's.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if an argument is outside of what is listed here.
    """

    stages: Stages = SINGLE_STAGE
    with_masks = False

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_convs: int = 0,
        head_fcs: int = 2,
        head_width: int = 1024,
        head_norm: bool = False,
        sync_batch_norm: bool = False,
        class_agnostic: bool | None = None,
        box_loss: str | None = None,
        dynamic: bool = False,
        rpn_width: int | None = None,
        anchor_scale: float = 8.0,
        num_proposals: int = 1000,
        samples: int = 512,
        sampling_ratio: int = 2,
        max_detections: int = 100,
        confidence_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        mask_convs: int = 4,
        mask_width: int | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        is_cascade = len(self.stages) > 1
        if box_loss is None:
            box_loss = "smooth_l1" if is_cascade or dynamic else "l1"
        class_agnostic = is_cascade if class_agnostic is None else class_agnostic
        if box_loss not in losses.BOX_LOSSES:
            raise ValueError(f"`box_loss` must be one of {losses.BOX_LOSSES}, got {box_loss!r}.")
        if dynamic and (is_cascade or box_loss != "smooth_l1"):
            raise ValueError(
                '`dynamic` is for one stage with `box_loss="smooth_l1"`; leave it out, or take '
                "FasterRCNN or MaskRCNN."
            )
        for name, value in (
            ("num_classes", num_classes),
            ("num_proposals", num_proposals),
            ("samples", samples // 4),
            ("max_detections", max_detections),
            ("sampling_ratio", sampling_ratio),
        ):
            if value < 1:
                raise ValueError(
                    f"`{name}` is too small: give {4 if name == 'samples' else 1} at least."
                )
        backbone = as_two_stage_pyramid(backbone)
        policy = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        super().__init__(dtype=policy, **kwargs)
        channels = next(iter(backbone.output.values())).shape[-1]
        rpn_width, mask_width = rpn_width or channels, mask_width or channels

        # === Layers ===
        self.backbone = backbone
        self.rpn_head = RegionProposalHead(
            len(anchor_ops.ASPECT_RATIOS), rpn_width, dtype=policy, name="rpn_head"
        )
        names = [f"_{n + 1}" for n in range(len(self.stages))] if is_cascade else [""]
        self.box_heads = [
            BoxHead(
                num_classes,
                head_convs,
                head_fcs,
                channels,
                head_width,
                norm=head_norm,
                sync_batch_norm=sync_batch_norm,
                class_agnostic=class_agnostic,
                dtype=policy,
                name=f"box_head{name}",
            )
            for name in names
        ]
        self.mask_heads = [
            MaskHead(num_classes, mask_convs, mask_width, dtype=policy, name=f"mask_head{name}")
            for name in names
            if self.with_masks
        ]
        self.dynamic_training = DynamicTraining(name="dynamic") if dynamic else None
        self.seed_generator = ReplicaSeedGenerator()
        self.loss_trackers = [
            keras.metrics.Mean(name=name)
            for name in (
                "rpn_objectness_loss",
                "rpn_box_loss",
                *(f"{kind}_loss{name}" for name in names for kind in self._kinds()),
            )
        ]

        # === Config ===
        self.num_classes = num_classes
        self.bounding_box_format = bounding_box_format
        self.head_convs = head_convs
        self.head_fcs = head_fcs
        self.head_width = head_width
        self.head_norm = head_norm
        self.sync_batch_norm = sync_batch_norm
        self.class_agnostic = class_agnostic
        self.box_loss = box_loss
        self.dynamic = dynamic
        self.rpn_width = rpn_width
        self.anchor_scale = anchor_scale
        self.num_proposals = num_proposals
        self.samples = samples
        self.sampling_ratio = sampling_ratio
        self.max_detections = max_detections
        self.confidence_threshold = confidence_threshold
        self.iou_threshold = iou_threshold
        self.mask_convs = mask_convs
        self.mask_width = mask_width
        self.pyramid_levels = tuple(range(backbone.min_level, backbone.max_level + 1))
        self.region_levels = tuple(
            level for level in self.pyramid_levels if level <= COARSEST_REGION_LEVEL
        )
        self.build((None, *backbone.image_shape))

    def _kinds(self) -> tuple[str, ...]:
        return ("class", "box", "mask") if self.with_masks else ("class", "box")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the heads; the backbone tells their input."""
        if getattr(self, "built", False):  # by the constructor; loading asks again
            return
        channels = next(iter(self.backbone.output.values())).shape[-1]
        self.rpn_head.build((None, None, None, channels))
        for box_head in self.box_heads:
            box_head.build((None, BOX_SIZE, BOX_SIZE, channels))
        for mask_head in self.mask_heads:
            mask_head.build((None, MASK_SIZE, MASK_SIZE, channels))
        self.built = True

    # === Forward pass ===

    def call(
        self, images: Tensor, training: bool | None = None, detect: bool = False
    ) -> dict[str, Any]:
        """The first stage, or with `detect` everything.

        Args:
            images: (B, H, W, 3), as the backbone wants them.
            training: as of any model.
            detect: whether to return detections.

        Returns:
            `"features"`, level to map; `"objectness"` level to (B, A_l) logits and `"deltas"`
            level to (B, A_l, 4), both float32. With `detect` what `predict` returns.
        """
        features = self.backbone(images, training=training)
        objectness, deltas = {}, {}
        for level in self.pyramid_levels:
            name = f"P{level}"
            logits, shifts = self.rpn_head(features[name])
            height, width = ops.shape(logits)[1:3]
            count = height * width * self.rpn_head.num_anchors
            objectness[name] = ops.reshape(ops.cast(logits, "float32"), (-1, count))
            deltas[name] = ops.reshape(ops.cast(shifts, "float32"), (-1, count, 4))
        outputs = {"features": features, "objectness": objectness, "deltas": deltas}
        return self._detect(images, outputs) if detect else outputs

    def _anchors(self, height: int | Tensor, width: int | Tensor) -> list[Tensor]:
        return [
            anchor_ops.anchor_boxes(height, width, (level,), self.anchor_scale, (1.0,))
            for level in self.pyramid_levels
        ]

    def _propose(
        self, outputs: dict[str, Any], images: Tensor, pre_nms_top_k: int
    ) -> tuple[Tensor, Tensor]:
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

    def _regions(self, features: dict[str, Tensor], boxes: Tensor, size: int) -> Tensor:
        """(B, N, 4) -> (B * N, size, size, channels)."""
        pooled = roi_align(
            [features[f"P{level}"] for level in self.region_levels],
            boxes,
            [2**level for level in self.region_levels],
            size,
            self.sampling_ratio,
        )
        return ops.reshape(pooled, (-1, size, size, pooled.shape[-1]))

    def _box_head(
        self, stage: int, features: dict[str, Tensor], boxes: Tensor, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, N, C + 1) and deltas (B, N, boxes, 4) of boxes (B, N, 4)."""
        head = self.box_heads[stage]
        batch, num = ops.shape(boxes)[:2]
        logits, deltas = head(self._regions(features, boxes, BOX_SIZE), training=training)
        deltas = ops.reshape(deltas, (batch, num, head.num_boxes, 4)) * self._stds(stage)
        return ops.reshape(logits, (batch, num, self.num_classes + 1)), deltas

    def _mask_head(
        self, stage: int, features: dict[str, Tensor], boxes: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask logits (B, N, 28, 28) of boxes (B, N, 4) and labels (B, N), any where negative."""
        batch, num = ops.shape(boxes)[:2]
        labels = ops.reshape(ops.clip(labels, 0, self.num_classes - 1), (-1,))
        logits = self.mask_heads[stage](self._regions(features, boxes, MASK_SIZE), labels)
        return ops.reshape(logits, (batch, num, 2 * MASK_SIZE, 2 * MASK_SIZE))

    def _stds(self, stage: int) -> Tensor:
        return ops.convert_to_tensor(self.stages[stage][1], "float32")

    def _of_class(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """(B, N, boxes, 4) -> (B, N, 4): the box of a label, any where that is the background."""
        if self.class_agnostic:
            return deltas[:, :, 0]
        is_label = labels[..., None] == ops.arange(self.num_classes, dtype="int32")
        return ops.sum(ops.where(is_label[..., None], deltas, 0.0), axis=2)

    # === Detection ===

    def _detect(self, images: Tensor, outputs: dict[str, Any]) -> dict[str, Tensor]:
        height, width = ops.shape(images)[1:3]
        features = outputs["features"]
        boxes, valid = self._propose(outputs, images, TEST_PRE_NMS)
        total: Tensor = 0.0
        for stage in range(len(self.stages)):
            logits, deltas = self._box_head(stage, features, boxes, training=False)
            total = total + logits
            if stage < len(self.stages) - 1:
                best = ops.cast(ops.argmax(logits[..., :-1], axis=-1), "int32")
                shifts = self._of_class(deltas, best)
                boxes = anchor_ops.decode_boxes(boxes, shifts, height, width)
        scores = ops.softmax(total / len(self.stages), axis=-1)[..., :-1]
        scores = ops.where(valid[..., None], scores, 0.0)

        def corners(index: Tensor) -> Tensor:
            rows = gather_rows(boxes, index)
            shifts = gather_rows(deltas, index)
            count = ops.shape(index)[1] * self.box_heads[-1].num_boxes
            rows = ops.broadcast_to(rows[:, :, None], ops.shape(shifts))
            rows, shifts = (ops.reshape(x, (-1, count, 4)) for x in (rows, shifts))
            decoded = anchor_ops.decode_boxes(rows, shifts, height, width)
            if self.class_agnostic:
                return decoded
            return ops.reshape(decoded, (-1, ops.shape(index)[1], self.num_classes, 4))

        found = non_max_suppression(
            corners,
            scores,
            iou_threshold=self.iou_threshold,
            score_threshold=self.confidence_threshold,
            max_detections=self.max_detections,
        )
        empty = found["labels"] < 0
        if self.with_masks:
            probabilities = [
                ops.sigmoid(self._mask_head(stage, features, found["boxes"], found["labels"]))
                for stage in range(len(self.stages))
            ]
            masks = sum(probabilities) / len(probabilities)
            found["masks"] = ops.where(empty[..., None, None], 0.0, masks)
        converted = keras.utils.bounding_boxes.convert_format(
            found["boxes"], "xyxy", self.bounding_box_format, height=height, width=width
        )
        return {**found, "boxes": ops.where(empty[..., None], -1.0, converted)}

    def predict_step(self, *args: Any) -> Any:
        """Detections; JAX passes (state, data), the others (data,)."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        if len(args) == 1:
            return self(images, training=False, detect=True)
        trainable, non_trainable = args[0]
        found, non_trainable = self.stateless_call(
            trainable, non_trainable, images, training=False, detect=True
        )
        return found, non_trainable

    # === Training ===

    def compile(self, optimizer: Any = "auto", metrics: None = None, **kwargs: Any) -> None:
        """Configures training; the losses are the model's own.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for SGD with learning rate 0.02, momentum 0.9
                and weight decay 1e-4 (the papers' for batch 16).
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `metrics` or `loss` is given.
        """
        if metrics or kwargs.get("loss") is not None:
            raise ValueError(
                f"{type(self).__name__} takes no `loss` and no `metrics` in compile(): its losses "
                "are its own; evaluate with keras_densepred.metrics.CocoEvaluation."
            )
        if optimizer == "auto":
            optimizer = keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=1e-4)
        super().compile(optimizer=optimizer, **kwargs)

    # === Saving ===

    def get_config(self) -> dict[str, Any]:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "bounding_box_format": self.bounding_box_format,
            "head_convs": self.head_convs,
            "head_fcs": self.head_fcs,
            "head_width": self.head_width,
            "head_norm": self.head_norm,
            "sync_batch_norm": self.sync_batch_norm,
            "class_agnostic": self.class_agnostic,
            "box_loss": self.box_loss,
            "dynamic": self.dynamic,
            "rpn_width": self.rpn_width,
            "anchor_scale": self.anchor_scale,
            "num_proposals": self.num_proposals,
            "samples": self.samples,
            "sampling_ratio": self.sampling_ratio,
            "max_detections": self.max_detections,
            "confidence_threshold": self.confidence_threshold,
            "iou_threshold": self.iou_threshold,
            "mask_convs": self.mask_convs,
            "mask_width": self.mask_width,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TwoStageDetector":
        config = dict(config)
        for key in ("backbone", "dtype"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)
