"""Image classification by the mean of one map and a linear layer: BiCSNet's and CSPNet's heads."""

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import keras_hub
from keras import layers

from keras_densepred.backbones.backbone import PyramidBackbone, to_channels_last
from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.csp_densenet import CSPDenseNetBackbone, PeleeNetBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone
from keras_densepred.backbones.elastic_densenet import ElasticDenseNetBackbone
from keras_densepred.backbones.saved_preset import BackboneClass, any_backbone
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.upsampling import PyramidMean
from keras_densepred.models.compiling import CompiledAsSaved


class PooledImageClassifier(CompiledAsSaved, keras_hub.models.ImageClassifier):
    """What the classifiers share: one map's mean over all positions, then a linear layer.

    A subclass says by `pooled_map` which map that is.

    Input: images as the backbone wants them. Output: `(batch, num_classes)`, logits unless
    `activation` is given.

    Args:
        backbone: a `PyramidBackbone`.
        num_classes: number of classes.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the head, by default the backbone's.
    """

    backbone_classes: ClassVar[tuple[type[PyramidBackbone], ...]] = ()

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

        # === Functional model ===
        x = self.pooled_map(backbone, head_dtype)
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

    @classmethod
    def pooled_map(cls, backbone: PyramidBackbone, dtype: Any):
        """The symbolic map `(batch, height, width, channels)` that the head averages."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        config = super(keras_hub.models.ImageClassifier, self).get_config()
        return {
            **config,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "head_dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any):
        """Builds a classifier from a preset of one of its backbones or of a saved classifier.

        Args:
            preset: as for the backbones' `from_preset`.
            load_weights: as for the backbones' `from_preset`.
            **kwargs: `num_classes` (needed unless the preset is of a classifier) and other
                arguments of the constructor.

        Returns:
            The model.

        Raises:
            ValueError: if there is no such preset.
        """
        for backbone_cls in cls.backbone_classes:
            if backbone_cls.architecture_preset_name(preset) is not None:
                return cls(backbone=backbone_cls.from_preset(preset), **kwargs)
        with any_backbone(preset):
            return super().from_preset(preset, load_weights, **kwargs)


@keras.saving.register_keras_serializable(package="keras_densepred")
class BiCSNetImageClassifier(PooledImageClassifier):
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

    backbone_cls = BackboneClass(BiCSNetBackbone)
    backbone_classes = (BiCSNetBackbone, BiCSNetLiteBackbone)

    @classmethod
    def pooled_map(cls, backbone: PyramidBackbone, dtype: Any):
        widths = {level: info.channels for level, info in backbone.feature_info.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(
                "The classifier averages the levels, so they must be of one width; the backbone's "
                f"are {widths}."
            )
        levels = [
            to_channels_last(x, backbone.data_format, f"head_{level.lower()}_input", dtype)
            for level, x in backbone.pyramid_outputs.items()
        ]
        return PyramidMean(name="head_mean", dtype=dtype)(levels)


@keras.saving.register_keras_serializable(package="keras_densepred")
class CSPNetImageClassifier(PooledImageClassifier):
    """Classifier of CSPNet's and PeleeNet's backbones (Wang et al., 2019, table 2).

    The mean of P5 over all positions, then a linear layer.

    Input: images as the backbone wants them. Output: `(batch, num_classes)`, logits unless
    `activation` is given.

    Args:
        backbone: a `CSPNetBackbone`, `CSPDenseNetBackbone`, `PeleeNetBackbone` or
            `ElasticDenseNetBackbone`, or another `PyramidBackbone` with a P5.
        num_classes: number of classes, 1000 for ImageNet.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the head, by default the backbone's.

    Example:

    >>> import keras_densepred, numpy
    >>> model = keras_densepred.CSPNetImageClassifier.from_preset("csp_peleenet", num_classes=3)
    >>> model(numpy.zeros((2, 64, 64, 3))).shape == (2, 3)
    True
    """

    backbone_cls = BackboneClass(CSPNetBackbone)
    backbone_classes = (
        CSPNetBackbone,
        CSPDenseNetBackbone,
        PeleeNetBackbone,
        ElasticDenseNetBackbone,
    )

    @classmethod
    def pooled_map(cls, backbone: PyramidBackbone, dtype: Any):
        p5 = backbone.pyramid_outputs["P5"]
        return to_channels_last(p5, backbone.data_format, "head_p5_input", dtype)

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of the authors' files (`convert.darknet`)."""
        return (*self.backbone.darknet_order, "head_logits")
