"""The five detectors."""

from typing import Any

import keras

from keras_densepred.models.rcnn.grid import GridStage
from keras_densepred.models.rcnn.grid_head import GRID_SIZE, GridHead
from keras_densepred.models.rcnn.model import CASCADE_STAGES, TwoStageDetector


@keras.saving.register_keras_serializable(package="keras_densepred")
class FasterRCNN(TwoStageDetector):
    """Faster R-CNN (Ren et al., 2015) on a feature pyramid.

    `fit` takes (images, {"boxes", "labels"}), `predict` returns NumPy detections: `"boxes"`
    (B, 100, 4) in `bounding_box_format`, `"labels"` (B, 100), `"confidence"` (B, 100), padded with
    -1, and `"num_detections"` (B,).

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for a `FeaturePyramid`.
        num_classes: C, without background.
        box_loss: `"l1"`, `"smooth_l1"` or `"giou"`; None: L1, with `dynamic` smooth L1.
        dynamic: whether training becomes stricter as proposals become better (Dynamic R-CNN).
        **kwargs: boxes, heads, sampling and detection, as in `TwoStageDetector`.

    Example:
        backbone = keras_densepred.ResNetBackbone.from_preset(
            "msfm_resnet50", frozen_stages=1, fixed_batch_norm=True
        )
        model = keras_densepred.models.FasterRCNN(backbone, num_classes=80)
        model.compile(keras.optimizers.SGD(0.02, momentum=0.9))
        model.fit(images, {"boxes": boxes, "labels": labels})
    """


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaskRCNN(TwoStageDetector):
    """Mask R-CNN (He et al., 2017): `FasterRCNN` with a mask for each box.

    `fit` takes (images, {"boxes", "labels", "masks"}) with masks (B, M, S, S) of any S, each from
    edge to edge of its box, as `data.train_batches(mask_size=S)` makes them. `predict` also returns
    `"masks"` (B, 100, 28, 28) float32 probabilities, likewise in their boxes; `ops.box_masks.
    paste_masks` lays them onto the image.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for a `FeaturePyramid`.
        num_classes: C, without background.
        mask_convs: 3x3 convolutions of the mask head.
        mask_width: filters of these; by default the pyramid's channels.
        **kwargs: as in `FasterRCNN`.
    """

    target_keys = ("boxes", "labels", "masks")


@keras.saving.register_keras_serializable(package="keras_densepred")
class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN (Cai and Vasconcelos, 2018): `FasterRCNN` with three box heads in a row.

    Each trains on the boxes of the one before, with overlaps of 0.5, 0.6 and 0.7; scores are of the
    mean of their logits. CEDNet's has `head_convs=4, head_fcs=1, head_norm=True,
    class_agnostic=False, box_loss="giou"`.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for a `FeaturePyramid`.
        num_classes: C, without background.
        class_agnostic: whether a region has one box or one for each class; None: one.
        box_loss: `"l1"`, `"smooth_l1"` or `"giou"`; None: smooth L1.
        **kwargs: as in `FasterRCNN`, without `dynamic`.
    """

    stages = CASCADE_STAGES


@keras.saving.register_keras_serializable(package="keras_densepred")
class CascadeMaskRCNN(CascadeRCNN):
    """`CascadeRCNN` with a mask head for each of its stages; masks are as of `MaskRCNN`.

    The mean of the three heads' probabilities is the mask.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for a `FeaturePyramid`.
        num_classes: C, without background.
        mask_convs: 3x3 convolutions of each mask head.
        mask_width: filters of these; by default the pyramid's channels.
        **kwargs: as in `CascadeRCNN`.
    """

    target_keys = ("boxes", "labels", "masks")


@keras.saving.register_keras_serializable(package="keras_densepred")
class GridRCNN(TwoStageDetector):
    """Grid R-CNN (Lu et al., 2019, in the form of "Grid R-CNN Plus"): boxes from grid points.

    The box head only classifies proposals, which are suppressed by its scores. In those that are
    left a second, convolutional head finds nine points of the object, and their votes are its box.
    `fit` and `predict` are as of `FasterRCNN`.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for a `FeaturePyramid`.
        num_classes: C, without background.
        bounding_box_format: as in `TwoStageDetector`.
        confidence_threshold: least score of a detection.
        iou_threshold: overlap above which the lower-scoring proposal of a class goes.
        grid_convs: 3x3 convolutions of the grid head.
        grid_width: channels of each of the nine points, a multiple of 4.
        grid_samples: regions of a device's images that train the grid head, at most.
        **kwargs: heads, sampling and detection, as in `TwoStageDetector`, without what concerns
            the regression of boxes: `class_agnostic`, `box_loss` and `dynamic`.

    Raises:
        ValueError: if an argument is outside of what is listed here.
    """

    regression = False
    proposal_beta = 1.0 / 9.0

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        confidence_threshold: float = 0.03,
        iou_threshold: float = 0.3,
        grid_convs: int = 8,
        grid_width: int = 64,
        grid_samples: int = 192,
        **kwargs: Any,
    ):
        for name in ("box_loss", "class_agnostic", "dynamic"):
            if kwargs.pop(name, None):
                raise ValueError(
                    f"`{name}` is for detectors that regress boxes, which GridRCNN does not: leave "
                    "it out, or take FasterRCNN."
                )
        if grid_width < 4 or grid_width % 4:
            raise ValueError(f"`grid_width` must be a multiple of 4, got {grid_width}.")
        for name, value in (("grid_convs", grid_convs), ("grid_samples", grid_samples)):
            if value < 1:
                raise ValueError(f"`{name}` is too small: give 1 at least.")
        # What `_make_grid_stage` reads.
        self.grid_convs = grid_convs
        self.grid_width = grid_width
        self.grid_samples = grid_samples
        super().__init__(
            backbone,
            num_classes,
            bounding_box_format,
            confidence_threshold=confidence_threshold,
            iou_threshold=iou_threshold,
            **kwargs,
        )
        self.box_loss = None

    def _make_grid_stage(self, channels: int, most_positive: int, sampling_ratio: int) -> GridStage:
        self.grid_head = GridHead(
            self.grid_convs, self.grid_width, dtype=self.dtype_policy, name="grid_head"
        )
        self.grid_head.build((None, GRID_SIZE, GRID_SIZE, channels))
        return GridStage(
            self.grid_head,
            self.region_levels,
            sampling_ratio,
            self.grid_samples,
            most_positive,
            self.seed_generator,
            name="grid_stage",
        )
