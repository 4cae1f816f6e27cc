"""What the converters have in common: the fixed shape of the input, and silence."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import keras

_LOGGERS = ("tf2onnx", "torch.onnx", "tensorflow", "absl", "jax._src.interpreters.xla")


def input_shape(image_size: int | tuple[int, int], batch_size: int) -> tuple[int, int, int, int]:
    """(B, H, W, 3) of the images.

    Raises:
        ValueError: if a number is not positive.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width, batch_size) < 1:
        raise ValueError(
            f"`image_size` is {image_size} and `batch_size` {batch_size}; give positive integers."
        )
    return batch_size, height, width, 3


def signature(shape: tuple[int, ...]) -> list[keras.InputSpec]:
    """The input `"images"`, float32, as `Model.export` takes it."""
    return [keras.InputSpec(shape=shape, dtype="float32", name="images")]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the converters, which report their progress at length."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
