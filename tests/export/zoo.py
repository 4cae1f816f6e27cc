"""A small model of every kind, with weights that differ and something to find."""

import functools

import keras
import numpy as np

from keras_densepred import models
from tests.contracts.families import OwnBackbone, small_backbone
from tests.export.dense import dense
from tests.export.detr import detr
from tests.export.mask2former import mask2former, mask2former_centres
from tests.export.two_stage import CLASSES, two_stage
from tests.export.yolo import yolo
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights

TRANSFORMER = dict(width=16, num_queries=6, encoder_layers=1, decoder_layers=2, num_heads=2)
TRANSFORMER |= dict(encoder_hidden=16, decoder_hidden=16)


def filled(make, *arguments, **options):
    model = make(*arguments, **options)
    set_deterministic_weights(model)
    return model


def retinanet(name):
    model = filled(getattr(models, name), ToyPyramid(), 3, head_width=8, head_depth=1)
    bias = model.classification_head.prediction.bias
    bias.assign(np.random.default_rng(1).normal(0, 1, bias.shape))
    return model


def on_cednet(make, **options):
    return filled(make, small_backbone("cednet"), 3, **options)


def yolo_v8():
    model = models.YOLOV8KerasCV(ToyPyramid(), 3, fpn_depth=1)
    set_deterministic_weights(model)
    return model


def fixed_size():
    return filled(small_backbone, "own", image_shape=(64, 96, 3))


# KerasCV's are looked up when they are made: it may not be there.
ZOO = {
    **{name: functools.partial(two_stage, name) for name in CLASSES},
    "yolo": yolo,
    "yolo_v8": yolo_v8,
    "dense": dense,
    "reppoints": lambda: filled(models.RepPoints, ToyPyramid(), 3, head_width=8),
    "retinanet": functools.partial(retinanet, "RetinaNet"),
    "retinanet_keras_hub": functools.partial(retinanet, "RetinaNetKerasHub"),
    "retinanet_keras_cv": functools.partial(retinanet, "RetinaNetKerasCV"),
    "detr": detr,
    "mask2former": mask2former,
    "centres": mask2former_centres,
    "mask2former_segmenter": lambda: filled(
        models.Mask2FormerSegmenter, OwnBackbone(), 3, **TRANSFORMER
    ),
    "deeplab": lambda: on_cednet(models.DeepLabV3, width=8),
    "deeplab_keras_hub": lambda: on_cednet(models.DeepLabV3KerasHub),
    "deeplab_keras_cv": lambda: on_cednet(models.DeepLabV3PlusKerasCV),
    "upernet": lambda: on_cednet(models.UperNet, width=8, auxiliary_width=8),
    "classifier": lambda: on_cednet(models.CEDNetImageClassifier),
    "cednet": lambda: filled(small_backbone, "cednet"),
    "own": lambda: filled(OwnBackbone),
}
NEEDS_KERAS_CV = ("yolo_v8", "retinanet_keras_cv", "deeplab_keras_cv")


@functools.cache
def model(name) -> keras.Model:
    return ZOO[name]()
