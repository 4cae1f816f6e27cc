"""Boxes, labels and masks drawn on images."""

from keras_densepred.data.drawing.objects import class_colour, draw_objects
from keras_densepred.data.drawing.semantic import draw_legend, draw_semantic, label_colour

__all__ = [
    "class_colour",
    "draw_legend",
    "draw_objects",
    "draw_semantic",
    "label_colour",
]
