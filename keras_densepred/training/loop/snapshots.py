"""What a checkpoint holds, and its form on disk.

A checkpoint is a directory with an `.npz` file (no pickle) and its SHA-256 sum. It is written under
a temporary name and renamed, so it is complete or absent.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.files import renewing, write_to_disk
from keras_densepred.runtime import random_state
from keras_densepred.training.devices.cluster import current_cluster

_ARRAYS = "state.npz"
_CHECKSUM = "SHA256SUM"


class CheckpointError(ValueError):
    """A checkpoint directory that cannot be continued from; one sentence."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where training stands: `step` batches of epoch `epoch` (both from 0) are done.

    With all steps of an epoch done, what follows them is not: its evaluation and other callbacks.
    """

    epoch: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True)
class RandomState:
    """The states of the global generators: Python's, NumPy's and, on PyTorch, the backend's."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def capture(cls) -> "RandomState":
        """Returns the current states."""
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
        backend_states = random_state.get_backend_random_state()
        arrays = {f"random_backend_{i}": state for i, state in enumerate(backend_states)}
        values = {
            "python": random.getstate(),
            "numpy": [name, *rest],
            "backend": len(backend_states),
        }
        return cls(values, {"random_numpy": np.asarray(keys), **arrays})

    def restore(self) -> None:
        """Restores them."""
        version, internal, gauss = self.values["python"]
        random.setstate((version, tuple(internal), gauss))
        name, *rest = self.values["numpy"]
        np.random.set_state((name, self.arrays["random_numpy"], *rest))  # noqa: NPY002
        random_state.set_backend_random_state(
            [self.arrays[f"random_backend_{i}"] for i in range(self.values["backend"])]
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory; `fit` restores it."""

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where training stood."""
        return Position(self.state["epoch"], self.state["step"])

    @property
    def stopped(self) -> bool:
        """Whether a callback had ended training before its last epoch."""
        return self.state.get("stopped", False)

    @property
    def epoch_logs(self) -> dict[str, float]:
        """The means of an epoch whose steps are all done."""
        return self.state["logs"]

    @property
    def random_state(self) -> "RandomState":
        """The states of the global generators."""
        return RandomState(self.state["random"], self.arrays)

    def restore(self, model: keras.Model, companions: Mapping[str, Any]) -> None:
        """Restores weights, seed generators, optimizer (which must be built) and callbacks.

        Raises:
            CheckpointError: if the variables are not those of `model`.
        """
        for role in ("trainable", "non_trainable", "optimizer"):
            self._assign(role, _variables(model)[role])
        for name, saved in self.state["callbacks"].items():
            if name not in companions:
                raise CheckpointError(f"{self.path} was written with a callback {name} in the run.")
            companions[name].set_state(saved)

    def restore_metrics(self, model: keras.Model) -> None:
        """Restores the running means of the epoch."""
        self._assign("metrics", model.metrics_variables)

    def _assign(self, role: str, variables: Sequence[Any]) -> None:
        count = sum(1 for key in self.arrays if key.rpartition("_")[0] == role)
        if count != len(variables):
            raise CheckpointError(
                f"{self.path} has {count} {role.replace('_', '-')} variables and the model has "
                f"{len(variables)}: it belongs to another model."
            )
        for index, variable in enumerate(variables):
            value = self.arrays[f"{role}_{index}"]
            if role == "metrics":
                value = _of_this_process(value, tuple(variable.shape))
            if value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"{self.path} has shape {value.shape} for {variable.path}, which has shape "
                    f"{tuple(variable.shape)}: it belongs to another model."
                )
            variable.assign(value)


def _of_this_process(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """This process' part of a metric's variable, which may have been saved per process."""
    if value.shape[1:] != shape or value.ndim == len(shape):
        return value
    cluster = current_cluster()
    if cluster.metrics_are_local and len(value) == cluster.process_count:
        return value[cluster.process_index]
    return value.mean(axis=0, dtype=value.dtype)  # continued on another number of processes


def _variables(model: keras.Model) -> dict[str, list[Any]]:
    return {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def state_arrays(model: keras.Model) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the state's arrays by name, and the dtypes that `.npz` cannot name (bfloat16).

    Communicates, so all processes call it: some variables belong to a process, or on TensorFlow to
    a device.
    """
    arrays, dtypes = {}, {}
    cluster = current_cluster()
    for role, variables in _variables(model).items():
        for index, value in enumerate(cluster.whole(variables)):
            name = f"{role}_{index}"
            if value.dtype.isbuiltin != 1:
                dtypes[name] = value.dtype.name
                value = value.view(np.dtype(f"V{value.dtype.itemsize}"))
            arrays[name] = value
    if cluster.metrics_are_local:
        own = {name: arrays[name][None] for name in arrays if name.startswith("metrics_")}
        arrays |= cluster.gather(own)
    return arrays, dtypes


def write_snapshot(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> None:
    """Writes a checkpoint's directory.

    Args:
        path: the directory to be.
        arrays: those of `state_arrays` and `RandomState`.
        state: JSON-able; with the keys that `Snapshot` reads.
    """
    buffer = io.BytesIO()
    packed = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, **arrays, state=packed)
    content = buffer.getbuffer()
    checksum = f"{hashlib.sha256(content).hexdigest()}  {_ARRAYS}\n"
    with renewing(path) as unfinished:
        write_to_disk(unfinished / _ARRAYS, content)
        write_to_disk(unfinished / _CHECKSUM, checksum.encode())


def read_snapshot(path: pathlib.Path) -> Snapshot:
    """Reads what `write_snapshot` wrote.

    Raises:
        CheckpointError: if it is damaged.
    """
    damaged = CheckpointError(f"The checkpoint {path} is damaged.")
    try:
        content = (path / _ARRAYS).read_bytes()
        expected = (path / _CHECKSUM).read_text(encoding="ascii").split(" ")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise damaged from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise damaged
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    state = json.loads(arrays.pop("state").tobytes())
    for name, dtype in state["dtypes"].items():
        arrays[name] = arrays[name].view(np.dtype(dtype))
    return Snapshot(path, arrays, state)
