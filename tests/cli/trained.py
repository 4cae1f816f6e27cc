"""A tiny trained model and photographs, as a recipe and a user leave them behind."""

import json

import keras
import numpy as np
from PIL import Image

from keras_densepred import data, training
from keras_densepred.models import YOLOv3Detector
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights

ZERO, BYTE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
SHAPES = data.ShapesDataset(3, 64, 0, "val")


def save(model, folder, name, preprocessing, names):
    """As a recipe leaves a model behind."""
    preset = folder / "preset"
    preset.mkdir(parents=True)
    model.save(preset / name)
    preprocessing.write(preset)
    classes = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(names)]
    (preset / "classes.json").write_text(json.dumps(classes))
    return folder


def write_photos(folder):
    """Three images of different sizes, one of them tall, and what is none; returns the folder."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (80, 50)), ("c.png", (64, 64))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def save_detector(folder):
    """A detector of the shapes' classes that finds something everywhere; returns its run."""
    keras.utils.set_random_seed(0)
    names = SHAPES.class_names
    model = YOLOv3Detector(ToyPyramid(ready=False), len(names), "prn")
    set_deterministic_weights(model)
    for level in model.masks:
        bias = model.get_layer(f"yolo_{level.lower()}_prediction").bias
        bias.assign(np.random.default_rng(1).normal(0, 2, bias.shape))
    frame = training.Preprocessing("detection", ZERO, BYTE, 64, stretch=True)
    return save(model, folder, "detector.keras", frame, names)
