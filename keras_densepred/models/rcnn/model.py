"""What Faster, Mask, Cascade and Grid R-CNN share: two stages, detection, losses.

    images -> pyramid -> proposals -> box head (Cascade: three, each on the last one's boxes)
                                   -> mask head, on the regions of objects
                                   -> grid head, likewise, where box heads only classify

Training looks at a random sample of the proposals and needs the objects for it, so `call` ends with
the first stage, and the second runs where losses or detections are computed. All shapes are static:
JAX and XLA compile once for a size of images and a number of boxes.
"""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.layers.residual import ReplicaSeedGenerator
from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.class_axis import ClassAxis
from keras_densepred.models.detector import Detector
from keras_densepred.models.pyramid import as_pyramid, image_shape, pyramid_levels, pyramid_width
from keras_densepred.models.rcnn import losses
from keras_densepred.models.rcnn.dynamic import DynamicTraining
from keras_densepred.models.rcnn.grid import GridStage
from keras_densepred.models.rcnn.heads import (
    BOX_SIZE,
    MASK_SIZE,
    BoxHead,
    MaskHead,
    RegionProposalHead,
)
from keras_densepred.models.rcnn.proposals import TEST_PRE_NMS, TRAIN_PRE_NMS, ProposalStage
from keras_densepred.models.rcnn.region_stage import RegionStage, StageSettings
from keras_densepred.models.rcnn.regions import Truth
from keras_densepred.necks.fpn import FeaturePyramid
from keras_densepred.ops.boxes import decode_boxes
from keras_densepred.ops.nms import non_max_suppression
from keras_densepred.ops.rows import gather_rows

Tensor = Any

COARSEST_REGION_LEVEL = 5  # levels above serve proposals only

SINGLE_STAGE = (StageSettings(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),)
# Cascade R-CNN (Cai and Vasconcelos), section 4.
CASCADE_STAGES = (
    StageSettings(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    StageSettings(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    StageSettings(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)


class TwoStageDetector(Detector, keras.Model):
    """Base of `FasterRCNN`, its relatives and `GridRCNN`, which tell the rest.

    Args:
        backbone: a pyramid (`DetectionPyramid`, `FeaturePyramid`, BiCSNet), or a pyramid backbone,
            around which `FeaturePyramid` from its finest level, P2 or coarser, to P6 is put.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_convs: 3x3 convolutions of a box head, as wide as the pyramid.
        head_fcs: fully connected layers of a box head.
        head_width: units of these.
        head_norm: whether convolutions of box heads have batch norms.
        sync_batch_norm: whether replicas share the statistics of these in training; None as in the
            backbone.
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

    stages: ClassVar[tuple[StageSettings, ...]] = SINGLE_STAGE
    regression: ClassVar[bool] = True  # of boxes by box heads; without it `_grid_stage` finds them
    proposal_beta: ClassVar[float] = 0.0  # of the first stage's smooth L1; 0: L1

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_convs: int = 0,
        head_fcs: int = 2,
        head_width: int = 1024,
        head_norm: bool = False,
        sync_batch_norm: bool | None = None,
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
        backbone = as_pyramid(backbone, type(self).__name__, _feature_pyramid)
        policy = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        super().__init__(dtype=policy, **kwargs)
        channels = pyramid_width(backbone)
        rpn_width, mask_width = rpn_width or channels, mask_width or channels
        self.pyramid_levels = pyramid_levels(backbone)
        if sync_batch_norm is None:
            sync_batch_norm = shares_batch_norms(backbone)
        self.region_levels = tuple(
            level for level in self.pyramid_levels if level <= COARSEST_REGION_LEVEL
        )

        # === Layers ===
        self.backbone = backbone
        self.rpn_head = RegionProposalHead(
            len(anchor_ops.ASPECT_RATIOS), rpn_width, dtype=policy, name="rpn_head"
        )
        suffixes = [f"_{n + 1}" for n in range(len(self.stages))] if is_cascade else [""]
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
                regression=self.regression,
                dtype=policy,
                name=f"box_head{suffix}",
            )
            for suffix in suffixes
        ]
        self.mask_heads = [
            MaskHead(num_classes, mask_convs, mask_width, dtype=policy, name=f"mask_head{suffix}")
            for suffix in suffixes
            if self.with_masks
        ]
        self.dynamic_training = DynamicTraining(name="dynamic") if dynamic else None
        self.seed_generator = ReplicaSeedGenerator()
        # Keras saves a layer under the first attribute that holds it, and visits private ones last:
        # heads are saved as the detector's own, wherever the stages hold them.
        self._proposal_stage = ProposalStage(
            self.rpn_head,
            self.pyramid_levels,
            anchor_scale,
            num_proposals,
            self.seed_generator,
            beta=self.proposal_beta,
            name="proposal_stage",
        )
        self._region_stages = [
            RegionStage(
                box_head,
                self.mask_heads[number] if self.with_masks else None,
                settings,
                suffix,
                self.region_levels,
                sampling_ratio,
                samples,
                box_loss,
                self.dynamic_training,
                self.seed_generator,
                name=f"region_stage{suffix}",
            )
            for number, (box_head, settings, suffix) in enumerate(
                zip(self.box_heads, self.stages, suffixes, strict=True)
            )
        ]
        self._grid_stage = self._make_grid_stage(channels, samples // 4, sampling_ratio)
        stages: list[Any] = [*self._region_stages]
        if self._grid_stage is not None:
            stages.append(self._grid_stage)
        names = (name for stage in stages for name in stage.loss_names)

        # === Config ===
        self._set_detector(
            backbone,
            num_classes,
            bounding_box_format,
            policy,
            losses=("rpn_objectness_loss", "rpn_box_loss", *names),
        )
        self.head_convs = head_convs
        self.head_fcs = head_fcs
        self.head_width = head_width
        self.head_norm = head_norm
        self.sync_batch_norm = sync_batch_norm
        self.class_agnostic = class_agnostic
        self.box_loss: str | None = box_loss
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
        self.build((None, *image_shape(backbone)))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the heads; the backbone tells their input."""
        if self.built:  # by the constructor; loading asks again
            return
        channels = pyramid_width(self.backbone)
        self.rpn_head.build((None, None, None, channels))
        for box_head in self.box_heads:
            box_head.build((None, BOX_SIZE, BOX_SIZE, channels))
        for mask_head in self.mask_heads:
            mask_head.build((None, MASK_SIZE, MASK_SIZE, channels))

    def _make_grid_stage(
        self, channels: int, most_positive: int, sampling_ratio: int
    ) -> GridStage | None:
        """What finds boxes where box heads do not, with a head that is built."""
        return None

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """SGD with learning rate 0.02, momentum 0.9, decay 1e-4: the papers' for batch 16."""
        return keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=1e-4)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`: classes with the background last, their boxes and masks."""
        axes: dict[str, ClassAxis] = {}
        for weight in self.weights:
            head, part, name = ("", "", *weight.path.split("/"))[-3:]
            if head.startswith("box_head") and part == "classes":
                axes[weight.path] = ClassAxis(after=1)
            elif head.startswith("box_head") and part == "deltas" and not self.class_agnostic:
                axes[weight.path] = ClassAxis(each=4)
            elif part.startswith("mask_head") and name in ("kernel", "bias"):
                axes[weight.path] = ClassAxis()
        return axes

    def call(self, images: Tensor, training: bool | None = None) -> dict[str, Any]:
        """The first stage.

        Args:
            images: (B, H, W, 3), as the backbone wants them.
            training: as of any model.

        Returns:
            `"features"`, level to map; `"objectness"`, level to (B, A_l) logits, and `"deltas"`,
            level to (B, A_l, 4), both float32.
        """
        return self.outputs_of(self.backbone(images, training=training), images)

    def outputs_of(
        self, features: dict[str, Tensor], images: Tensor, training: bool | None = None
    ) -> dict[str, Any]:
        """What `call` gives, from the levels of the backbone (or of one with its norms folded).

        The other arguments are those of other detectors, and not read.
        """
        objectness, deltas = self._proposal_stage(features)
        return {"features": features, "objectness": objectness, "deltas": deltas}

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Any],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """All stages' losses, each divided by the regions that the whole batch sampled."""
        truth = Truth(targets["boxes"], targets["labels"], targets.get("masks"))
        parts = self._proposal_stage.compute_losses(outputs, images, truth)
        height, width = ops.shape(images)[1:3]
        boxes, valid = self._proposal_stage.propose(outputs, images, TRAIN_PRE_NMS)
        for stage in self._region_stages:
            result = stage.compute_losses(outputs["features"], boxes, valid, truth, training)
            parts |= result.losses
            sample = result.sample
            if stage is self._region_stages[-1]:
                break
            boxes = stage.refine(sample.boxes, result.logits, result.deltas, height, width, sample)
            # Objects' own boxes join the sample of every stage anew.
            valid = ops.logical_and(sample.valid, ops.logical_not(sample.is_truth))
        if self._grid_stage is None:
            return parts
        features = outputs["features"]
        return parts | self._grid_stage.compute_losses(features, sample, truth, height, width)

    def detections(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        return self.in_box_format(self.detections_in_pixels(outputs, images), images)

    def detections_in_pixels(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        """`detections` with boxes xyxy in pixels; export asks for it, too."""
        height, width = ops.shape(images)[1:3]
        features = outputs["features"]
        boxes, valid = self._proposal_stage.propose(outputs, images, TEST_PRE_NMS)
        total: Tensor = 0.0
        for stage in self._region_stages:
            logits, deltas = stage(features, boxes, training=False)
            total = total + logits
            if stage is not self._region_stages[-1]:
                boxes = stage.refine(boxes, logits, deltas, height, width)
        scores = ops.softmax(total / len(self.stages), axis=-1)[..., :-1]
        scores = ops.where(valid[..., None], scores, 0.0)

        def corners(index: Tensor) -> Tensor:
            rows = gather_rows(boxes, index)
            if not self.regression:
                return rows
            shifts = gather_rows(deltas, index)
            count = ops.shape(index)[1] * self.box_heads[-1].num_boxes
            rows = ops.broadcast_to(rows[:, :, None], ops.shape(shifts))
            rows, shifts = (ops.reshape(x, (-1, count, 4)) for x in (rows, shifts))
            decoded = decode_boxes(rows, shifts, height, width)
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
        if self._grid_stage is not None:
            found["boxes"] = self._grid_stage(features, found["boxes"], height=height, width=width)
        empty = found["labels"] < 0
        if self.with_masks:
            labels = ops.maximum(found["labels"], 0)
            probabilities = [
                ops.sigmoid(stage.masks(features, found["boxes"], labels))
                for stage in self._region_stages
            ]
            masks = sum(probabilities) / len(probabilities)
            found["masks"] = ops.where(empty[..., None, None], 0.0, masks)
        return {**found, "boxes": ops.where(empty[..., None], -1.0, found["boxes"])}


def _feature_pyramid(backbone: keras.Model) -> keras.Model:
    """FPN from a backbone's finest level, P2 or coarser, to P6."""
    finest = max(2, min(int(level[1:]) for level in backbone.pyramid_outputs))
    return FeaturePyramid(backbone, min_level=finest, max_level=6)
