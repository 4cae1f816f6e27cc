"""The contract of detectors: what a family writes, and all that is the same for every one."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import keras_hub
from keras import ops

from keras_densepred.models.class_axis import ClassAxis
from keras_densepred.models.compiling import CompiledAsSaved
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.necks.neck import Neck
from keras_densepred.runtime.replicas import loss_for_logs

Tensor = Any


class LossTracker(keras.metrics.Mean):
    """Mean over an epoch of one part of the loss; a saved model does not hold it."""

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: a loaded model starts a new epoch."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing, whatever the file holds."""


class Detector(CompiledAsSaved):
    """Base of all detectors, in front of `keras.Model` or of a host's class.

    `fit` takes (images, targets), `predict` returns NumPy detections. A family is
    `class Family(Detector, keras.Model)`; it writes

    * a constructor that ends with `_set_detector`, and keeps each of its arguments as an attribute
      of the same name (`dtype` as `head_dtype`): these are its config;
    * `compute_losses` and `detections`;
    * `default_optimizer` and `class_axes`.

    The rest is here: `compile`, the checks of what is given to it and to `fit`, box formats, logs,
    prediction on every backend, config, and compiling a loaded model as it was saved.

    Attributes:
        task: `"detection"`.
        target_keys: what `fit` needs for each image; `"masks"` too where masks train.
        optional_target_keys: what it uses where it is given.
        input_keys: what the model is given, see `data.model_input`; `"image_sizes"` too where
            padding is told from image.
        backbone: the model that the heads stand on, a neck included.
        num_classes: C, without background.
        bounding_box_format: format of boxes in training and prediction.
        head_dtype: dtype policy of what stands on the backbone.
        loss_trackers: one for each part of the loss, named as the logs name it.
    """

    task: ClassVar[str] = "detection"
    target_keys: ClassVar[tuple[str, ...]] = ("boxes", "labels")
    optional_target_keys: ClassVar[tuple[str, ...]] = ()
    input_keys: ClassVar[tuple[str, ...]] = ("images",)

    @property
    def with_masks(self) -> bool:
        """Whether it predicts masks: what trains on them does."""
        return "masks" in self.target_keys

    def _set_detector(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str,
        dtype: Any,
        losses: Sequence[str],
    ) -> None:
        """Ends a constructor; `losses` are the keys of `compute_losses`, in the logs' order."""
        self.backbone = backbone
        self.num_classes = num_classes
        self.bounding_box_format = bounding_box_format
        self.head_dtype = keras.dtype_policies.get(dtype)
        self.loss_trackers = [LossTracker(name=name) for name in losses]

    # === What a family writes ===

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of `compile("auto")`: the paper's."""
        raise NotImplementedError

    def class_axes(self) -> dict[str, ClassAxis]:
        """By their paths, the weights whose last axis holds classes (`class_axis.copy_weights`)."""
        raise NotImplementedError

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Any],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """The parts of the loss.

        Args:
            images: (B, H, W, 3).
            targets: `"boxes"` (B, M, 4) float32 xyxy in pixels and `"labels"` (B, M) int32, M >= 1,
                negative where there is no object; `"masks"` (B, M, S, S) where they train, each
                from edge to edge of its box; `"image_sizes"` (B, 2) where a family uses them and
                they are given.
            outputs: what the model returns for `images`.
            training: whether this is a training step.

        Returns:
            float32 scalars by their names in the logs. Each is divided by a
            `runtime.replicas.loss_normalizer`, so that it is a share of the loss of the whole
            batch, over all devices.
        """
        raise NotImplementedError

    def detections(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        """Final detections from raw outputs.

        Args:
            outputs: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            `"boxes"` (B, D, 4) in `bounding_box_format`, `"labels"` (B, D) int32 and
            `"confidence"` (B, D) in descending order, all -1 past `"num_detections"` (B,); and
            `"masks"` (B, D, S, S) probabilities where they are predicted, from edge to edge of the
            boxes, for an S of the family.
        """
        raise NotImplementedError

    # === What all have ===

    @staticmethod
    def images_of(inputs: Any) -> Tensor:
        """The images (B, H, W, 3) of what the model takes: themselves, or `"images"` among more."""
        return inputs["images"] if isinstance(inputs, dict) else inputs

    def in_box_format(self, found: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Detections with boxes xyxy in pixels, as those in `bounding_box_format`.

        Args:
            found: as `detections` returns them, rows without a detection having negative labels.
            images: (B, H, W, 3); only their shape is read.
        """
        height, width = ops.shape(images)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            found["boxes"], "xyxy", self.bounding_box_format, height=height, width=width
        )
        return {**found, "boxes": ops.where(found["labels"][..., None] < 0, -1.0, boxes)}

    def decode_predictions(self, outputs: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
        """The hosts' name for `detections`."""
        return self.detections(outputs, images)

    @property
    def size_divisor(self) -> int:
        """Height and width of images must be multiples of it."""
        return getattr(self.backbone, "size_divisor", 1)

    @property
    def plain_backbone(self) -> keras.Model:
        """The backbone without its neck."""
        backbone = self.backbone
        while isinstance(backbone, Neck):
            backbone = backbone.backbone
        if isinstance(backbone, keras_hub.models.RetinaNetBackbone):
            return backbone.image_encoder
        return backbone

    def compile(
        self, optimizer: Any = "auto", *, loss: None = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Configures training.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for `default_optimizer()`.
            loss: not taken; a detector has its own losses.
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `loss` or `metrics` are given.
        """
        if loss is not None or metrics:
            raise ValueError(
                f"{type(self).__name__} takes no `loss` and no `metrics` in compile(): its losses "
                "are its own; evaluate with keras_densepred.metrics.CocoEvaluation."
            )
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = self.default_optimizer()
        keras.Model.compile(self, optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved."""
        # Losses in the files of earlier versions only carried parts that were computed already.
        super().compile_from_config({k: value for k, value in config.items() if k != "loss"})

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Any],
        sample_weight: None = None,
        training: bool = True,
    ) -> Tensor:
        """The sum of `compute_losses` and of what layers add; the logs show each part.

        Args:
            x: (B, H, W, 3) images, or a dictionary with them where a family takes more.
            y: `"boxes"` (B, M, 4) in `bounding_box_format` and `"labels"` (B, M), padded with -1,
                and the others of `target_keys`.
            y_pred: what `model(x)` returns.
            sample_weight: not taken.
            training: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss; a batch without any object has the loss of its background.

        Raises:
            ValueError: if `sample_weight` is given, or `y` lacks a key.
        """
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} weights its samples itself: fit without `sample_weight`."
            )
        images = self.images_of(x)
        parts = self.compute_losses(images, self.targets_in_pixels(y, images), y_pred, training)
        for tracker in self.loss_trackers:
            part = loss_for_logs(parts[tracker.name])
            # Weighted like the total that Keras logs.
            tracker.update_state(part, sample_weight=ops.shape(images)[0])
        total: Tensor = sum(parts.values())
        for extra in self.losses:
            total = total + ops.sum(extra)
        return total

    def targets_in_pixels(self, y: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """What `fit` takes, as `compute_losses` takes it.

        Args:
            y: with `"boxes"` (B, M, 4) in `bounding_box_format` and the others of `target_keys`.
            images: (B, H, W, 3); only their shape is read.

        Raises:
            ValueError: if `y` lacks a key.
        """
        if set(self.target_keys) - set(y):
            raise ValueError(
                f"The targets hold {sorted(y)}; "
                f"fit on (images, {{{', '.join(sorted(self.target_keys))}}})."
            )
        optional = [key for key in self.optional_target_keys if key in y]
        targets = {key: y[key] for key in (*self.target_keys, *optional)}
        height, width = ops.shape(images)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            targets["boxes"], self.bounding_box_format, "xyxy", height=height, width=width
        )
        targets["boxes"] = ops.cast(boxes, "float32")
        targets["labels"] = ops.cast(targets["labels"], "int32")
        # None: TensorFlow has met several numbers of rows, and may meet none.
        if boxes.shape[1] not in (0, None):
            return targets
        return targets | {
            key: ops.pad(
                targets[key],
                [(0, 0), (0, 1), *[(0, 0)] * (len(targets[key].shape) - 2)],
                constant_values=0 if key == "masks" else -1,
            )
            for key in self.target_keys
        }

    def predict_step(self, *args: Any) -> Any:
        """Detections of a batch; JAX passes (state, data), the other backends (data,)."""
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        images = self.images_of(inputs)
        if len(args) == 1:
            return self.detections(self(inputs, training=False), images)
        trainable, non_trainable = args[0]
        values = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
        ]
        # Around both: the second stage of an R-CNN has weights, too.
        with keras.StatelessScope(state_mapping=values) as scope:
            found = self.detections(self(inputs, training=False), images)
        return found, [scope.get_current_value(v) for v in self.non_trainable_variables]

    def get_config(self) -> dict[str, Any]:
        names = [
            name
            for cls in reversed(type(self).__mro__)
            if issubclass(cls, Detector) and "__init__" in vars(cls)
            for name, parameter in inspect.signature(cls.__init__).parameters.items()
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
        ]
        values = {
            name: self.head_dtype if name == "dtype" else getattr(self, name) for name in names
        }
        config = {
            name: keras.saving.serialize_keras_object(value) for name, value in values.items()
        }
        return {**config, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
                if isinstance(value, dict)
                else value
                for name, value in config.items()
            }
        )


