"""The four detectors; `TwoStageDetector` has their arguments."""

import keras

from keras_densepred.models.rcnn.model import CASCADE_STAGES, TwoStageDetector


@keras.saving.register_keras_serializable(package="keras_densepred")
class FasterRCNN(TwoStageDetector):
    """Faster R-CNN (Ren et al., 2015) on a feature pyramid.

    `fit` takes (images, {"boxes", "labels"}), `predict` returns NumPy detections: `"boxes"`
    (B, 100, 4) in `bounding_box_format`, `"labels"` (B, 100), `"confidence"` (B, 100), padded with
    -1, and `"num_detections"` (B,).

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
    """

    target_keys = ("boxes", "labels", "masks")
    with_masks = True


@keras.saving.register_keras_serializable(package="keras_densepred")
class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN (Cai and Vasconcelos, 2018): `FasterRCNN` with three box heads in a row.

    Each trains on the boxes of the one before, with overlaps of 0.5, 0.6 and 0.7; scores are of the
    mean of their logits. CEDNet's has `head_convs=4, head_fcs=1, head_norm=True,
    class_agnostic=False, box_loss="giou"`.
    """

    stages = CASCADE_STAGES


@keras.saving.register_keras_serializable(package="keras_densepred")
class CascadeMaskRCNN(CascadeRCNN):
    """`CascadeRCNN` with a mask head for each of its stages; masks are as of `MaskRCNN`.

    The mean of the three heads' probabilities is the mask.
    """

    target_keys = ("boxes", "labels", "masks")
    with_masks = True
