"""The command line: `python -m keras_densepred predict | evaluate | check-data | info`."""

from keras_densepred.cli.main import main

__all__ = ["main"]
