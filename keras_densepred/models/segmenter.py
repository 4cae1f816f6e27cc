"""What the semantic segmentation models share, whichever host's class they are."""

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_densepred.models.compiling import CompiledAsSaved
from keras_densepred.runtime.replicas import share_of_mean

PAPER_LEARNING_RATE = 0.02  # BiCSNet on VOC, of batch 256


@keras.saving.register_keras_serializable(package="keras_densepred")
class IgnoreCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Cross-entropy of logits with integer labels, mean over the labelled pixels of a batch.

    `keras.losses.SparseCategoricalCrossentropy` that cannot be given probabilities: with these its
    gradient fails on PyTorch for maps ("grad_input must be contiguous", keras 3.15.1: it moves the
    class axis and calls `nll_loss`), while logits go through `cross_entropy`, which is right. All
    segmentation models here give logits and train with this loss, the hosts' included.

    Args:
        ignore_label: label of pixels that do not train; a batch of such only has loss 0.
        reduction: as in `keras.losses.Loss`; `"sum_over_batch_size"` is the mean over labelled
            pixels.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        reduction: str = "sum_over_batch_size",
        name: str = "ignore_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            from_logits=True,
            ignore_class=ignore_label,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.ignore_label = ignore_label

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for fixed in ("from_logits", "ignore_class", "axis"):
            config.pop(fixed, None)
        return {**config, "ignore_label": self.ignore_label}


class Segmenter(CompiledAsSaved):
    """Mixin before a host's class: trains on integer masks, by plain Keras unless preprocessing.

    `keras_hub.models.ImageSegmenter` of keras-hub 0.32.0 compiles with categorical cross-entropy,
    which wants one-hot masks and knows no ignored pixels, and its `fit` takes no generator.
    """

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for SGD with momentum 0.9 and the paper's peak
                learning rate for batch 256, 0.02.
            loss: loss of masks (B, H, W) against logits (B, H, W, C), or `"auto"` for
                `IgnoreCrossentropy()`.
            metrics: Keras metrics, none by default: mean IoU over a split is computed by
                `keras_densepred.metrics.SegmentationEvaluation`.
            **kwargs: further arguments of `keras.Model.compile`.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.SGD(PAPER_LEARNING_RATE, momentum=0.9)
        if isinstance(loss, str) and loss == "auto":
            loss = IgnoreCrossentropy()
        keras.Model.compile(self, optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """As `keras.Model.compute_loss`; with `IgnoreCrossentropy` of the whole batch's pixels.

        Where several devices share a batch, the mean over the labelled pixels of all, though each
        device may have unlike many.

        Args:
            x: images (B, H, W, 3).
            y: masks (B, H, W).
            y_pred: logits (B, H, W, C).
            sample_weight: as in `keras.Model.compute_loss`; the mean is of a device's rows then.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss.
        """
        loss = keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
        ours = isinstance(self.loss, IgnoreCrossentropy) and sample_weight is None
        if not ours or self.loss.reduction != "sum_over_batch_size":
            return loss
        labelled = ops.sum(ops.cast(ops.not_equal(y, self.loss.ignore_label), "float32"))
        return loss * share_of_mean(labelled)

    def _trainer(self) -> type[keras.Model]:
        # keras_hub.models.Task maps its preprocessor over every input and so wants arrays or
        # datasets, and TensorFlow or Grain; without a preprocessor there is nothing to map.
        plain = getattr(self, "preprocessor", None) is None
        return keras.Model if plain else keras_hub.models.ImageSegmenter

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on (images, masks)."""
        return self._trainer().fit(self, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on (images, masks)."""
        return self._trainer().evaluate(self, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`: logits (B, H, W, C) float32."""
        return self._trainer().predict(self, *args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.train_on_batch(self, *args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.test_on_batch(self, *args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.predict_on_batch(self, *args, **kwargs)


def check_pyramid(backbone: keras.Model, num_classes: int, levels: tuple[str, ...]) -> None:
    """Refuses what no segmentation model can be built on.

    Raises:
        ValueError: if `backbone` has no pyramid with these levels or is channels_first, or
            `num_classes` is not positive.
    """
    if num_classes < 1:
        raise ValueError(f"`num_classes` is {num_classes}; give a positive integer.")
    outputs = getattr(backbone, "pyramid_outputs", None)
    missing = [level for level in levels if level not in (outputs or {})]
    if outputs is None or missing:
        raise ValueError(
            f"`backbone` {backbone.name!r} has no level {', '.join(missing)} in "
            "`pyramid_outputs`; pass one of keras_densepred's backbones."
        )
    if getattr(backbone, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"`backbone` {backbone.name!r} is channels_first; segmentation models here take "
            'channels_last images, so build the backbone with data_format="channels_last".'
        )
