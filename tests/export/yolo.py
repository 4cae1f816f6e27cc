"""A small detector with something to find, and what its exported files are compared by."""

import keras
import numpy as np

from keras_densepred.models import YOLOv3Detector
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights

BACKEND = keras.config.backend()
SIZE = (64, 96)
IMAGES = np.random.default_rng(0).uniform(size=(2, *SIZE, 3)).astype("float32")
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}  # boxes are in pixels
ANCHORS = [(8, 8), (12, 14), (20, 24), (34, 28), (50, 56), (88, 60)]


def yolo():
    model = YOLOv3Detector(ToyPyramid(ready=False), 3, "prn", ANCHORS, loss="ciou")
    set_deterministic_weights(model)
    for level in model.masks:
        bias = model.get_layer(f"yolo_{level.lower()}_prediction").bias
        bias.assign(np.random.default_rng(1).normal(0, 2, bias.shape))
    return model
