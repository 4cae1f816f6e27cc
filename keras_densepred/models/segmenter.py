"""What every semantic segmenter promises, and its loss."""

from typing import Any, Self

import keras
import keras_hub
from keras import ops

from keras_densepred.backbones.host_graph import check_levels_are_true
from keras_densepred.faults import require_positive
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.compiling import CompiledAsSaved
from keras_densepred.models.pyramid import check_channels_last
from keras_densepred.runtime.replicas import share_of_mean

PAPER_LEARNING_RATE = 0.02  # BiCSNet on VOC, of batch 256


@keras.saving.register_keras_serializable(package="keras_densepred")
class IgnoreCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Cross-entropy of logits with integer labels, mean over the pixels of a batch.

    `keras.losses.SparseCategoricalCrossentropy` for logits only: with probabilities its gradient
    fails on PyTorch for maps ("grad_input must be contiguous", keras 3.15.1: it moves the
    class axis and calls `nll_loss`), while logits go through `cross_entropy`, which is right. All
    segmentation models here give logits and train with this loss, the hosts' included.

    Args:
        ignore_label: label of pixels that do not count; a batch of nothing else has loss 0.
        reduction: as in `keras.losses.Loss`; `"sum_over_batch_size"` is the mean.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
        average: what the sum is divided by: the number of `"labelled"` pixels, or of `"all"`, as
            MMSegmentation does, so that a picture of which much is ignored counts less.

    Raises:
        ValueError: if `average` is neither.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        reduction: str = "sum_over_batch_size",
        name: str = "ignore_crossentropy",
        dtype: Any = None,
        average: str = "labelled",
    ):
        if average not in ("labelled", "all"):
            raise ValueError(f'`average` must be "labelled" or "all", and is {average!r}.')
        super().__init__(
            from_logits=True,
            ignore_class=ignore_label,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.ignore_label = ignore_label
        self.average = average

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each pixel, 0 where it is ignored."""
        losses = super().call(y_true, y_pred)
        # Keras hands the labelled pixels on as a mask of this tensor, and counts those alone.
        return losses if self.average == "labelled" else 1.0 * losses

    def get_config(self) -> dict[str, Any]:
        # Past the host's, whose arguments are fixed here and become more (label smoothing in 3.16).
        return {
            **keras.losses.Loss.get_config(self),
            "ignore_label": self.ignore_label,
            "average": self.average,
        }


class Segmenter(CompiledAsSaved):
    """What every semantic segmenter promises, whichever host's class it is.

    Images `(B, H, W, 3)` as the backbone wants them give logits `(B, H, W, C)`; training takes
    masks `(B, H, W)` of integers, 255 where there is no class. A segmenter is `class
    Family(Segmenter, keras.Model)`, or a host's class for `keras.Model`; it builds its graph in the
    constructor, sets `backbone` and `num_classes`, and adds its other arguments to `get_config`.
    The rest is here: defaults of `compile`, what is refused, the loss over several devices, and a
    file that loads with the optimizer and loss it was saved with.

    Where hosts differ: `keras_hub.models.ImageSegmenter` of keras-hub 0.32.0 compiles with
    categorical cross-entropy, which wants one-hot masks and knows no ignored pixels.

    Attributes:
        task: `"segmentation"`, by which the command line knows what to do with a saved model.
        backbone: the pyramid backbone that it stands on.
        num_classes: C, the background included where it is a class.
    """

    task = "segmentation"
    backbone: Any
    num_classes: int

    @property
    def size_divisor(self) -> int:
        """Height and width of images must be multiples of it."""
        return getattr(self.plain_backbone, "size_divisor", 1)

    @property
    def plain_backbone(self) -> keras.Model:
        """The backbone without the encoder and decoder that a host puts around it."""
        backbone = self.backbone
        if isinstance(backbone, keras_hub.models.DeepLabV3Backbone):
            return backbone.image_encoder
        return backbone

    def class_axes(self) -> dict[str, ClassAxis]:
        """By their paths, the weights whose last axis holds classes (`class_axis.copy_weights`)."""
        *_, last = (layer for layer in self.layers if layer.weights)
        logits = [w for w in last.weights if w.shape[-1] == self.num_classes]
        return axes_of(logits, ClassAxis())

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """What `compile` takes by default: SGD with momentum, at BiCSNet's peak learning rate."""
        return keras.optimizers.SGD(PAPER_LEARNING_RATE, momentum=0.9)

    def default_loss(self) -> keras.losses.Loss:
        """What `compile` takes by default: the mean over the labelled pixels."""
        return IgnoreCrossentropy()

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
            optimizer: a Keras optimizer, or `"auto"` for `default_optimizer()`.
            loss: loss of masks (B, H, W) against logits (B, H, W, C), or `"auto"` for
                `default_loss()`.
            metrics: Keras metrics, none by default: mean IoU over a split is computed by
                `keras_densepred.metrics.SegmentationEvaluation`.
            **kwargs: further arguments of `keras.Model.compile`.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = self.default_optimizer()
        if isinstance(loss, str) and loss == "auto":
            loss = self.default_loss()
        # Past the host's, whose defaults are for one-hot masks.
        keras.Model.compile(self, optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """As `keras.Model.compute_loss`; `IgnoreCrossentropy` is the mean over the whole batch.

        Where several devices share a batch, it is the mean over the pixels of all devices, however
        the labelled ones are distributed.

        Args:
            x: images (B, H, W, 3).
            y: masks (B, H, W).
            y_pred: logits (B, H, W, C).
            sample_weight: as in `keras.Model.compute_loss`; the loss is then averaged over each
                device's own rows.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss.

        Raises:
            ValueError: if `IgnoreCrossentropy` gets anything but integer masks of the logits' size.
        """
        if not isinstance(self.loss, IgnoreCrossentropy):
            return keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
        _check_masks(y, y_pred)
        loss = keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
        if sample_weight is not None or self.loss.reduction != "sum_over_batch_size":
            return loss
        if self.loss.average == "all":
            return loss  # all devices have equally many pixels
        labelled = ops.sum(ops.cast(ops.not_equal(y, self.loss.ignore_label), "float32"))
        return loss * share_of_mean(labelled)

    def get_config(self) -> dict[str, Any]:
        config = {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "name": self.name,
        }
        if hasattr(self, "preprocessor"):  # of KerasHub's tasks
            config["preprocessor"] = keras.saving.serialize_keras_object(self.preprocessor)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict) and "class_name" in value
                else value
                for name, value in config.items()
            }
        )


