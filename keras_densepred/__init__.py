"""keras_densepred: multi-scale backbones for dense prediction in Keras 3."""

from keras_densepred._version import __version__
from keras_densepred.backbones import CEDNetBackbone, DetectionPyramid

__all__ = ["CEDNetBackbone", "DetectionPyramid", "__version__"]
