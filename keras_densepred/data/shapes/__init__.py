"""The built-in data set: generated images of shapes, no files needed."""

from keras_densepred.data.shapes.classification import ShapesClassification
from keras_densepred.data.shapes.detection import ShapesDataset
from keras_densepred.data.shapes.semantic import ShapesSegmentation

__all__ = [
    "ShapesClassification",
    "ShapesDataset",
    "ShapesSegmentation",
]