class DenseDetector(Detector):
    """A detector whose detections are chosen from one set of boxes with scores.

    A family writes `boxes_and_scores` instead of `detections`; export asks for it, too.
    """

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """All boxes and their scores, before any suppression.

        Args:
            outputs: what `model(images)` returns.
            images: (B, H, W, 3); only their shape is read.

        Returns:
            (B, N, 4) xyxy in pixels, inside the image, and (B, N, C) scores in [0, 1], float32.
        """
        raise NotImplementedError

    def detections(self, outputs: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        boxes, scores = self.boxes_and_scores(outputs, images)
        return self._decode(boxes, scores, images)

    def _decode(self, boxes: Tensor, scores: Tensor, images: Tensor) -> dict[str, Tensor]:
        """What the decoder makes of boxes (B, N, 4) xyxy in pixels and their scores or logits."""
        height, width = ops.shape(images)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            boxes, "xyxy", self.bounding_box_format, height=height, width=width
        )
        return self.prediction_decoder(boxes, scores, images=images)

    def __setattr__(self, name: str, value: Any) -> None:
        # On PyTorch a layer is a `torch.nn.Module`, and one of these takes another as its own
        # without asking a property's setter (torch 2.13).
        if name == "prediction_decoder":
            object.__setattr__(self, name, value)  # which asks it
        else:
            super().__setattr__(name, value)

    @property
    def prediction_decoder(self) -> keras.layers.Layer:
        """The layer from boxes and scores to detections."""
        return self._prediction_decoder

    @prediction_decoder.setter
    def prediction_decoder(self, decoder: keras.layers.Layer) -> None:
        ours = isinstance(decoder, NonMaxSuppression)
        if ours and decoder.bounding_box_format != self.bounding_box_format:
            raise ValueError(
                f"`prediction_decoder` gives boxes as {decoder.bounding_box_format!r} and the "
                f"detector as {self.bounding_box_format!r}: make both the same."
            )
        # Keras lets no layer into a model that is built, as ours that are no functional ones are;
        # it guards weights, of which a decoder has none.
        object.__setattr__(self, "_prediction_decoder", decoder)
        self.predict_function = None  # the compiled one has the old decoder in it
