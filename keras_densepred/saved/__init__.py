"""A trained model and what its user must know: loading, predicting, preprocessing, classes.

model = keras_densepred.saved.load("runs/mine")
found = model.predict("photo.jpg")
found.draw().save("found.jpg")
"""

from keras_densepred.saved.classes import read_classes, write_classes
from keras_densepred.saved.model_card import write_model_card
from keras_densepred.saved.opening import (
    SavedModel,
    find_model,
    is_backbone,
    load_model,
    open_model,
    require_size,
    saved_preprocessing,
)
from keras_densepred.saved.prediction import ClassScores, LabelMap, Objects
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.saved.videos import draw_found, predict_frames
from keras_densepred.saved.writing import save_copy, without_training_state

load = open_model  # the short name, for a notebook

__all__ = [
    "ClassScores",
    "LabelMap",
    "Objects",
    "Preprocessing",
    "SavedModel",
    "draw_found",
    "find_model",
    "is_backbone",
    "load",
    "load_model",
    "open_model",
    "predict_frames",
    "read_classes",
    "require_size",
    "save_copy",
    "saved_preprocessing",
    "without_training_state",
    "write_classes",
    "write_model_card",
]
