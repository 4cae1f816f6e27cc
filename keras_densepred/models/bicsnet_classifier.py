"""Image classification with BiCSNet: levels refined to the finest, averaged, one linear layer."""

from collections.abc import Callable
from typing import Any

import keras
import keras_hub
from keras import layers
from keras_hub.src.utils import preset_utils

from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.pyramid_backbone import PyramidBackbone, to_channels_last
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.upsampling import PyramidMean


@keras.saving.register_keras_serializable(package="keras_densepred")
class BiCSNetImageClassifier(keras_hub.models.ImageClassifier):
    """BiCSNet classifier (Peng et al., 2022), for ImageNet and iNaturalist.

    P4 to P7 are nearest up-sampled to P3, the five maps averaged, then all positions; a linear
    layer follows.

    Input: images as the backbone wants them. Output: `(batch, num_classes)`, logits unless
    `activation` is given.

    Args:
        backbone: a `BiCSNetBackbone` or `BiCSNetLiteBackbone`, or another `PyramidBackbone` whose
            levels are all of one width.
        num_classes: number of classes, 1000 for ImageNet, 8142 for iNaturalist 2018.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the head, by default the backbone's.

    Raises:
        ValueError: if the backbone's levels differ in width.

    Example:

    >>> import keras_densepred, numpy
    >>> model = keras_densepred.BiCSNetImageClassifier.from_preset("bicsnet_lite0", num_classes=3)
    >>> model(numpy.zeros((2, 64, 64, 3))).shape == (2, 3)
    True
    """

    backbone_cls = BiCSNetBackbone

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        preprocessor: Any = None,
        activation: str | Callable | None = None,
        head_dtype: Any = None,
        **kwargs: Any,
    ):
        head_dtype = keras.dtype_policies.get(head_dtype or backbone.dtype_policy)
        widths = {level: info.channels for level, info in backbone.feature_info.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(
                "The classifier averages the levels, so they must be of one width; the backbone's "
                f"are {widths}."
            )

        # === Functional model ===
        levels = [
            to_channels_last(x, backbone.data_format, f"head_{level.lower()}_input", head_dtype)
            for level, x in backbone.pyramid_outputs.items()
        ]
        x = PyramidMean(name="head_mean", dtype=head_dtype)(levels)
        x = layers.GlobalAveragePooling2D("channels_last", name="head_pool", dtype=head_dtype)(x)
        logits = layers.Dense(
            num_classes, kernel_initializer=FanInNormal(), name="head_logits", dtype=head_dtype
        )(x)
        if activation is not None:
            logits = layers.Activation(activation, name="head_activation", dtype=head_dtype)(logits)
        self.backbone = backbone
        self.preprocessor = preprocessor
        # Past the host's constructor, which would put its own pooled head on the backbone.
        super(keras_hub.models.ImageClassifier, self).__init__(
            inputs=backbone.input, outputs=logits, **kwargs
        )

        # === Config ===
        self.num_classes = num_classes
        self.activation = activation
        self.head_dtype = head_dtype

    def get_config(self) -> dict[str, Any]:
        config = super(keras_hub.models.ImageClassifier, self).get_config()
        return {
            **config,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "head_dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }

    @classmethod
    def from_preset(
        cls, preset: str, load_weights: bool = True, **kwargs: Any
    ) -> "BiCSNetImageClassifier":
        """Builds a classifier from a preset of a BiCSNet backbone or of a saved classifier.

        Args:
            preset: as for `BiCSNetBackbone.from_preset`, the Lite form's names included.
            load_weights: as for `BiCSNetBackbone.from_preset`.
            **kwargs: `num_classes` (needed unless the preset is of a classifier) and other
                arguments of the constructor.

        Returns:
            The model.

        Raises:
            ValueError: if there is no such preset.
        """
        for backbone_cls in (BiCSNetBackbone, BiCSNetLiteBackbone):
            if backbone_cls.architecture_preset_name(preset) is not None:
                return cls(backbone=backbone_cls.from_preset(preset), **kwargs)
        # Past Task.from_preset: it refuses every backbone whose class is not exactly
        # `backbone_cls` (keras-hub 0.32.0, preset_utils.find_subclass).
        loader = preset_utils.get_preset_loader(preset)
        return loader.load_task(cls, load_weights, "num_classes" not in kwargs, **kwargs)
