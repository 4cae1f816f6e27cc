"""What trains: classifiers, detectors on KerasHub and KerasCV, and the parts they are made of.

`RetinaNetKerasCV` needs KerasCV (and so TensorFlow); it is imported when first asked for.
"""

import importlib
from typing import Any

from keras_densepred.models.bicsnet_classifier import BiCSNetImageClassifier
from keras_densepred.models.classifier import CEDNetImageClassifier
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.heads import PredictionHead
from keras_densepred.models.image_classifier import image_classifier
from keras_densepred.models.losses import BoxL1Loss, SigmoidFocalLoss
from keras_densepred.models.retinanet import RetinaNetKerasHub

__all__ = [
    "BiCSNetImageClassifier",
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
