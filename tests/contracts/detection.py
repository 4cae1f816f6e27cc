"""What the contract of detectors trains on, and what it reads and sets of a model."""

import keras
import numpy as np


def targets(kind="objects"):
    """Two objects in the first image and none in the second, or none at all."""
    rows = {"objects": 4, "padding": 4, "no_rows": 0}[kind]
    y = {
        "boxes": np.full((2, rows, 4), -1, "float32"),
        "labels": np.full((2, rows), -1, "int32"),
        "masks": np.zeros((2, rows, 10, 10), "uint8"),
    }
    if kind == "objects":
        y["boxes"][0, :2] = [[8, 4, 50, 44], [30, 20, 62, 60]]
        y["labels"][0, :2] = [2, 0]
        y["masks"][0, :2, :, :5] = 1
    return y


def targets_of(model, kind="objects"):
    return {key: value for key, value in targets(kind).items() if key in model.target_keys}


def numpy_weights(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def same_draws(*detectors):
    """Two-stage detectors train on a random sample."""
    for model in detectors:
        for variable in model.non_trainable_variables:
            if "seed_generator" in variable.path:
                variable.assign(np.array([3, 0], "uint32"))


def confident(model):
    """Moves the biases, so that there are detections to compare."""
    random = np.random.default_rng(1)
    for weight in model.trainable_weights:
        if weight.name == "bias":
            value = keras.ops.convert_to_numpy(weight)
            weight.assign(value + 2.5 * np.abs(random.normal(size=value.shape)))
