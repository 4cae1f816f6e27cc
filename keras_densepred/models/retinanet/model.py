"""What RetinaNet is, whichever host carries it: graph, targets, losses, decoding, compile."""

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.compiling import saved_arguments
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.retinanet.head import PredictionHead
from keras_densepred.models.retinanet.losses import BoxL1Loss, SigmoidFocalLoss
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

FOCAL_PRIOR = 0.01  # every anchor starts as background ("Focal Loss ...", 3.3)


def as_detection_pyramid(backbone: keras.Model) -> keras.Model:
    """The model whose output levels the heads run on: `backbone` itself, or an FPN around it.

    Args:
        backbone: a model with `min_level` and `max_level` (a DetectionPyramid, a
            `keras_hub.models.RetinaNetBackbone`), or a pyramid backbone with `pyramid_outputs`.

    Returns:
        `backbone` in the first case, otherwise KerasHub's FPN from P3 to P7 (256 channels).

    Raises:
        ValueError: if `backbone` is neither, or takes channels_first images.
    """
    if getattr(backbone, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"`backbone` {backbone.name!r} is channels_first; RetinaNet here takes channels_last "
            'images, so build the backbone with data_format="channels_last".'
        )
    if hasattr(backbone, "min_level") and hasattr(backbone, "max_level"):
        return backbone
    if not hasattr(backbone, "pyramid_outputs"):
        raise ValueError(
            f"`backbone` {backbone.name!r} is neither a DetectionPyramid nor a pyramid backbone "
            "(it has no `pyramid_outputs`); pass one of keras_densepred's backbones."
        )
    # `use_p5=True` makes P6 from C5, as RetinaNet does; the host's docstring says the opposite of
    # its code (keras-hub 0.32.0).
    return keras_hub.models.RetinaNetBackbone(
        backbone,
        min_level=3,
        max_level=7,
        use_p5=True,
        image_shape=backbone.image_shape,
        dtype=backbone.dtype_policy,
    )


