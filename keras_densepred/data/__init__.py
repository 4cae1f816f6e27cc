"""Readers, augmentation, the built-in shapes data set, and batches from them."""

from keras_densepred.data.images import ImageError, load_image
from keras_densepred.data.records import IGNORE_LABEL, Record

__all__ = ["IGNORE_LABEL", "ImageError", "Record", "load_image"]
