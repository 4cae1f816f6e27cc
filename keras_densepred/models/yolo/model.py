"""YOLOv3 with the backbones and necks of CSPNet: a detector that trains as in Darknet."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.faults import require_positive
from keras_densepred.layers.conv_norm import OrderedConvNorm
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.pyramid import check_levels
from keras_densepred.models.yolo import decoding
from keras_densepred.models.yolo.losses import level_losses
from keras_densepred.models.yolo.settings import (
    YOLO_ANCHORS,
    YOLO_LOSSES,
    YOLOLoss,
    level_anchors,
)
from keras_densepred.models.yolo.targets import Objects, assign_level, learning_anchors
from keras_densepred.necks.yolo import YOLO_NECKS, darknet_order, predict_maps
from keras_densepred.ops.boxes import centre_to_corners, corners_to_centre
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

LOSSES = ("box_loss", "objectness_loss", "classification_loss")


@keras.saving.register_keras_serializable(package="keras_densepred")
class YOLOv3Detector(DenseDetector, keras.Model):
    """YOLOv3 ("YOLOv3: An Incremental Improvement") as CSPNet trains it in Darknet.

    Images of any height and width that are multiples of 32, in training as well: anchors are in
    pixels whatever the size. `predict` returns final detections.

    Args:
        backbone: a pyramid backbone with `pyramid_outputs` P3 to P5, channels_last.
        num_classes: C, without background.
        neck: a name of `YOLO_NECKS`: `"tiny"` and `"prn"` (P4 and P5 only), `"prn_3l"`, `"cem"`,
            `"cem_sam"`, `"gfm"`, `"efm"`, `"efm_sam"`, `"efm_spp"`, `"panet_spp"`.
        anchors: widths and heights in pixels, smallest first, or a name of `YOLO_ANCHORS`; by
            default yolov3-tiny's six for two levels, yolov3's nine for three.
        masks: level to indices of its anchors, by default as in Darknet
            (`yolo_settings.level_anchors`).
        loss: a `YOLOLoss`, or a name of `YOLO_LOSSES`: `"mse"` (the paper's), `"giou"`, `"ciou"`.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        activation: of the neck, as in `ConvNorm`.
        momentum: share of the batch norms' moving statistics that a step keeps, in the neck.
        prediction_decoder: layer from boxes and scores to detections; by default per-class
            suppression at 0.45, scores from 0.05, 100 boxes.
        dtype: dtype policy of neck and predictions; by default the backbone's. Outputs, losses and
            decoding are float32 under every policy.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first, or another argument is not of
            the kind said above.

    Example:
        backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_pico")
        model = keras_densepred.models.YOLOv3Detector(backbone, num_classes=80, neck="efm_sam")
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9))
        model.fit(images, {"boxes": boxes, "labels": labels})
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        neck: str = "efm_sam",
        anchors: str | Sequence[tuple[float, float]] | None = None,
        masks: Mapping[str, Sequence[int]] | None = None,
        loss: str | YOLOLoss = "mse",
        bounding_box_format: str = "xyxy",
        activation: str = "leaky_relu",
        momentum: float = 0.99,
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        require_positive(num_classes=num_classes)
        if neck not in YOLO_NECKS:
            raise ValueError(f"`neck` is {neck!r}; there are {', '.join(YOLO_NECKS)}.")
        check_levels(backbone, getattr(backbone, "pyramid_outputs", ()), "YOLOv3Detector")
        dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        settings = _named(loss, YOLO_LOSSES, "loss")

        # === Functional model ===
        kit = OrderedConvNorm(
            activation,
            momentum,
            epsilon=1e-5,
            sync_batch_norm=shares_batch_norms(backbone),
            dtype=dtype,
        )
        features = YOLO_NECKS[neck](kit, backbone.pyramid_outputs)
        anchors = anchors or ("yolov3_tiny" if len(features) == 2 else "yolov3")
        anchors = tuple((float(w), float(h)) for w, h in _named(anchors, YOLO_ANCHORS, "anchors"))
        level_masks = level_anchors(tuple(features), anchors, masks)
        outputs = predict_maps(
            features,
            num_classes,
            {level: len(mask) for level, mask in level_masks.items()},
            dtype,
        )
        super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)

        # === Config ===
        self._set_detector(backbone, num_classes, bounding_box_format, dtype, LOSSES)
        self.neck = neck
        self.anchors = anchors
        self.masks = level_masks
        self.loss_settings = settings
        self.activation = activation
        self.momentum = momentum
        self._neck_order = darknet_order(kit.order, features)
        self._prediction_decoder = prediction_decoder or NonMaxSuppression(
            bounding_box_format, from_logits=False, iou_threshold=0.45
        )

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """The paper's SGD with momentum 0.9 and decay 5e-4.

        Its learning rate is 1e-3, of batch 64 and after 1,000 steps of warm-up.
        """
        return keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`: each anchor's, behind its box and objectness."""
        return {
            path: axis
            for level, mask in self.masks.items()
            for path, axis in axes_of(
                self.get_layer(f"yolo_{level.lower()}_prediction").weights,
                ClassAxis(groups=len(mask), before=5),
            ).items()
        }

    @property
    def size_divisor(self) -> int:
        """Height and width of images must be multiples of it: cells fill the image."""
        return math.lcm(super().size_divisor, *(2 ** int(level[1:]) for level in self.masks))

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """`"box_loss"`, `"objectness_loss"`, `"classification_loss"`: `image_losses`, their mean.

        Darknet adds up the gradients of a batch and divides the learning rate by its images; here
        the loss is divided by the images of the whole batch, also where several devices share it.
        """
        parts = self.image_losses(images, targets["boxes"], targets["labels"], outputs)
        count = loss_normalizer(ops.cast(ops.shape(images)[0], "float32"))
        return {name: ops.sum(loss / count) for name, loss in parts.items()}

    def image_losses(
        self, images: Tensor, boxes: Tensor, labels: Tensor, outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The three losses of each image, summed over all levels.

        Args:
            images: (B, H, W, 3); only their shape is read.
            boxes: (B, M, 4) float32 xyxy in pixels.
            labels: (B, M) int32 class indices, negative for padding.
            outputs: what `model(images)` returns.

        Returns:
            `"box_loss"`, `"objectness_loss"`, `"classification_loss"`: (B,) float32 each.
        """
        height, width = ops.shape(images)[1:3]
        image_size = decoding.size_pair(height, width)
        objects = self._objects(boxes, labels, height, width)
        settings = self.loss_settings
        learns = learning_anchors(objects, image_size, self.anchors, settings.anchor_threshold)
        totals = [0.0] * len(LOSSES)
        for level, mask in self.masks.items():
            stride = 2 ** int(level[1:])
            grid_size = decoding.size_pair(height // stride, width // stride)
            cells = decoding.cell_grid(height // stride, width // stride)
            level_learns = ops.stack([learns[..., index] for index in mask], axis=-1)
            assignment = assign_level(objects, level_learns, grid_size, cells)
            losses = level_losses(
                ops.cast(outputs[level], "float32"),
                objects,
                assignment,
                cells,
                grid_size,
                image_size,
                [self.anchors[index] for index in mask],
                level,
                settings,
            )
            totals = [total + loss for total, loss in zip(totals, losses, strict=True)]
        return dict(zip(LOSSES, totals, strict=True))

    def _objects(self, boxes: Tensor, labels: Tensor, height: Any, width: Any) -> Objects:
        corners = keras.utils.bounding_boxes.convert_format(
            boxes, "xyxy", "rel_xyxy", height=height, width=width
        )
        centres = corners_to_centre(corners)
        valid = ops.logical_and(labels >= 0, ops.min(centres[..., 2:], axis=-1) > 0.0)
        classes = labels[..., None] == ops.arange(self.num_classes, dtype="int32")
        classes = ops.cast(ops.logical_and(classes, valid[..., None]), "float32")
        return Objects(ops.where(valid[..., None], centres, 0.0), classes, valid)

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = ops.shape(images)[1:3]
        image_size = decoding.size_pair(height, width)
        all_boxes, all_scores = [], []
        for level, mask in self.masks.items():
            stride = 2 ** int(level[1:])
            logits = ops.cast(outputs[level], "float32")
            boxes = decoding.decode_boxes(
                logits,
                decoding.cell_grid(height // stride, width // stride),
                [self.anchors[index] for index in mask],
                self.loss_settings.scale_xy.get(level, 1.0),
                decoding.size_pair(height // stride, width // stride),
                image_size,
            )
            boxes = ops.clip(centre_to_corners(boxes), 0.0, 1.0)
            all_boxes.append(ops.reshape(boxes, (ops.shape(boxes)[0], -1, 4)))
            scores = decoding.class_scores(logits)
            all_scores.append(ops.reshape(scores, (ops.shape(scores)[0], -1, self.num_classes)))
        sides = ops.concatenate([image_size, image_size])
        return ops.concatenate(all_boxes, axis=1) * sides, ops.concatenate(all_scores, axis=1)

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of Darknet's files (`convert.darknet`).

        Raises:
            ValueError: if the backbone has no such order.
        """
        order = getattr(self.backbone, "darknet_order", None)
        if order is None:
            raise ValueError(
                f"There are no files of Darknet's for a {type(self.backbone).__name__}: choose one "
                "of csp_resnet_50, csp_resnext_50, csp_darknet_53, yolov3_tiny, yolov3_tiny_prn."
            )
        return (*order, *self._neck_order)

    @property
    def darknet_epsilon(self) -> float | None:
        """Epsilon of the batch norms in Darknet's files (`convert.darknet`); None for ours."""
        return getattr(self.backbone, "darknet_epsilon", None)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "anchors": [list(anchor) for anchor in self.anchors],
            "masks": {level: list(mask) for level, mask in self.masks.items()},
            "loss": dataclasses.asdict(self.loss_settings),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "YOLOv3Detector":
        loss = YOLOLoss(**config["loss"])
        return super().from_config({**config, "loss": loss}, custom_objects)


def _named(value: Any, table: Mapping[str, Any], argument: str) -> Any:
    if not isinstance(value, str):
        return value
    if value not in table:
        raise ValueError(f"`{argument}` is {value!r}; there are {', '.join(table)}.")
    return table[value]
