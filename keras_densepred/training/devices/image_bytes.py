"""Images travel to the device as bytes, a quarter of what float32 takes, and become input there.

The model stays one of normalised images: its graph, its files and what is exported know nothing of
this. Its steps, which a recipe runs, begin by making of bytes what the host would have sent:
normalised as `data.batches` does, zero where there is padding, mixed where mixup asks for it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.data.batches.model_input import IMAGES_ALONE

_STEPS = ("train_step", "test_step", "predict_step")


def take_bytes(model: keras.Model, mean: Sequence[float], std: Sequence[float]) -> None:
    """Lets the steps of a model take images as bytes; float images they take as before.

    The model gets an attribute `takes_bytes`, by which `data.model_input` sends along what says
    where images end, and recipes leave the normalisation out.

    Args:
        model: that `fit`, `evaluate` and `predict_on_batch` run.
        mean: of the three channels, RGB in 0..255.
        std: of the three channels.
    """

    def convert(data: Any) -> Any:
        if not isinstance(data, (tuple, list)):
            return _input_of(model, data, mean, std)
        return (_input_of(model, data[0], mean, std), *data[1:])

    def converting(step: Callable[..., Any]) -> Callable[..., Any]:
        # JAX passes (state, data), the other backends (data,).
        return lambda *args: step(*args[:-1], convert(args[-1]))

    build = model._symbolic_build

    def symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:
        # Keras looks at a batch, if at all, to build what has not been built yet.
        build(
            iterator=None if iterator is None else _converted(iterator, convert),
            data_batch=None if data_batch is None else convert(data_batch),
        )

    for name in _STEPS:
        setattr(model, name, converting(getattr(model, name)))
    model._symbolic_build = symbolic_build
    model.takes_bytes = True


def normalization(model: Any, prepared: Any) -> dict[str, Any]:
    """The `mean` and `std` of a model's batches: None where its steps normalise bytes.

    Args:
        model: that gets the batches; None for one that takes normalised images.
        prepared: `saved.Preprocessing`.
    """
    if getattr(model, "takes_bytes", False):
        return {"mean": None, "std": None}
    return {"mean": prepared.mean, "std": prepared.std}


def _converted(iterator: Any, convert: Callable[[Any], Any]) -> Iterator[tuple[Any, Any, list]]:
    """Keras' iterator over an epoch, each batch converted."""
    for begin, end, batches in iterator:
        batch = batches[0] if isinstance(batches, (tuple, list)) else next(batches)
        yield begin, end, [convert(batch)]


def _input_of(model: Any, x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """What the model takes: of bytes made here, otherwise as it is."""
    given = x if isinstance(x, dict) else {"images": x}
    pixels = given["images"]
    if keras.backend.standardize_dtype(pixels.dtype) != "uint8":
        return x
    # As `data.batches.rows` does, in float32 whatever the layers compute in.
    images = ops.cast(pixels, "float32")
    images = (images - ops.array(mean, "float32")) / ops.array(std, "float32")
    if "image_sizes" in given:
        images = _without_padding(images, given["image_sizes"])
    if "shares" in given:
        images = _mixed(images, given["shares"])
    keys = getattr(model, "input_keys", IMAGES_ALONE)
    if keys == IMAGES_ALONE:
        return images
    return {key: images if key == "images" else given[key] for key in keys}


def _without_padding(images: Any, sizes: Any) -> Any:
    """Zero on the right and below of what `sizes` (B, 2) says is image."""
    height, width = ops.shape(images)[1:3]
    sizes = ops.cast(sizes, "int32")
    rows = ops.arange(height, dtype="int32")[None] < sizes[:, :1]
    columns = ops.arange(width, dtype="int32")[None] < sizes[:, 1:]
    inside = ops.logical_and(rows[:, :, None, None], columns[:, None, :, None])
    return ops.where(inside, images, 0.0)


def _mixed(images: Any, shares: Any) -> Any:
    """Rows 0 and 1, 2 and 3, and so on, each with its `shares` (B,) of itself."""
    shape = ops.shape(images)
    pairs = ops.reshape(images, (-1, 2, *shape[1:]))
    others = ops.reshape(ops.flip(pairs, axis=1), (-1, *shape[1:]))
    shares = ops.cast(shares, "float32")[:, None, None, None]
    return shares * images + (1.0 - shares) * others