def build_heads(
    num_classes: int, width: int, depth: int, initializer: Any, dtype: Any, **kwargs: Any
) -> tuple[PredictionHead, PredictionHead]:
    """The box head and the classification head, both shared by all levels.

    Args:
        num_classes: C.
        width: filters of each hidden convolution.
        depth: number of hidden convolutions.
        initializer: of the hidden kernels; None for the paper's.
        dtype: dtype policy.
        **kwargs: further arguments of `PredictionHead`, the same for both.

    Returns:
        The two heads.

    Raises:
        ValueError: if a number is out of range.
    """
    for name, value in (("num_classes", num_classes), ("head_width", width)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; give a positive integer.")
    if depth < 0:
        raise ValueError(f"`head_depth` is {depth}; give 0 or a positive integer.")
    box_head = PredictionHead(
        anchor_ops.ANCHORS_PER_CELL * 4,
        width,
        depth,
        hidden_initializer=initializer,
        dtype=dtype,
        name="box_head",
        **kwargs,
    )
    classification_head = PredictionHead(
        anchor_ops.ANCHORS_PER_CELL * num_classes,
        width,
        depth,
        prior_probability=FOCAL_PRIOR,
        hidden_initializer=initializer,
        dtype=dtype,
        name="classification_head",
        **kwargs,
    )
    return box_head, classification_head


def predict_levels(
    features: dict[str, Tensor],
    num_classes: int,
    box_head: PredictionHead,
    classification_head: PredictionHead,
    box_name: str,
    classification_name: str,
) -> dict[str, Tensor]:
    """Runs the heads on every level and lines the anchors up.

    Args:
        features: level to map (B, H, W, channels), finest first.
        num_classes: C.
        box_head: head with 4 values for each anchor.
        classification_head: head with C values for each anchor.
        box_name: key (and layer name) of the deltas in the result.
        classification_name: key (and layer name) of the logits in the result.

    Returns:
        Deltas (B, A, 4) and logits (B, A, C), float32.
    """
    boxes, logits = [], []
    for level, feature in features.items():
        # float32 from here on: losses and decoding are not for half precision.
        reshape = keras.layers.Reshape((-1, 4), name=f"box_{level}", dtype="float32")
        boxes.append(reshape(box_head(feature, level=level)))
        reshape = keras.layers.Reshape(
            (-1, num_classes), name=f"classification_{level}", dtype="float32"
        )
        logits.append(reshape(classification_head(feature, level=level)))
    outputs = {box_name: boxes, classification_name: logits}
    return {
        name: keras.layers.Concatenate(axis=1, name=name, dtype="float32")(parts)
        for name, parts in outputs.items()
    }


class RetinaNetCore:
    """Mixin over a host's RetinaNet class, before it in the bases.

    The subclass names, as class attributes, its two outputs and the host's class that makes a task
    of a graph. Its constructor's arguments, documented there, come here.
    """

    box_output: str
    classification_output: str
    host_task: type[keras.Model]

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_width: int | None = None,
        head_depth: int = 4,
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        head_initializer: Any = None,
        head_activation: str = "relu",
        head_norm: bool = False,
        head_separable: bool = False,
        anchor_scale: float = anchor_ops.ANCHOR_SCALE,
        **kwargs: Any,
    ):
        if anchor_scale <= 0:
            raise ValueError(f"`anchor_scale` is {anchor_scale}; give a positive number.")
        # === Layers ===
        backbone = as_detection_pyramid(backbone)
        head_dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        images = keras.Input(backbone.image_shape, name="images")
        features = backbone(images)
        width = head_width or next(iter(features.values())).shape[-1]
        box_head, classification_head = build_heads(
            num_classes,
            width,
            head_depth,
            head_initializer,
            head_dtype,
            activation=head_activation,
            separable=head_separable,
            norm_levels=tuple(features) if head_norm else (),
            sync_batch_norm=getattr(backbone, "sync_batch_norm", False),
        )

        # === Functional model ===
        outputs = predict_levels(
            features,
            num_classes,
            box_head,
            classification_head,
            self.box_output,
            self.classification_output,
        )
        # Past the __init__ of the host's RetinaNet, which builds heads of its own.
        self.host_task.__init__(self, inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self.backbone = backbone
        self.num_classes = num_classes
        self.bounding_box_format = bounding_box_format
        self.head_width = width
        self.head_depth = head_depth
        self.head_dtype = head_dtype
        self.head_initializer = box_head.hidden_initializer
        self.head_activation = head_activation
        self.head_norm = head_norm
        self.head_separable = head_separable
        self.anchor_scale = anchor_scale
        self.pyramid_levels = tuple(range(backbone.min_level, backbone.max_level + 1))
        self.box_head = box_head
        self.classification_head = classification_head
        self._prediction_decoder = prediction_decoder or self.default_decoder(bounding_box_format)

    def compile(
        self,
        optimizer: Any = "auto",
        box_loss: Any = "auto",
        classification_loss: Any = "auto",
        metrics: None = None,
        **kwargs: Any,
    ) -> None:
        """Configures training; `compile(optimizer)` alone is the paper's RetinaNet.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for AdamW with learning rate 1e-4 and
                weight decay 0.05 (the papers' for batch 16).
            box_loss: loss of (B, A, 4) deltas giving (B, A), reduction `"sum"`; `"auto"` is L1.
            classification_loss: loss of (B, A, C) logits against 0 / 1, giving (B, A), reduction
                `"sum"`; `"auto"` is the focal loss with alpha 0.25 and gamma 2.
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `metrics` is given.
        """
        if metrics:
            raise ValueError(
                "RetinaNet takes no `metrics` in compile(): evaluate with "
                "keras_densepred.metrics.CocoEvaluation."
            )
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
        box_loss = BoxL1Loss() if box_loss == "auto" else box_loss
        if classification_loss == "auto":
            classification_loss = SigmoidFocalLoss()
        # Keyed so that the logs read `box_loss` and `classification_loss` in both hosts.
        losses = {"box": box_loss, "classification": classification_loss}
        keras.Model.compile(self, optimizer=optimizer, loss=losses, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved, see `saved_arguments`."""
        arguments = saved_arguments(config)
        losses = arguments.pop("loss")
        self.compile(
            box_loss=losses["box"], classification_loss=losses["classification"], **arguments
        )
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Tensor],
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Box and classification loss of a batch, each divided by max(1, positive anchors).

        The anchors of the whole batch, also where several devices share it.

        Args:
            x: (B, H, W, 3) images.
            y: `"boxes"` (B, M, 4) in `bounding_box_format` and `"labels"` (B, M), padded with -1.
            y_pred: the model's outputs.
            sample_weight: not taken.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss; a batch without any box has the classification loss of its background.

        Raises:
            ValueError: if `sample_weight` is given, or `y` lacks a key.
        """
        if sample_weight is not None:
            raise ValueError("RetinaNet weighs anchors itself: fit without `sample_weight`.")
        missing = {"boxes", "labels"} - set(y)
        if missing:
            raise ValueError(
                f'The targets hold {sorted(y)}; fit on (images, {{"boxes", "labels"}}).'
            )
        height, width = ops.shape(x)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            y["boxes"], self.bounding_box_format, "xyxy", height=height, width=width
        )
        anchors = anchor_ops.anchor_boxes(height, width, self.pyramid_levels, self.anchor_scale)
        box_targets, labels = anchor_ops.assign_targets(anchors, boxes, y["labels"])
        classes = ops.arange(self.num_classes, dtype="int32")
        class_targets = ops.cast(labels[..., None] == classes, "float32")
        positive = ops.cast(labels >= 0, "float32")
        counted = ops.cast(labels != anchor_ops.IGNORED, "float32")
        # At least 1: a batch of background alone still teaches what background is (keras-hub
        # 0.32.0 and keras-cv 0.9.0 give such a batch weight 0).
        normalizer = loss_normalizer(ops.sum(positive))
        return keras.Model.compute_loss(
            self,
            x=x,
            y={"box": box_targets, "classification": class_targets},
            y_pred={
                "box": y_pred[self.box_output],
                "classification": y_pred[self.classification_output],
            },
            sample_weight={"box": positive / normalizer, "classification": counted / normalizer},
            training=training,
        )

    def predict_step(self, *args: Any) -> Any:
        """Keras' predict step, then decoding; JAX passes (state, data), the others (data,)."""
        outputs = keras.Model.predict_step(self, *args)
        images, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        if isinstance(outputs, tuple):
            return self.decode_predictions(outputs[0], images), outputs[1]
        return self.decode_predictions(outputs, images)

    def decode_predictions(
        self, predictions: dict[str, Tensor], images: Tensor
    ) -> dict[str, Tensor]:
        """Final detections from raw outputs.

        Args:
            predictions: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            What the `prediction_decoder` returns: `"boxes"` (B, M, 4) in `bounding_box_format`,
            `"labels"` (B, M), `"confidence"` (B, M), padded with -1, `"num_detections"` (B,).
        """
        height, width = ops.shape(images)[1:3]
        anchors = anchor_ops.anchor_boxes(height, width, self.pyramid_levels, self.anchor_scale)
        deltas, logits = predictions[self.box_output], predictions[self.classification_output]
        if type(self.prediction_decoder) is NonMaxSuppression:  # a subclass may not take anchors
            return self.prediction_decoder(deltas, logits, images=images, anchors=anchors)
        boxes = anchor_ops.decode_boxes(anchors, deltas, height, width)
        boxes = keras.utils.bounding_boxes.convert_format(
            boxes, "xyxy", self.bounding_box_format, height=height, width=width
        )
        return self.prediction_decoder(boxes, logits, images=images)

    def boxes_and_scores(
        self, predictions: dict[str, Tensor], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All boxes and their scores, before any suppression.

        Args:
            predictions: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            (B, A, 4) xyxy in pixels, inside the image, and (B, A, C) scores in [0, 1], float32.
        """
        height, width = ops.shape(images)[1:3]
        anchors = anchor_ops.anchor_boxes(height, width, self.pyramid_levels, self.anchor_scale)
        boxes = anchor_ops.decode_boxes(anchors, predictions[self.box_output], height, width)
        return boxes, ops.sigmoid(predictions[self.classification_output])

    def default_decoder(self, bounding_box_format: str) -> NonMaxSuppression:
        """Per-class suppression at 0.5 with scores from 0.05 and 100 boxes: COCO's protocol."""
        return NonMaxSuppression(bounding_box_format, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "bounding_box_format": self.bounding_box_format,
            "head_width": self.head_width,
            "head_depth": self.head_depth,
            "head_initializer": keras.initializers.serialize(self.head_initializer),
            "head_activation": self.head_activation,
            "head_norm": self.head_norm,
            "head_separable": self.head_separable,
            "anchor_scale": self.anchor_scale,
            "prediction_decoder": keras.saving.serialize_keras_object(self.prediction_decoder),
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
            "name": self.name,
        }