def check_backbone(backbone: keras.Model, num_classes: int, levels: tuple[str, ...]) -> None:
    """Refuses what no segmenter can be built on.

    Raises:
        ValueError: if `backbone` has no pyramid with these levels or is channels_first, or
            `num_classes` is not positive.
    """
    require_positive(num_classes=num_classes)
    check_levels_are_true(backbone)
    outputs = backbone.pyramid_outputs
    missing = [level for level in levels if level not in outputs]
    if missing:
        raise ValueError(
            f"`backbone` {backbone.name!r} has no level {', '.join(missing)} in "
            "`pyramid_outputs`; pass one of keras_densepred's backbones."
        )
    check_channels_last(backbone, "a segmenter")


def _check_masks(masks: Any, logits: Any) -> None:
    """Refuses targets that the loss would take wrongly, or fail on far from their cause."""
    shape = tuple(getattr(masks, "shape", ()))
    if len(shape) == 4 and shape[-1] == 1:
        shape = shape[:3]
    size = tuple(logits.shape)[:3]
    fits = all(None in pair or pair[0] == pair[1] for pair in zip(shape, size, strict=False))
    if len(shape) != 3 or not fits:
        raise ValueError(
            "A segmenter trains on masks (batch, height, width) of class numbers at the images' "
            f"size, {size} here, and got {shape or type(masks).__name__}."
        )
    if "int" not in keras.backend.standardize_dtype(masks.dtype):
        raise ValueError(f"Masks are class numbers, integers, and these are {masks.dtype}.")
