"""keras_densepred: multi-scale backbones for dense prediction in Keras 3.

Data, metrics and training tools are in the subpackages of these names: `keras_densepred.data`,
`keras_densepred.metrics`, `keras_densepred.training`, `keras_densepred.convert`.
"""

from typing import TYPE_CHECKING

from keras_densepred import start
from keras_densepred._version import __version__
from keras_densepred.runtime import xla_flags

xla_flags.use_wide_vectors()

if TYPE_CHECKING or start.is_loaded():
    # `training` too, so that models saved with its optimizers and schedules can be loaded, and
    # `convert`, so that backbones take other libraries' presets.
    from keras_densepred import backbones, convert, layers, models, necks, ops, saved, training
    from keras_densepred.backbones import (
        BiCSNetBackbone,
        BiCSNetLiteBackbone,
        CEDNetBackbone,
        ConvNeXtBackbone,
        CSPDenseNetBackbone,
        CSPNetBackbone,
        ElasticDenseNetBackbone,
        HostBackbone,
        PeleeNetBackbone,
        ResNetBackbone,
    )
    from keras_densepred.models import (
        BiCSNetImageClassifier,
        CEDNetImageClassifier,
        CSPNetImageClassifier,
        NonMaxSuppression,
        RetinaNet,
    )
    from keras_densepred.necks import BiFPN, DetectionPyramid, FeaturePyramid
else:  # in a command, until it has read its flags
    __getattr__ = start.later(__name__)

__all__ = [
    "BiCSNetBackbone",
    "BiCSNetImageClassifier",
    "BiCSNetLiteBackbone",
    "BiFPN",
    "CEDNetBackbone",
    "CEDNetImageClassifier",
    "CSPDenseNetBackbone",
    "CSPNetBackbone",
    "CSPNetImageClassifier",
    "ConvNeXtBackbone",
    "DetectionPyramid",
    "ElasticDenseNetBackbone",
    "FeaturePyramid",
    "HostBackbone",
    "NonMaxSuppression",
    "PeleeNetBackbone",
    "ResNetBackbone",
    "RetinaNet",
    "__version__",
    "backbones",
    "convert",
    "layers",
    "models",
    "necks",
    "ops",
    "saved",
    "training",
]
