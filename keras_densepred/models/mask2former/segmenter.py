"""Mask2Former for semantic segmentation."""

from typing import Any

import keras
from keras import ops

from keras_densepred.layers.upsampling import UpsampleToImage
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.mask2former.decoder import mask_logits
from keras_densepred.models.mask2former.network import NUM_POINTS, MaskNetwork, last_prediction
from keras_densepred.models.mask2former.targets import ClassMasks
from keras_densepred.models.segmenter import IgnoreCrossentropy, Segmenter, check_backbone

Tensor = Any

LEAST_SCORE = 1e-6  # below it, logits do not go on falling


@keras.saving.register_keras_serializable(package="keras_densepred")
class SemanticScores(keras.layers.Layer):
    """What `MaskDecoder` predicts last, as the score of each class at each position of a mask.

    The sum over queries of the class's probability (of all with "no object") times the mask's.

    Output: `(batch, h, w, num_classes)`, float32, positive.
    """

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        logits, embeddings, features = last_prediction(inputs)
        classes = ops.softmax(logits, axis=-1)[..., :-1]
        masks = ops.sigmoid(mask_logits(embeddings, features))
        batch, queries, height, width = ops.shape(masks)
        flat = ops.reshape(masks, (batch, queries, height * width))
        scores = ops.matmul(ops.swapaxes(flat, 1, 2), classes)
        return ops.reshape(scores, (batch, height, width, classes.shape[-1]))

    def compute_output_shape(self, input_shape: dict[str, tuple]) -> tuple:
        features = input_shape["mask_features"]
        return (*features[:3], input_shape["class_logits"][-1] - 1)

    def get_config(self) -> dict[str, Any]:  # Keras' own gives none where the dtype is a policy
        return super().get_config()


@keras.saving.register_keras_serializable(package="keras_densepred")
class LogScores(keras.layers.Layer):
    """Logarithms of positive scores: their softmax is the scores' share of the sum."""

    def call(self, inputs: Tensor) -> Tensor:
        return ops.log(ops.maximum(inputs, LEAST_SCORE))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:  # as above
        return super().get_config()


@keras.saving.register_keras_serializable(package="keras_densepred")
class Mask2FormerSegmenter(MaskNetwork, Segmenter, keras.Model):
    """Semantic segmentation by masks of queries ("Masked-attention Mask Transformer", CVPR 2022).

    The network of `Mask2Former`. The score of a class at a pixel is the sum over queries of the
    class's probability times the mask's.

    Input: images `(batch, height, width, 3)` as the backbone wants them, of any size that it
    takes. Output: `(batch, height, width, num_classes)` float32, the logarithms of the scores, so
    that their softmax is the share of each; called with `training=True`, what `MaskDecoder` gives.

    Trains on masks `(batch, height, width)` of integers, 255 where there is no class. Each class
    that an image has is one target of the matching and of the losses on points of `Mask2Former`;
    points on ignored pixels do not count, and images without any label do not train. The loss of
    `evaluate` is the cross-entropy of the output.

    Args:
        backbone: a backbone with `pyramid_outputs` P3, P4 and P5, and P2 if it has one; without,
            masks have P3's size.
        num_classes: C, the background included where it is a class.
        width: channels of everything.
        num_queries: Q, at least as many as there are classes in an image.
        encoder_layers: of the pixel decoder.
        decoder_layers: of the queries.
        num_heads: of every attention, a divisor of `width`.
        encoder_hidden: features inside the feed-forward networks of the pixel decoder.
        decoder_hidden: features inside those of the queries.
        num_points: points of each mask that costs and losses look at.
        dtype: dtype policy of what stands on the backbone; by default the backbone's. Predictions
            and losses are float32.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first, or a number is out of range.

    Example:
        backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        model = keras_densepred.models.Mask2FormerSegmenter(backbone, num_classes=150)
        model.compile()
        model.fit(images, masks)
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        width: int = 256,
        num_queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        num_heads: int = 8,
        encoder_hidden: int = 1024,
        decoder_hidden: int = 2048,
        num_points: int = NUM_POINTS,
        dtype: Any = None,
        **kwargs: Any,
    ):
        check_backbone(backbone, num_classes, ("P3", "P4", "P5"))
        policy = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        sizes: dict[str, Any] = dict(
            width=width,
            num_queries=num_queries,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            num_heads=num_heads,
            encoder_hidden=encoder_hidden,
            decoder_hidden=decoder_hidden,
            num_points=num_points,
        )
        images, predicted = self._graph(backbone, num_classes, dtype=policy, **sizes)
        scores = SemanticScores(name="semantic_scores", dtype="float32")(predicted)
        stride = 4 if "P2" in backbone.pyramid_outputs else 8
        scores = UpsampleToImage(stride, name="upsampled_scores", dtype="float32")(scores, images)
        outputs = LogScores(name="logits", dtype="float32")(scores)
        super().__init__(inputs=images, outputs=outputs, **kwargs)
        self._in_training = keras.Function(images, predicted)

        # === Config ===
        self.backbone = backbone
        self.num_classes = num_classes
        self.head_dtype = policy
        self._sizes = sizes
        self._set_network(**sizes)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(B, H, W, 3) -> logits (B, H, W, C), in training what `MaskDecoder` gives."""
        if training:
            # Layers inside learn from Keras' call context that this is training.
            return self._in_training(inputs)
        return super().call(inputs, training=training, mask=mask)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """As `call`."""
        if training:
            return self._in_training.compute_output_spec(inputs)
        return super().compute_output_spec(inputs, training=training, mask=mask)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Segmenter.class_axes`: classes with "no object" last."""
        return axes_of(self.get_layer("mask_decoder").classes.weights, ClassAxis(after=1))

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `Segmenter.compile`.

        Raises:
            ValueError: if `loss` is no `IgnoreCrossentropy`: training has losses of its own, to
                which it tells the label of ignored pixels.
        """
        if loss != "auto" and not isinstance(loss, IgnoreCrossentropy):
            raise ValueError(
                f"{type(self).__name__} trains with losses of its own: leave `loss` out, or give "
                "an IgnoreCrossentropy for the label of ignored pixels and for `evaluate`."
            )
        super().compile(optimizer, loss, metrics=metrics, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """In training the sum of the losses of all predictions, else as `Segmenter.compute_loss`.

        Raises:
            ValueError: if `sample_weight` is given in training, or `y` is as a segmenter wants it
                not to be.
        """
        if not isinstance(y_pred, dict):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} weights its points itself: fit without `sample_weight`."
            )
        targets = ClassMasks(y, self.num_classes, self.loss.ignore_label)
        loss = sum(self.mask_losses(y_pred, targets).values())
        return loss + sum(self.losses)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self._sizes,
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }
