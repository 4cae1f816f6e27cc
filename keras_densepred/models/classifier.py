"""What every image classifier promises."""

from collections.abc import Callable
from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.faults import require_positive
from keras_densepred.models.hub_task import HubTask


class Classifier(HubTask, keras_hub.models.ImageClassifier):
    """A head that a subclass puts on a pyramid backbone, as a task of KerasHub.

    Images `(B, H, W, 3)` as the backbone wants them give `(B, num_classes)`, logits unless
    `activation` is given. A subclass says by `outputs_of` what the head is, and registers itself by
    `register_classifier` for the backbones that it belongs to; the rest is here: configuration,
    presets, training on any batches, and a file that loads as it was compiled. `compile` takes
    KerasHub's defaults: Adam at 5e-5, cross-entropy with integer labels, accuracy.

    Args:
        backbone: a `PyramidBackbone`.
        num_classes: number of classes.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the last linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the head, by default the backbone's.
        **kwargs: arguments of `keras_hub.models.Task`, such as `name`.

    Attributes:
        task: `"classification"`, by which the command line knows what to do with a saved model.

    Raises:
        ValueError: if `backbone` is no pyramid backbone, or `num_classes` is not positive.
    """

    task = "classification"

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        preprocessor: Any = None,
        activation: str | Callable | None = None,
        head_dtype: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(backbone, PyramidBackbone):
            raise ValueError(
                f"`backbone` is a {type(backbone).__name__}; classifiers stand on a "
                "keras_densepred.backbones.PyramidBackbone."
            )
        require_positive(num_classes=num_classes)
        head_dtype = keras.dtype_policies.get(head_dtype or backbone.dtype_policy)
        outputs = self.outputs_of(backbone, num_classes, activation, head_dtype)
        self.backbone = backbone
        self.preprocessor = preprocessor
        # Past the host's constructor, which would put its own pooled head on the backbone.
        super(keras_hub.models.ImageClassifier, self).__init__(
            inputs=backbone.input, outputs=outputs, **kwargs
        )
        self.num_classes = num_classes
        self.activation = activation
        self.head_dtype = head_dtype

    @property
    def size_divisor(self) -> int:
        """Height and width of images must be multiples of it."""
        return getattr(self.backbone, "size_divisor", 1)

    @classmethod
    def outputs_of(
        cls, backbone: PyramidBackbone, num_classes: int, activation: Any, dtype: Any
    ) -> Any:
        """The head's symbolic output `(batch, num_classes)`, or a list of such tensors."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        # The host's has arguments of its own head.
        config = super(keras_hub.models.ImageClassifier, self).get_config()
        return {
            **config,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "head_dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }
