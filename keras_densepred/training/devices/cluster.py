"""The devices and processes of a training run, whatever the backend.

A process trains on its own rows of each batch: process p of P takes rows [p * b, (p + 1) * b) of
the batch's P * b. `distribute` opens a cluster of the active backend; the classes for more than one
device are in `devices.jax`, `devices.tensorflow` and `devices.torch`.
"""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.training.devices.ahead import ahead_on_device

Batches = Callable[[], Generator[tuple[Any, ...], None, None]]


class DevicesError(ValueError):
    """Devices or processes that are missing or cannot be used; one sentence."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The devices and processes of a run; this class itself is one process with one device.

    Methods that communicate between processes say so: all processes must call them, in the same
    order.

    Attributes:
        devices: devices in all processes together; each holds a copy of the model.
        process_count: P.
        process_index: of this process, from 0.
    """

    devices: int = 1
    process_count: int = 1
    process_index: int = 0

    # Whether running means of losses and metrics cover this process' rows only.
    metrics_are_local = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.process_index == 0

    @property
    def shard(self) -> tuple[int, int]:
        """`(process_index, process_count)`, the `shard` of `keras_densepred.data`'s batches."""
        return self.process_index, self.process_count

    def rows(self, batch_size: int) -> int:
        """Returns the rows of this process in a batch.

        Args:
            batch_size: rows of a batch over all devices.

        Raises:
            DevicesError: if it does not split over the devices.
        """
        if batch_size % self.devices:
            raise DevicesError(
                f"A batch of {batch_size} does not split over {self.devices} devices: use a "
                f"multiple of {self.devices}."
            )
        return batch_size // self.process_count

    def check_accumulation(self, steps: int | None) -> None:
        """Refuses to add up the gradients of several steps where that cannot be.

        Args:
            steps: the optimizer's `gradient_accumulation_steps`.

        Raises:
            DevicesError: on several devices of TensorFlow.
        """

    def describe(self, batch_size: int) -> str:
        """Returns one line on how a batch is divided, to print at the start."""
        processes = f" in {self.process_count} processes" if self.process_count > 1 else ""
        devices = f"{self.devices} device{'s' if self.devices > 1 else ''}{processes}"
        self.rows(batch_size)
        share = f" ({batch_size // self.devices} a device)" if self.devices > 1 else ""
        return f"{keras.backend.backend()} on {devices}, global batch {batch_size}{share}"

    def say(self, text: str) -> None:
        """Prints a line, in the main process only."""
        if self.is_main:
            print(text, flush=True)

    # --- exchange between processes ----------------------------------------------------------

    def gather(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Concatenates arrays of all processes along axis 0, in the order of the processes.

        Communicates: all processes call it with the same names, dtypes and trailing dimensions.

        Args:
            arrays: (N, ...) each; N may differ from process to process.

        Returns:
            The same on every process.
        """
        if self.process_count == 1:
            return dict(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        received = []
        for content in self._exchange(np.frombuffer(buffer.getvalue(), np.uint8)):
            with np.load(io.BytesIO(content.tobytes()), allow_pickle=False) as file:
                received.append(dict(file))
        return {name: np.concatenate([part[name] for part in received]) for name in arrays}

    def agree(self, value: bool) -> bool:
        """Returns the main process' value; communicates."""
        return bool(self.gather({"value": np.array([value])})["value"][0])

    def run_on_main(self, action: Callable[[], Any]) -> None:
        """Runs something in the main process while the others wait; communicates.

        `action` must not communicate itself.

        Raises:
            DevicesError: in the other processes, if the main one raised an error, so that none
                waits for a process that has ended.
        """
        if self.process_count == 1:
            action()
            return
        try:
            if self.is_main:
                action()
        finally:
            error = sys.exception()
            text = "" if error is None else f"{type(error).__name__}: {error}"
            told = self.gather({"text": np.frombuffer(text.encode(), np.uint8)})["text"]
        if told.size:
            raise DevicesError(f"The main process stopped with {told.tobytes().decode()}")

    def once(self, action: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Returns the numbers that `action` gives in the main process; communicates.

        For what would take every process of a machine the same time and memory.

        Raises:
            DevicesError: as `run_on_main`.
        """
        numbers: dict[str, float] = {}
        self.run_on_main(lambda: numbers.update(action()))
        text = json.dumps(numbers).encode() if self.is_main else b""
        told = self.gather({"json": np.frombuffer(text, np.uint8)})["json"]
        return dict(json.loads(told.tobytes()))

    def whole(self, variables: Sequence[Any]) -> list[np.ndarray]:
        """Returns the values of variables, of which this process may hold shares; communicates.

        Args:
            variables: Keras variables, the same in all processes.

        Returns:
            The same on every process, but for what belongs to one; they may be views of memory.
        """
        return [keras.ops.convert_to_numpy(variable) for variable in variables]

    @contextlib.contextmanager
    def whole_weights(self, model: keras.Model) -> Iterator[None]:
        """Within the block any process alone can read and save `model`'s weights; communicates."""
        del model
        yield

    def _exchange(self, content: np.ndarray) -> list[np.ndarray]:
        """Sends (n,) uint8 to all processes and returns everyone's, in order."""
        raise NotImplementedError

    def _exchange_padded(
        self, content: np.ndarray, exchange: Callable[[np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        """`_exchange` by a function that stacks int32 vectors (n,) of equal length to (P, n)."""
        lengths = exchange(np.array([content.size], np.int32))[:, 0]
        # To a power of two, because backends compile an exchange for each length.
        padded = np.zeros(max(4, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
        padded[: content.size] = content
        stacked = np.ascontiguousarray(exchange(padded.view(np.int32)), np.int32).view(np.uint8)
        return [row[:length] for row, length in zip(stacked, lengths, strict=True)]

    # --- training and prediction -------------------------------------------------------------

    def fit_input(self, open_batches: Batches) -> Any:
        """Turns batches into an input of `Model.fit` that loses none of them.

        Where it helps, a batch is sent to the accelerator while the one before it is trained on.

        Args:
            open_batches: returns a new generator of batches of NumPy arrays, this process' rows, at
                each call.
        """
        return ahead_on_device(open_batches())

    @contextlib.contextmanager
    def training(self, model: keras.Model) -> Iterator[None]:
        """Within the block, `model.fit` sums gradients over the processes."""
        del model
        yield

    def predictor(self, model: keras.Model) -> Any:
        """Returns an object that predicts this process' rows on this process' devices.

        On JAX with several processes all of them must predict the same number of batches.

        Args:
            model: a built model.

        Returns:
            An object with `predict_on_batch(x)`; x has as many rows as in training, its result
            those of x.
        """
        return model


_open: list[Cluster] = [Cluster()]


def current_cluster() -> Cluster:
    """Returns the cluster of the innermost `distribute` block; outside of any, one device."""
    return _open[-1]


@contextlib.contextmanager
def entered(cluster: Cluster) -> Iterator[Cluster]:
    """Makes `cluster` the current one for the `with` block."""
    _open.append(cluster)
    try:
        yield cluster
    finally:
        _open.remove(cluster)
