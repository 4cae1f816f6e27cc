"""What all exports share: the fixed shape of the input, and files that appear once complete."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras

# Of the converters, which tell their progress at length.
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
def replacing(path: Path, name: str) -> Iterator[Path]:
    """A place to write to, below a hidden folder beside `path`; it is renamed to that at the end.

    Args:
        path: the file or directory to be; an old one is replaced.
        name: what the unfinished one is called.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / name
        yield unfinished
        if path.is_dir() and not path.is_symlink():
            os.replace(path, Path(folder) / "old")  # it goes with the folder
        os.replace(unfinished, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the converters from telling their progress."""
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
