"""A trained model and what its user must know: loading, preprocessing, classes, model card."""

from keras_densepred.saved.classes import read_classes, write_classes
from keras_densepred.saved.load import (
    SavedModel,
    find_model,
    is_backbone,
    load_model,
    open_model,
    require_size,
    saved_preprocessing,
)
from keras_densepred.saved.model_card import write_model_card
from keras_densepred.saved.preprocessing import Preprocessing

__all__ = [
    "Preprocessing",
    "SavedModel",
    "find_model",
    "is_backbone",
    "load_model",
    "open_model",
    "read_classes",
    "require_size",
    "saved_preprocessing",
    "write_classes",
    "write_model_card",
]
