"""A trained model and what its user must know: loading, preprocessing, classes, model card."""

from keras_densepred.saved.classes import read_classes, write_classes
from keras_densepred.saved.load import SavedModel, find_model, load_model, open_model
from keras_densepred.saved.model_card import write_model_card
from keras_densepred.saved.preprocessing import Preprocessing

__all__ = [
    "Preprocessing",
    "SavedModel",
    "find_model",
    "load_model",
    "open_model",
    "read_classes",
    "write_classes",
    "write_model_card",
]
