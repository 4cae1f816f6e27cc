"""Training on several devices of one machine with Keras' own means.

JAX: `keras.distribution.DataParallel`. TensorFlow: `tf.distribute.MirroredStrategy`. PyTorch: Keras
3.15 has no data-parallel `fit`, so one device. The only place outside of `ops/` that touches the
engines.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_densepred._optional import require


class DevicesError(ValueError):
    """Devices that are not there or not usable; one sentence."""


@contextlib.contextmanager
def data_parallel(count: int | None = None) -> Iterator[int]:
    """Splits each batch over several devices for models built in the `with` block.

    Batches keep their global size, which must be a multiple of the number of devices. The loss and
    the gradients are those of the whole batch if the loss is a mean over images; a loss divided by
    a count within the batch (RetinaNet's positive anchors) is the whole batch's on JAX, and the
    mean over devices of each device's own on TensorFlow.

    Args:
        count: devices to use; None for all GPUs or TPUs, and one CPU where there are none.

    Yields:
        The number of devices in use.

    Raises:
        DevicesError: if there are fewer devices, or on PyTorch for more than one.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        if count is not None and count > 1:
            raise DevicesError(
                f"{count} devices were asked for, but Keras trains on one device with PyTorch: use "
                "KERAS_BACKEND=jax or tensorflow, or one device."
            )
        yield 1
        return
    names = _jax_devices() if backend == "jax" else _tensorflow_devices()
    if count is None:
        count = 1 if "cpu" in names[0].lower() else len(names)
    if not 1 <= count <= len(names):
        raise DevicesError(
            f"{count} devices were asked for and {len(names)} are there: {', '.join(names)}."
        )
    if count == 1:
        yield 1
    elif backend == "jax":
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=names[:count], auto_shard_dataset=False)
        )
        try:
            yield count
        finally:
            keras.distribution.set_distribution(before)
    else:
        tensorflow = require("tensorflow", "tensorflow")
        with tensorflow.distribute.MirroredStrategy(names[:count]).scope():
            yield count


def fit_input(open_batches: Callable[[], Iterator[tuple[Any, ...]]]) -> Any:
    """Turns batches into what `Model.fit` takes without losing any.

    Keras 3.15.1 begins a generator twice under a `MirroredStrategy`, to build the model and to
    train, and the batches that tf.data had read ahead the first time are lost. A `tf.data.Dataset`
    calls `open_batches` again instead. Everywhere else the generator goes as it is.

    Args:
        open_batches: returns a new generator of batches of NumPy arrays at each call.

    Returns:
        The generator, or a `tf.data.Dataset`.
    """
    if keras.backend.backend() != "tensorflow":
        return open_batches()
    tensorflow = require("tensorflow", "tensorflow")
    if tensorflow.distribute.get_strategy().num_replicas_in_sync == 1:
        return open_batches()
    signature = keras.tree.map_structure(
        lambda array: tensorflow.TensorSpec((None, *array.shape[1:]), array.dtype),
        next(open_batches()),
    )
    dataset = tensorflow.data.Dataset.from_generator(open_batches, output_signature=signature)
    return dataset.prefetch(tensorflow.data.AUTOTUNE)


def _jax_devices() -> list[str]:
    return keras.distribution.list_devices()


def _tensorflow_devices() -> list[str]:
    config = require("tensorflow", "tensorflow").config
    devices = config.list_logical_devices("GPU") or config.list_logical_devices("CPU")
    return [device.name for device in devices]
