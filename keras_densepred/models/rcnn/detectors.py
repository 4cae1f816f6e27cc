"""The four detectors."""

import keras

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
    with_masks = True


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
    with_masks = True
