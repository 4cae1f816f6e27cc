"""What trains: a classifier, detectors on KerasHub and KerasCV, and the parts they are made of.

`RetinaNetKerasCV` needs KerasCV (and so TensorFlow); it is imported when first asked for.
"""

import importlib
from typing import Any

from keras_densepred.models.classifier import CEDNetImageClassifier, image_classifier
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.heads import PredictionHead
from keras_densepred.models.losses import BoxL1Loss, SigmoidFocalLoss
from keras_densepred.models.retinanet import RetinaNetKerasHub

__all__ = [
    "BoxL1Loss",
    "CEDNetImageClassifier",
    "NonMaxSuppression",
    "PredictionHead",
    "RetinaNetKerasCV",
    "RetinaNetKerasHub",
    "SigmoidFocalLoss",
    "image_classifier",
]


def __getattr__(name: str) -> Any:
    if name == "RetinaNetKerasCV":
        module = importlib.import_module("keras_densepred.models.retinanet_keras_cv")
        return module.RetinaNetKerasCV
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
