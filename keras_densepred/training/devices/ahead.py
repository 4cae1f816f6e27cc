"""Batches on their way to the accelerator while the step before them is computed.

Keras 3.15.1 does this on JAX, where it sends one batch ahead on a single accelerator, and where to
several the transfer is queued beside the step that runs. On TensorFlow tf.data reads ahead. On
PyTorch it copies a batch when the step asks for it, from memory that the GPU cannot read by itself:
the copy waits for all work before it, and the step for the copy.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import keras

from keras_densepred._optional import require

Batches = Generator[tuple[Any, ...], None, None]


def ahead_on_device(batches: Batches) -> Batches:
    """The batches of an epoch, on PyTorch's GPU one ahead of training; elsewhere as they are.

    Args:
        batches: a generator of NumPy arrays.
    """
    if keras.backend.backend() != "torch" or not require("torch", "torch").cuda.is_available():
        return batches
    copies = _Copies()
    return a_batch_ahead(batches, copies.begin, copies.end)


def a_batch_ahead(
    batches: Batches, begin: Callable[[Any], Any], end: Callable[[Any], Any]
) -> Batches:
    """Begins to send each batch before the one before it is handed out.

    Args:
        batches: a generator, closed at the end.
        begin: of sending a batch; does not wait.
        end: takes what `begin` returned; gives the batch where it belongs.
    """
    with contextlib.closing(batches):
        sent: list[Any] = []
        try:
            for batch in batches:
                sent.append(begin(batch))
                if len(sent) > 1:
                    yield end(sent.pop(0))
        except Exception:
            # What is there is trained on before the fault of the next one ends the run.
            yield from map(end, sent)
            raise
        yield from map(end, sent)


class _Copies:
    """Copies to the current GPU in a stream of their own, beside the one that computes."""

    def __init__(self) -> None:
        self._cuda = require("torch", "torch").cuda
        self._stream = self._cuda.Stream()

    def begin(self, batch: Any) -> tuple[Any, Any]:
        """Queues the copy of a batch of NumPy arrays."""
        with self._cuda.stream(self._stream):
            copied = keras.tree.map_structure(self._queued, batch)
            return copied, self._stream.record_event()

    def end(self, sent: tuple[Any, Any]) -> Any:
        """Lets what is computed from now on wait for the copy; the host goes on."""
        copied, event = sent
        computing = self._cuda.current_stream()
        computing.wait_event(event)
        for tensor in keras.tree.flatten(copied):
            tensor.record_stream(computing)  # its memory is not free before that is done with it
        return copied

    @staticmethod
    def _queued(array: Any) -> Any:
        torch = require("torch", "torch")
        # Only from pinned memory does the GPU copy without the host.
        return torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)
