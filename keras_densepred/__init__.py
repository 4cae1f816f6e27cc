"""keras_densepred: multi-scale backbones for dense prediction in Keras 3."""

from keras_densepred._version import __version__

__all__ = ["__version__"]
