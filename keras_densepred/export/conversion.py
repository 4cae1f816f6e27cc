"""What the converters have in common: the shape of the input, fixed or open, and silence."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import keras

Shape = tuple[int | None, int | None, int | None, int]

_LOGGERS = ("tf2onnx", "torch.onnx", "tensorflow", "absl", "jax._src.interpreters.xla")


def input_shape(image_size: int | tuple[int, int] | None, batch_size: int | None) -> Shape:
    """(B, H, W, 3) of the images, None for what is open.

    Raises:
        ValueError: if a number is not positive.
    """
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if any(number is not None and number < 1 for number in (height, width, batch_size)):
        raise ValueError(
            f"`image_size` is {image_size} and `batch_size` {batch_size}; give positive integers."
        )
    return batch_size, height, width, 3


def is_open(shape: Shape) -> bool:
    """Whether a file of this shape takes images of more than one number or size."""
    return None in shape


def example_shape(shape: Shape, step: int) -> tuple[int, int, int, int]:
    """A shape that an open one stands for; heights and widths are multiples of `step`."""
    batch, height, width, channels = shape
    # Not alike, and none is 1: else a tracer may take one for another, or for no axis at all.
    return batch or 2, height or 4 * step, width or 6 * step, channels


@contextlib.contextmanager
def where_open(name: str, shape: Shape, others: Sequence[str] = ()) -> Iterator[None]:
    """Within it a fault is told as one of the shape, if that is open.

    Converters fail in the middle of their work where a network asks for a number.

    Args:
        name: the model's class.
        shape: of the images.
        others: backends that write the format too.

    Raises:
        ValueError: if anything failed but the machine, and the shape is open.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if not is_open(shape):
            raise
        asked = [
            (what, f"give one {what} (`{argument}`, without {flag})")
            for what, argument, flag, sizes in (
                ("number", "batch_size", "--dynamic-batch", shape[:1]),
                ("size", "image_size", "--dynamic-size", shape[1:]),
            )
            if None in sizes
        ]
        backend = keras.config.backend()
        hints = [hint for _, hint in asked]
        hints += (f"try KERAS_BACKEND={other}" for other in others if other != backend)
        raise ValueError(
            f"From {backend} this {name} is not exported for images of any "
            f"{' and any '.join(what for what, _ in asked)}: {' or '.join(hints)}."
        ) from error


def signature(shape: Shape) -> list[keras.InputSpec]:
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
