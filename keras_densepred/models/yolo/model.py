"""YOLOv3 with the backbones and necks of CSPNet: a detector that trains as in Darknet."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv_norm import OrderedConvNorm
from keras_densepred.models.compiling import saved_arguments
from keras_densepred.models.decoding import NonMaxSuppression
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
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

LOSS_PARTS = ("box", "objectness", "classification")


@keras.saving.register_keras_serializable(package="keras_densepred")
class ImageLosses(keras.losses.Loss):
    """Sum of losses that are computed already, so that Keras weighs and logs them."""

    def __init__(self, reduction: str = "sum", name: str = "image_losses", dtype: Any = None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns y_pred (B,), the loss of each image; y_true is not looked at."""
        return y_pred


@keras.saving.register_keras_serializable(package="keras_densepred")
class YOLOv3Detector(keras.Model):
    """YOLOv3 ("YOLOv3: An Incremental Improvement") as CSPNet trains it in Darknet.

    Images of any height and width that are multiples of 32, in training as well: anchors are in
    pixels whatever the size. `predict` returns final detections.

    Args:
        backbone: a pyramid backbone with `pyramid_outputs` P3 to P5, channels_last.
        num_classes: C, without background.
        neck: a name of `YOLO_NECKS`: `"prn"` (P4 and P5 only), `"prn_3l"`, `"cem"`, `"cem_sam"`,
            `"gfm"`, `"efm"`, `"efm_sam"`, `"efm_spp"`, `"panet_spp"`.
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
        _check(backbone, num_classes, neck)
        head_dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        settings = _named(loss, YOLO_LOSSES, "loss")

        # === Functional model ===
        kit = OrderedConvNorm(
            activation,
            momentum,
            epsilon=1e-5,
            sync_batch_norm=getattr(backbone, "sync_batch_norm", False),
            dtype=head_dtype,
        )
        features = YOLO_NECKS[neck](kit, backbone.pyramid_outputs)
        anchors = anchors or ("yolov3_tiny" if len(features) == 2 else "yolov3")
        anchors = tuple((float(w), float(h)) for w, h in _named(anchors, YOLO_ANCHORS, "anchors"))
        level_masks = level_anchors(tuple(features), anchors, masks)
        outputs = predict_maps(
            features,
            num_classes,
            {level: len(mask) for level, mask in level_masks.items()},
            head_dtype,
        )
        super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)

        # === Config ===
        self.backbone = backbone
        self.num_classes = num_classes
        self.neck = neck
        self.anchors = anchors
        self.masks = level_masks
        self.loss_settings = settings
        self.bounding_box_format = bounding_box_format
        self.activation = activation
        self.momentum = momentum
        self.head_dtype = head_dtype
        self._neck_order = darknet_order(kit.order, features)
        self.prediction_decoder = prediction_decoder or NonMaxSuppression(
            bounding_box_format, from_logits=False, iou_threshold=0.45
        )

    def compile(self, optimizer: Any = "auto", metrics: None = None, **kwargs: Any) -> None:
        """Configures training; the loss is the constructor's.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for the paper's SGD with learning rate 1e-3
                (of batch 64, after 1,000 steps of warm-up), momentum 0.9 and decay 5e-4.
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `metrics` or `loss` is given.
        """
        if metrics or "loss" in kwargs:
            raise ValueError(
                "YOLOv3Detector takes no `metrics` and no `loss` in compile(): evaluate with "
                "keras_densepred.metrics.CocoEvaluation, and give the loss to the constructor."
            )
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4)
        # Keyed so that the logs read `box_loss`, `objectness_loss` and `classification_loss`.
        super().compile(
            optimizer=optimizer, loss={part: ImageLosses() for part in LOSS_PARTS}, **kwargs
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved, see `saved_arguments`."""
        arguments = saved_arguments(config)
        del arguments["loss"]
        self.compile(**arguments)
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Tensor],
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Box, objectness and class loss, summed over an image's slots, mean over the images.

        Darknet adds up the gradients of a batch and divides the learning rate by its images; here
        the loss is divided by the images of the whole batch, also where several devices share it.

        Args:
            x: (B, H, W, 3) images.
            y: `"boxes"` (B, M, 4) in `bounding_box_format` and `"labels"` (B, M), padded with -1.
            y_pred: the model's outputs.
            sample_weight: not taken.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss; an image without objects has the objectness loss of its background.

        Raises:
            ValueError: if `sample_weight` is given, or `y` lacks a key.
        """
        if sample_weight is not None:
            raise ValueError("YOLOv3Detector weighs slots itself: fit without `sample_weight`.")
        missing = {"boxes", "labels"} - set(y)
        if missing:
            raise ValueError(
                f'The targets hold {sorted(y)}; fit on (images, {{"boxes", "labels"}}).'
            )
        parts = self.image_losses(x, y["boxes"], y["labels"], y_pred)
        images = loss_normalizer(ops.cast(ops.shape(x)[0], "float32"))
        return keras.Model.compute_loss(
            self,
            x=x,
            y={part: ops.zeros_like(loss) for part, loss in parts.items()},
            y_pred={part: loss / images for part, loss in parts.items()},
            training=training,
        )

    def image_losses(
        self, images: Tensor, boxes: Tensor, labels: Tensor, outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The three losses of each image, summed over all levels.

        Args:
            images: (B, H, W, 3); only their shape is read.
            boxes: (B, M, 4) in `bounding_box_format`.
            labels: (B, M) class indices, negative for padding.
            outputs: what `model(images)` returns.

        Returns:
            `"box"`, `"objectness"`, `"classification"`: (B,) float32 each.
        """
        height, width = ops.shape(images)[1:3]
        image_size = decoding.size_pair(height, width)
        objects = self._objects(boxes, labels, height, width)
        settings = self.loss_settings
        learns = learning_anchors(objects, image_size, self.anchors, settings.anchor_threshold)
        totals = [0.0] * len(LOSS_PARTS)
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
        return dict(zip(LOSS_PARTS, totals, strict=True))

    def _objects(self, boxes: Tensor, labels: Tensor, height: Any, width: Any) -> Objects:
        if boxes.shape[1] == 0:
            boxes = ops.pad(boxes, [(0, 0), (0, 1), (0, 0)], constant_values=-1.0)
            labels = ops.pad(labels, [(0, 0), (0, 1)], constant_values=-1)
        labels = ops.cast(labels, "int32")
        corners = keras.utils.bounding_boxes.convert_format(
            ops.cast(boxes, "float32"),
            self.bounding_box_format,
            "rel_xyxy",
            height=height,
            width=width,
        )
        centres = decoding.corners_to_centre(corners)
        valid = ops.logical_and(labels >= 0, ops.min(centres[..., 2:], axis=-1) > 0.0)
        classes = labels[..., None] == ops.arange(self.num_classes, dtype="int32")
        classes = ops.cast(ops.logical_and(classes, valid[..., None]), "float32")
        return Objects(ops.where(valid[..., None], centres, 0.0), classes, valid)

    def predict_step(self, *args: Any) -> Any:
        """Keras' predict step, then decoding; JAX passes (state, data), the others (data,)."""
        outputs = super().predict_step(*args)
        images, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        if isinstance(outputs, tuple):
            return self.decode_predictions(outputs[0], images), outputs[1]
        return self.decode_predictions(outputs, images)

    def decode_predictions(self, outputs: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Final detections from raw outputs.

        Args:
            outputs: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            What the `prediction_decoder` returns: `"boxes"` (B, M, 4) in `bounding_box_format`,
            `"labels"` (B, M), `"confidence"` (B, M), padded with -1, `"num_detections"` (B,).
        """
        height, width = ops.shape(images)[1:3]
        boxes, scores = self.boxes_and_scores(outputs, images)
        boxes = keras.utils.bounding_boxes.convert_format(
            boxes, "xyxy", self.bounding_box_format, height=height, width=width
        )
        return self.prediction_decoder(boxes, scores, images=images)

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """All boxes and their scores, before any suppression.

        Args:
            outputs: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            (B, N, 4) xyxy in pixels, inside the image, and (B, N, C) scores in [0, 1], float32.
        """
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
            boxes = ops.clip(decoding.centre_to_corners(boxes), 0.0, 1.0)
            all_boxes.append(ops.reshape(boxes, (ops.shape(boxes)[0], -1, 4)))
            scores = decoding.class_scores(logits)
            all_scores.append(ops.reshape(scores, (ops.shape(scores)[0], -1, self.num_classes)))
        sides = ops.concatenate([image_size, image_size])
        return ops.concatenate(all_boxes, axis=1) * sides, ops.concatenate(all_scores, axis=1)

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of Darknet's files (`convert.darknet`)."""
        return (*self.backbone.darknet_order, *self._neck_order)

    def get_config(self) -> dict[str, Any]:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "neck": self.neck,
            "anchors": [list(anchor) for anchor in self.anchors],
            "masks": {level: list(mask) for level, mask in self.masks.items()},
            "loss": dataclasses.asdict(self.loss_settings),
            "bounding_box_format": self.bounding_box_format,
            "activation": self.activation,
            "momentum": self.momentum,
            "prediction_decoder": keras.saving.serialize_keras_object(self.prediction_decoder),
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "YOLOv3Detector":
        config = dict(config)
        for name in ("backbone", "prediction_decoder", "dtype"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        config["loss"] = YOLOLoss(**config["loss"])
        return cls(**config)


def _named(value: Any, table: Mapping[str, Any], argument: str) -> Any:
    if not isinstance(value, str):
        return value
    if value not in table:
        raise ValueError(f"`{argument}` is {value!r}; there are {', '.join(table)}.")
    return table[value]


def _check(backbone: keras.Model, num_classes: int, neck: str) -> None:
    if num_classes < 1:
        raise ValueError(f"`num_classes` is {num_classes}; give a positive integer.")
    if neck not in YOLO_NECKS:
        raise ValueError(f"`neck` is {neck!r}; there are {', '.join(YOLO_NECKS)}.")
    outputs = getattr(backbone, "pyramid_outputs", {})
    missing = [level for level in ("P3", "P4", "P5") if level not in outputs]
    if missing:
        raise ValueError(
            f"`backbone` {backbone.name!r} has no level {', '.join(missing)} in "
            "`pyramid_outputs`; pass one of keras_densepred's backbones."
        )
    if getattr(backbone, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"`backbone` {backbone.name!r} is channels_first; YOLOv3Detector takes channels_last "
            'images, so build the backbone with data_format="channels_last".'
        )
