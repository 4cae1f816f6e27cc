"""RetinaNet on KerasHub: `keras_hub.models.RetinaNetObjectDetector` as the papers train it."""

from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.saved_preset import BackboneClass, any_backbone
from keras_densepred.models.retinanet.model import RetinaNetBase


@keras.saving.register_keras_serializable(package="keras_densepred")
class RetinaNetKerasHub(RetinaNetBase, keras_hub.models.RetinaNetObjectDetector):
    """`RetinaNet` as a KerasHub task: the same network, targets, losses and decoding.

    Where `keras_hub.models.RetinaNetObjectDetector` of keras-hub 0.32.0 differs: its focal prior
    sits on the box head and its kernels start at N(0, 0.05) (first loss 150 to 450, here about
    1.1 to 1.5); its losses are means over classes and coordinates, without alpha; a batch without
    boxes has no loss; small boxes that no anchor overlaps by half are background; anchor strides
    are rounded when the image is no multiple of 128; decoding is class-agnostic from score 0.5;
    `fit` takes no generator and `train_on_batch` no dictionary of targets.

    Args:
        backbone: `keras_densepred.DetectionPyramid` or a BiCSNet backbone (the heads run on its
            levels, no FPN), or a pyramid backbone with `pyramid_outputs` P3 to P5, around which
            KerasHub's FPN (P3 to P7, 256 channels) is put; a `keras_hub.models.
            RetinaNetBackbone` is taken too.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        preprocessor: a `keras_hub` preprocessor, or `None` for images that are ready. With `None`
            `fit`, `predict` and the others are plain Keras', generators included.
        **kwargs: `head_width`, `head_depth`, `head_initializer`, `head_activation`, `head_norm`,
            `head_separable`, `anchor_scale`, `assigner`, `prediction_decoder` and `dtype` as in
            `RetinaNet`, and arguments of `keras_hub.models.Task`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first.

    Example:
        pyramid = keras_densepred.DetectionPyramid(
            keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        )
        model = keras_densepred.models.RetinaNetKerasHub(pyramid, num_classes=80)
        model.compile(keras.optimizers.AdamW(1e-4))
        model.fit(images, {"boxes": boxes, "labels": labels})
    """

    backbone_cls = BackboneClass(keras_hub.models.RetinaNetBackbone)
    box_output = "bbox_regression"
    classification_output = "cls_logits"

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        *,
        preprocessor: Any = None,
        **kwargs: Any,
    ):
        super().__init__(backbone, num_classes, bounding_box_format, **kwargs)
        self.preprocessor = preprocessor

    def _make_model(self, **kwargs: Any) -> None:
        # RetinaNetObjectDetector.__init__ builds heads 256 wide and gives the focal prior to the
        # wrong one (keras-hub 0.32.0).
        keras_hub.models.ObjectDetector.__init__(self, **kwargs)

    def _trainer(self) -> type[keras.Model]:
        # keras_hub.models.Task maps its preprocessor over every input and so wants arrays or
        # datasets, and TensorFlow or Grain; without a preprocessor there is nothing to map.
        return keras.Model if self.preprocessor is None else keras_hub.models.ObjectDetector

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on (images, {"boxes", "labels"})."""
        return self._trainer().fit(self, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: the losses on (images, {"boxes", "labels"})."""
        return self._trainer().evaluate(self, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `keras.Model.predict`: NumPy detections, as `decode_predictions` describes them."""
        return self._trainer().predict(self, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; a preprocessor, if any, is not applied."""
        # keras-hub 0.32.0 calls convert_to_tensor on the dictionary of targets and fails.
        return keras.Model.train_on_batch(self, x, y, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.test_on_batch(self, x, y, **kwargs)

    def predict_on_batch(self, x: Any, **kwargs: Any) -> dict[str, Any]:
        """As `keras.Model.predict_on_batch`: NumPy detections of one batch."""
        return self._trainer().predict_on_batch(self, x, **kwargs)

    @classmethod
    def from_preset(
        cls, preset: str, load_weights: bool = True, **kwargs: Any
    ) -> "RetinaNetKerasHub":
        """Loads what `save_to_preset` wrote, or puts new heads on a backbone's preset.

        Args:
            preset: directory or handle of a detector's preset, or of a pyramid's or backbone's
                (then give `num_classes`).
            load_weights: whether to load the weights of the preset.
            **kwargs: constructor arguments that replace the preset's.

        Returns:
            The model.
        """
        with any_backbone(preset):
            return super().from_preset(preset, load_weights, **kwargs)
