"""Mask2Former for instances."""

from typing import Any

import keras
from keras import ops

from keras_densepred.faults import require_positive
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.detector import Detector
from keras_densepred.models.mask2former.centres import centre_loss
from keras_densepred.models.mask2former.instances import best_instances
from keras_densepred.models.mask2former.network import NUM_POINTS, MaskNetwork, last_prediction
from keras_densepred.models.mask2former.targets import InstanceMasks
from keras_densepred.models.pyramid import check_levels

Tensor = Any

# Of the masks that `detections` cuts out. Beside masks at the size of the image, those of COCO's
# objects scaled to boxes of 224, 448 and 900 px lose intersection over union: with 28 cells 0.037,
# 0.053 and 0.061; with 112 cells 0.003, 0.006 and 0.011; with 160 cells 0.000, 0.002 and 0.006.
MASK_SIZE = 160
SELECTIONS = ("learned", "centres")


@keras.saving.register_keras_serializable(package="keras_densepred")
class Mask2Former(MaskNetwork, Detector, keras.Model):
    """Instance segmentation by queries ("Masked-attention Mask Transformer", CVPR 2022).

    A pixel decoder mixes C3 to C5 by deformable attention and refines C2; each query is a class and
    an embedding, whose product with the refined C2 is its mask. Nine layers refine the queries, and
    each looks only where the mask of the one before it is. No anchors, no boxes, no suppression.

    `fit` takes (images, {"boxes", "labels", "masks"}) with masks (B, M, S, S) of any S, each from
    edge to edge of its box, as `data.train_batches(mask_size=S)` makes them. Matching and losses
    look at `num_points` random points. `predict` returns `"boxes"` (B, 100, 4), the tightest around
    the masks, `"labels"`, `"confidence"` (probability of the class times the mean one of the mask),
    `"num_detections"` and `"masks"` (B, 100, 160, 160) float32 probabilities from edge to edge of
    the boxes.

    The raw outputs, of each of the predictions before and after the layers, are those of
    `MaskDecoder`.

    Args:
        backbone: a backbone with `pyramid_outputs` P3, P4 and P5, and P2 if it has one; without,
            masks have P3's size. No neck: the CEDNet authors take the raw levels of its last stage.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        width: channels of everything.
        num_queries: Q, at least as many as there are objects in an image.
        encoder_layers: of the pixel decoder.
        decoder_layers: of the queries; 0 is refused.
        num_heads: of every attention, a divisor of `width`.
        encoder_hidden: features inside the feed-forward networks of the pixel decoder.
        decoder_hidden: features inside those of the queries.
        num_points: points of each mask that costs and losses look at.
        max_detections: detections of an image.
        mask_size: cells on a side of predicted masks.
        query_selection: where queries come from. `"learned"` (the paper): the same for every image.
            `"centres"`: from the likeliest centres of objects, and each has a place, an ellipse, as
            part of its masks. That learns many alike objects from few images.
        dtype: dtype policy of what stands on the backbone; by default the backbone's. Predictions
            and losses are float32.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first, or a number is out of range.

    Example:
        backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        model = keras_densepred.models.Mask2Former(backbone, num_classes=80)
        model.compile()
        in_boxes = np.ones((*labels.shape, 112, 112), "uint8")  # of each object, within its box
        model.fit(images, {"boxes": boxes, "labels": labels, "masks": in_boxes})
    """

    target_keys = ("boxes", "labels", "masks")

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        width: int = 256,
        num_queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        num_heads: int = 8,
        encoder_hidden: int = 1024,
        decoder_hidden: int = 2048,
        num_points: int = NUM_POINTS,
        max_detections: int = 100,
        mask_size: int = MASK_SIZE,
        query_selection: str = "learned",
        dtype: Any = None,
        **kwargs: Any,
    ):
        check_levels(backbone, getattr(backbone, "pyramid_outputs", ()), type(self).__name__)
        policy = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        sizes = dict(
            width=width,
            num_queries=num_queries,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            num_heads=num_heads,
            encoder_hidden=encoder_hidden,
            decoder_hidden=decoder_hidden,
            num_points=num_points,
        )
        require_positive(max_detections=max_detections, mask_size=mask_size)
        if query_selection not in SELECTIONS:
            raise ValueError(
                f"`query_selection` is {query_selection!r}; give one of {', '.join(SELECTIONS)}."
            )
        images, outputs = self._graph(
            backbone, num_classes, dtype=policy, query_selection=query_selection, **sizes
        )
        super().__init__(inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self._set_detector(
            backbone,
            num_classes,
            bounding_box_format,
            policy,
            losses=(
                *("classification_loss", "mask_loss", "dice_loss"),
                *(("centre_loss",) if query_selection == "centres" else ()),
            ),
        )
        self._set_network(**sizes)
        self.max_detections = max_detections
        self.mask_size = mask_size
        self.query_selection = query_selection

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`: classes with "no object" last."""
        return axes_of(self.get_layer("mask_decoder").classes.weights, ClassAxis(after=1))

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Any],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """Sums over the predictions; masks' are divided by those matched in the whole batch."""
        masks = InstanceMasks.of(targets, images)
        losses = self.mask_losses(outputs, masks)
        if self.query_selection == "centres":
            losses["centre_loss"] = centre_loss(outputs["centre_logits"], masks.boxes, masks.labels)
        return losses

    def detections_in_pixels(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        """`detections` with boxes xyxy in pixels; export asks for it, too."""
        height, width = ops.shape(images)[1:3]
        return best_instances(
            *last_prediction(outputs),
            image_size=(height, width),
            stride=self.stride,
            count=self.max_detections,
            mask_size=self.mask_size,
            places=outputs["mask_places"][:, -1] if "mask_places" in outputs else None,
        )

    def detections(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        return self.in_box_format(self.detections_in_pixels(outputs, images), images)
