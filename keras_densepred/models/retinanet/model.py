"""RetinaNet: heads on every level of a pyramid, targets, losses and decoding."""

from typing import Any, ClassVar

import keras
import keras_hub
from keras import ops

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.pyramid import as_pyramid, image_shape, pyramid_levels, pyramid_width
from keras_densepred.models.retinanet.atss import assign_adaptively
from keras_densepred.models.retinanet.head import build_heads, predict_levels
from keras_densepred.models.retinanet.losses import BoxL1Loss, SigmoidFocalLoss
from keras_densepred.ops.boxes import decode_boxes
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

ASSIGNERS = ("max_iou", "atss")


class RetinaNetBase(DenseDetector):
    """All of RetinaNet but the class that makes a model of the graph, Keras' or a host's.

    KerasHub resets the bases of its classes whenever it builds a model (keras-hub 0.32.0,
    `PipelineModel`), which fails where another base has keras.Model below it, as `RetinaNet` has.
    So its adapter, like KerasCV's, derives from this class.

    Attributes:
        box_output: name of the deltas in the outputs, as the host calls them.
        classification_output: name of the logits.
    """

    box_output: ClassVar[str] = "box"
    classification_output: ClassVar[str] = "classification"

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
        assigner: str = "max_iou",
        **kwargs: Any,
    ):
        if anchor_scale <= 0:
            raise ValueError(f"`anchor_scale` is {anchor_scale}; give a positive number.")
        if assigner not in ASSIGNERS:
            raise ValueError(f"`assigner` must be one of {ASSIGNERS}, got {assigner!r}.")
        # === Layers ===
        backbone = as_pyramid(backbone, type(self).__name__, _feature_pyramid)
        dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        images = keras.Input(image_shape(backbone), name="images")
        features = backbone(images)
        width = pyramid_width(backbone) if head_width is None else head_width
        box_head, classification_head = build_heads(
            num_classes,
            width,
            head_depth,
            head_initializer,
            dtype,
            activation=head_activation,
            separable=head_separable,
            norm_levels=tuple(features) if head_norm else (),
            sync_batch_norm=shares_batch_norms(backbone),
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
        self._make_model(inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self._set_detector(
            backbone,
            num_classes,
            bounding_box_format,
            dtype,
            losses=("box_loss", "classification_loss"),
        )
        self.head_width = width
        self.head_depth = head_depth
        self.head_initializer = box_head.hidden_initializer
        self.head_activation = head_activation
        self.head_norm = head_norm
        self.head_separable = head_separable
        self.anchor_scale = anchor_scale
        self.assigner = assigner
        self.pyramid_levels = pyramid_levels(backbone)
        self.box_head = box_head
        self.classification_head = classification_head
        self._prediction_decoder = prediction_decoder or NonMaxSuppression(bounding_box_format)

    def _make_model(self, **kwargs: Any) -> None:
        """Makes a model of the graph; an adapter calls its host, past what builds other heads."""
        super().__init__(**kwargs)

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW with learning rate 1e-4 and weight decay 0.05: the papers' for batch 16."""
        return keras.optimizers.AdamW(1e-4, weight_decay=0.05)

    def compile(
        self,
        optimizer: Any = "auto",
        box_loss: Any = "auto",
        classification_loss: Any = "auto",
        *,
        loss: None = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training; `compile(optimizer)` alone is the paper's RetinaNet.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for `default_optimizer()`.
            box_loss: loss of (B, A, 4) deltas giving (B, A), reduction `"sum"`; `"auto"` is L1.
            classification_loss: loss of (B, A, C) logits against 0 / 1, giving (B, A), reduction
                `"sum"`; `"auto"` is the focal loss with alpha 0.25 and gamma 2.
            loss: not taken; give the two above.
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `loss` or `metrics` are given.
        """
        super().compile(optimizer, loss=loss, metrics=metrics, **kwargs)
        self.box_loss = BoxL1Loss() if box_loss == "auto" else box_loss
        if classification_loss == "auto":
            classification_loss = SigmoidFocalLoss()
        self.classification_loss = classification_loss

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config:  # not compiled
            return {}
        losses = {"box": self.box_loss, "classification": self.classification_loss}
        return {**config, "loss": keras.saving.serialize_keras_object(losses)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved."""
        losses = {f"{part}_loss": loss for part, loss in config["loss"].items()}
        super().compile_from_config({**config, **losses})

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`: the classes of each anchor."""
        prediction = self.get_layer("classification_head").prediction
        anchors = prediction.kernel.shape[-1] // self.num_classes
        return axes_of(prediction.weights, ClassAxis(groups=anchors))

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """`"box_loss"` and `"classification_loss"`, divided by the batch's positive anchors."""
        if self.assigner == "atss":
            height, width = ops.shape(images)[1:3]
            levels = [
                anchor_ops.level_anchors(height, width, 2**level, self.anchor_scale)
                for level in self.pyramid_levels
            ]
            deltas, labels = assign_adaptively(levels, targets["boxes"], targets["labels"])
        else:
            deltas, labels = anchor_ops.assign_targets(
                self._anchors(images), targets["boxes"], targets["labels"]
            )
        is_class = labels[..., None] == ops.arange(self.num_classes, dtype="int32")
        positive = ops.cast(labels >= 0, "float32")
        counted = ops.cast(labels != anchor_ops.IGNORED, "float32")
        # At least 1: a batch of background alone still teaches what background is (keras-hub
        # 0.32.0 and keras-cv 0.9.0 give such a batch weight 0).
        normalizer = loss_normalizer(ops.sum(positive))
        return {
            "box_loss": self.box_loss(
                deltas, outputs[self.box_output], sample_weight=positive / normalizer
            ),
            "classification_loss": self.classification_loss(
                ops.cast(is_class, "float32"),
                outputs[self.classification_output],
                sample_weight=counted / normalizer,
            ),
        }

    def detections(self, outputs: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        deltas, logits = outputs[self.box_output], outputs[self.classification_output]
        anchors = self._anchors(images)
        if type(self.prediction_decoder) is NonMaxSuppression:  # a subclass may not take anchors
            return self.prediction_decoder(deltas, logits, images=images, anchors=anchors)
        height, width = ops.shape(images)[1:3]
        boxes = decode_boxes(anchors, deltas, height, width)
        return self._decode(boxes, logits, images)

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = ops.shape(images)[1:3]
        deltas = outputs[self.box_output]
        boxes = decode_boxes(self._anchors(images), deltas, height, width)
        return boxes, ops.sigmoid(outputs[self.classification_output])

    def _anchors(self, images: Tensor) -> Tensor:
        height, width = ops.shape(images)[1:3]
        return anchor_ops.anchor_boxes(height, width, self.pyramid_levels, self.anchor_scale)


@keras.saving.register_keras_serializable(package="keras_densepred")
class RetinaNet(RetinaNetBase, keras.Model):
    """RetinaNet ("Focal Loss for Dense Object Detection").

    Trains as the CEDNet and BiCSNet papers do (MMDetection's RetinaNet): nine anchors a cell,
    focal loss (alpha 0.25, gamma 2) and L1 on plain deltas, both divided by the number of positive
    anchors, heads drawn from N(0, 0.01) with every anchor starting as background.
    `RetinaNetKerasHub` and `RetinaNetKerasCV` are the same network as tasks of these packages.

    Args:
        backbone: `keras_densepred.DetectionPyramid` or a BiCSNet backbone (the heads run on its
            levels, no FPN), or a pyramid backbone with `pyramid_outputs` P3 to P5, around which
            KerasHub's FPN (P3 to P7, 256 channels) is put; a `keras_hub.models.
            RetinaNetBackbone` is taken too.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_width: filters of each head convolution; by default the pyramid's channels (256 in
            the papers). Most of RetinaNet's cost is here.
        head_depth: hidden convolutions of each head.
        prediction_decoder: layer from boxes and logits to detections; by default per-class
            suppression at 0.5, scores from 0.05, 100 boxes.
        dtype: dtype policy of the heads; by default the backbone's.
        head_initializer: Keras initializer of the hidden head kernels; by default RetinaNet's
            N(0, 0.01) at 256 filters. `"he_normal"` trains faster from random weights.
        head_activation: activation of the heads, `"relu"` or `"swish"` (BiCSNet, strategy B).
        head_norm: whether hidden head convolutions have batch norms, of each level its own, as in
            BiCSNet and SpineNet.
        head_separable: whether head convolutions are separable, as in BiCSNet-Lite.
        anchor_scale: side of the smallest square anchor of a level over its stride; 4, in BiCSNet
            up to BiCSNet-94 3.
        assigner: which anchors learn: `"max_iou"`, those that overlap an object by half, or
            `"atss"`, by a threshold of each object's own (`assign_adaptively`).
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first, or a number is out of range.

    Example:
        pyramid = keras_densepred.DetectionPyramid(
            keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        )
        model = keras_densepred.RetinaNet(pyramid, num_classes=80)
        model.compile(keras.optimizers.AdamW(1e-4))
        model.fit(images, {"boxes": boxes, "labels": labels})
    """


def _feature_pyramid(backbone: keras.Model) -> keras.Model:
    # `use_p5=True` makes P6 from C5, as RetinaNet does; the host's docstring says the opposite of
    # its code (keras-hub 0.32.0).
    return keras_hub.models.RetinaNetBackbone(
        backbone,
        min_level=3,
        max_level=7,
        use_p5=True,
        image_shape=image_shape(backbone),
        dtype=backbone.dtype_policy,
    )
