"""What trains: classifiers, detectors and segmenters, on KerasHub and KerasCV, and their parts.

`RetinaNetKerasCV` and `DeepLabV3PlusKerasCV` need KerasCV (and so TensorFlow); they are imported
when first asked for.
"""

import importlib
from typing import Any

from keras_densepred.models.bicsnet_classifier import BiCSNetImageClassifier
from keras_densepred.models.classifier import CEDNetImageClassifier
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.deeplab_v3 import ATROUS_RATES, DeepLabV3
from keras_densepred.models.deeplab_v3_keras_hub import DeepLabV3KerasHub
from keras_densepred.models.dense_inference import PAPER_SCALES, multi_scale, sliding_window
from keras_densepred.models.heads import PredictionHead
from keras_densepred.models.image_classifier import image_classifier
from keras_densepred.models.losses import BoxL1Loss, IgnoreCrossentropy, SigmoidFocalLoss
from keras_densepred.models.retinanet import RetinaNetKerasHub
from keras_densepred.models.two_stage import CascadeMaskRCNN, CascadeRCNN, FasterRCNN, MaskRCNN

__all__ = [
    "ATROUS_RATES",
    "PAPER_SCALES",
    "BiCSNetImageClassifier",
    "BoxL1Loss",
    "CEDNetImageClassifier",
    "CascadeMaskRCNN",
    "CascadeRCNN",
    "DeepLabV3",
    "DeepLabV3KerasHub",
    "DeepLabV3PlusKerasCV",
    "FasterRCNN",
    "IgnoreCrossentropy",
    "MaskRCNN",
    "NonMaxSuppression",
    "PredictionHead",
    "RetinaNetKerasCV",
    "RetinaNetKerasHub",
    "SigmoidFocalLoss",
    "image_classifier",
    "multi_scale",
    "sliding_window",
]


_KERAS_CV = {
    "DeepLabV3PlusKerasCV": "keras_densepred.models.deeplab_v3_keras_cv",
    "RetinaNetKerasCV": "keras_densepred.models.retinanet_keras_cv",
}


def __getattr__(name: str) -> Any:
    if name in _KERAS_CV:
        return getattr(importlib.import_module(_KERAS_CV[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
