"""Image classification by the mean of one map and a linear layer: BiCSNet's and CSPNet's heads."""

from typing import Any

import keras
from keras import layers

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone
from keras_densepred.backbones.saved_preset import BackboneClass
from keras_densepred.layers.image_input import to_channels_last
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.upsampling import PyramidMean
from keras_densepred.models.classifier import Classifier


@keras.saving.register_keras_serializable(package="keras_densepred")
class PooledImageClassifier(Classifier):
    """Classifier for any pyramid backbone: the mean of P5 over all positions, then a linear layer.

    Families without a classifier of their own get this one, those of users included.

    Input: images as the backbone wants them. Output: `(batch, num_classes)`, logits unless
    `activation` is given.

    Args:
        backbone: a `PyramidBackbone` with a P5.
        num_classes: number of classes.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the head, by default the backbone's.

    Raises:
        ValueError: if `backbone` is no pyramid backbone or has no P5, or `num_classes` is not
            positive.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.ResNetBackbone((1, 1, 1, 1), width=8)
    >>> model = keras_densepred.models.PooledImageClassifier(backbone, num_classes=3)
    >>> model(numpy.zeros((2, 64, 64, 3))).shape == (2, 3)
    True
    """

    @classmethod
    def outputs_of(
        cls, backbone: PyramidBackbone, num_classes: int, activation: Any, dtype: Any
    ) -> Any:
        x = cls.pooled_map(backbone, dtype)
        x = layers.GlobalAveragePooling2D("channels_last", name="head_pool", dtype=dtype)(x)
        logits = layers.Dense(
            num_classes, kernel_initializer=FanInNormal(), name="head_logits", dtype=dtype
        )(x)
        if activation is None:
            return logits
        return layers.Activation(activation, name="head_activation", dtype=dtype)(logits)

    @classmethod
    def pooled_map(cls, backbone: PyramidBackbone, dtype: Any) -> Any:
        """The symbolic map `(batch, height, width, channels)` that the head averages."""
        if "P5" not in backbone.pyramid_outputs:
            raise ValueError(
                f"`backbone` {backbone.name!r} has the levels "
                f"{', '.join(backbone.pyramid_outputs)}; the classifier pools P5."
            )
        p5 = backbone.pyramid_outputs["P5"]
        return to_channels_last(p5, backbone.data_format, "head_p5_input", dtype)


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

    @classmethod
    def pooled_map(cls, backbone: PyramidBackbone, dtype: Any) -> Any:
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

    The mean of P5 over all positions, then a linear layer, whose weights can be exchanged with
    Darknet's files.

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

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of the authors' files (`convert.darknet`)."""
        return (*self.backbone.darknet_order, "head_logits")
