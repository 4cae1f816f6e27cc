"""Deformable DETR: a transformer on the levels of a pyramid, and what it learns."""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import TopDetections
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.detr.losses import Objects, layer_losses, match
from keras_densepred.models.detr.transformer import SELECTIONS, DetectionTransformer
from keras_densepred.models.pyramid import as_pyramid, image_shape, pyramid_levels, pyramid_width
from keras_densepred.necks.group_norm import ProjectedLevels
from keras_densepred.ops.boxes import centre_to_corners
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableDETR(DenseDetector, keras.Model):
    """Deformable DETR (Zhu et al., ICLR 2021), as it is and with what came after.

    As it is, 300 learned queries look for objects through six layers, and detections are the best
    100 of all queries and classes: no anchors, no suppression. `box_refine` and `query_selection`
    are the paper's two variants and DINO's, which learn faster.

    The model takes images (B, H, W, 3), or `{"images": ..., "image_sizes": (B, 2) int32}` where
    images of several sizes are padded to one: height and width in pixels of what is image, in the
    top left. Padding is then not looked at, and what is learned of boxes is relative to the image
    alone. So do `fit`, `evaluate` and `predict`.

    Args:
        backbone: a pyramid, whose levels the transformer takes as they are (`DetectionPyramid` with
            `max_level=6` on CEDNet is the paper's), or a pyramid backbone with P3 to P5, around
            which `ProjectedLevels` is put (a 1x1 convolution and a group norm on each, P6 from P5).
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        num_queries: Q, the most objects that can be found in an image.
        width: channels of the levels that a neck makes; a pyramid's are as they are.
        num_heads: of every attention; must divide the width.
        num_points: of each head on each level.
        encoder_layers: 0 to look at the pyramid as it is.
        decoder_layers: each of which predicts and has losses of its own.
        feed_forward_width: features inside the feed-forward networks.
        dropout: in all layers of the transformer.
        box_refine: whether each layer moves the boxes of the one before, with heads of its own.
        query_selection: where queries come from. `"learned"`: the same for every image.
            `"two_stage"`: content and position from the boxes of the encoder's best tokens (then
            the first class stands for all objects in what the encoder learns). `"mixed"`: boxes
            from the best tokens of any class, content learned, heads shared by all layers, which
            always refine boxes ("DINO", Zhang et al., ICLR 2023).
        prediction_decoder: layer from boxes and scores to detections; by default
            `TopDetections()`: the best 100, whatever their scores.
        dtype: dtype policy of the transformer; by default the backbone's. Locations, softmax and
            losses are float32 whatever it is.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if an argument is outside of what is listed here.

    Example:
        pyramid = keras_densepred.DetectionPyramid(
            keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny"), max_level=6
        )
        model = keras_densepred.models.DeformableDETR(pyramid, num_classes=80)
        model.compile()
        sizes = np.full((len(images), 2), 64)  # height and width of what is image
        found = model.predict({"images": images, "image_sizes": sizes})
    """

    input_keys: ClassVar[tuple[str, ...]] = ("images", "image_sizes")

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        num_queries: int = 300,
        width: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed_forward_width: int = 1024,
        dropout: float = 0.1,
        box_refine: bool = False,
        query_selection: str = "learned",
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        for name, value, least in (
            ("num_classes", num_classes, 1),
            ("num_queries", num_queries, 1),
            ("num_points", num_points, 1),
            ("encoder_layers", encoder_layers, 0),
            ("decoder_layers", decoder_layers, 1),
            ("feed_forward_width", feed_forward_width, 1),
        ):
            if value < least:
                raise ValueError(f"`{name}` is {value}; give {least} at least.")
        if query_selection not in SELECTIONS:
            raise ValueError(
                f"`query_selection` must be one of {SELECTIONS}, got {query_selection!r}."
            )
        backbone = as_pyramid(
            backbone, type(self).__name__, lambda plain: ProjectedLevels(plain, width)
        )
        width = pyramid_width(backbone)
        if width % 4:
            raise ValueError(
                f"The levels are {width} channels wide; positions need a multiple of 4: choose "
                "another width."
            )
        policy = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        super().__init__(dtype=policy, **kwargs)
        self.pyramid_levels = pyramid_levels(backbone)

        # === Layers ===
        self.backbone = backbone
        self.transformer = DetectionTransformer(
            num_classes,
            len(self.pyramid_levels),
            num_queries,
            num_heads,
            num_points,
            encoder_layers,
            decoder_layers,
            feed_forward_width,
            dropout,
            box_refine,
            query_selection,
            name="transformer",
            dtype=policy,
        )
        losses = ["classification_loss", "box_l1_loss", "box_giou_loss"]
        losses += ["auxiliary_loss"] * (decoder_layers > 1)
        losses += ["encoder_loss"] * (query_selection != "learned")

        # === Config ===
        self._set_detector(backbone, num_classes, bounding_box_format, policy, losses)
        self.num_queries = num_queries
        self.width = width
        self.num_heads = num_heads
        self.num_points = num_points
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.feed_forward_width = feed_forward_width
        self.dropout = dropout
        self.box_refine = self.transformer.box_refine
        self.query_selection = query_selection
        self._prediction_decoder = prediction_decoder or TopDetections()
        self.build((None, *image_shape(backbone)))

    def build(self, input_shape: Any) -> None:
        """Builds the transformer; the backbone tells its input."""
        if not self.built:  # by the constructor; loading asks again
            self.transformer.build((None, None, None, self.width))

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW with learning rate 2e-4, decay 1e-4, gradients clipped to a norm of 0.1 in all.

        The paper's for batch 32, but for the rates of the backbone and of what tells locations.
        """
        return keras.optimizers.AdamW(2e-4, weight_decay=1e-4, epsilon=1e-8, global_clipnorm=0.1)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`: the classes of each head."""
        axes: dict[str, ClassAxis] = {}
        for head in self.transformer.heads:
            axes |= axes_of(head.classes.weights, ClassAxis())
        return axes

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Tensor]:
        """Predicts.

        Args:
            inputs: images (B, H, W, 3) as the backbone wants them, or a dictionary with
                `"images"` and `"image_sizes"` (B, 2), see the class.
            training: as of any model.

        Returns:
            What `DetectionTransformer` gives, and `"image_sizes"` (B, 2) float32.
        """
        images = self.images_of(inputs)
        sizes = inputs.get("image_sizes") if isinstance(inputs, dict) else None
        features = self.backbone(images, training=training)
        return self.outputs_of(features, images, sizes, training)

    def outputs_of(
        self,
        features: dict[str, Tensor],
        images: Tensor,
        image_sizes: Tensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        """What `call` gives, from the levels of the backbone (or of one with its norms folded)."""
        batch, *canvas = ops.shape(images)[:3]
        if image_sizes is None:
            sizes = ops.broadcast_to(ops.stack(canvas), (batch, 2))
        else:
            sizes = ops.clip(ops.cast(image_sizes, "int32"), 1, ops.stack(canvas))
        outputs = self.transformer(
            [features[f"P{level}"] for level in self.pyramid_levels],
            image_sizes=None if image_sizes is None else sizes,
            canvas=tuple(canvas),
            training=training,
        )
        return {**outputs, "image_sizes": ops.cast(sizes, "float32")}

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Any],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """Losses of the last layer, of all before it together, and of the encoder's boxes.

        Each is divided by the objects of the whole batch that a query answers for.
        """
        objects = Objects.of(targets, outputs["image_sizes"])
        logits, boxes = outputs["logits"], outputs["boxes"]
        assigned = match(logits, boxes, objects)
        count = ops.sum(ops.cast(assigned[:, -1] >= 0, "float32"))
        layers = layer_losses(logits, boxes, objects, assigned, loss_normalizer(count))
        parts = {
            "classification_loss": layers.classification[-1],
            "box_l1_loss": layers.l1[-1],
            "box_giou_loss": layers.giou[-1],
        }
        if self.decoder_layers > 1:
            parts["auxiliary_loss"] = ops.sum(layers.total[:-1])
        if self.query_selection != "learned":
            parts["encoder_loss"] = self._encoder_loss(outputs, objects)
        return parts

    def _encoder_loss(self, outputs: dict[str, Any], objects: Objects) -> Tensor:
        if self.query_selection == "two_stage":
            objects = objects.of_one_class()
        logits, boxes = (outputs[f"encoder_{name}"][:, None] for name in ("logits", "boxes"))
        assigned = match(logits, boxes, objects)
        count = ops.sum(ops.cast(assigned >= 0, "float32"))
        return layer_losses(logits, boxes, objects, assigned, loss_normalizer(count)).total[0]

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        sizes = outputs["image_sizes"]
        limits = ops.concatenate([ops.flip(sizes, axis=-1)] * 2, axis=-1)[:, None]
        boxes = centre_to_corners(outputs["boxes"][:, -1]) * limits
        boxes = ops.minimum(ops.maximum(boxes, 0.0), limits)
        return boxes, ops.sigmoid(outputs["logits"][:, -1])
