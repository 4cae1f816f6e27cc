"""Exact resume: a run killed at any moment and started again ends with the same weights.

What `keras.callbacks.BackupAndRestore` (Keras 3.15.1) loses was measured with a small network with
dropout, AdamW with averaged weights and a stream of random batches, killed after step 5 of 8 of its
second epoch (`tests/training/test_resume.py` repeats it):

* the states of the seed generators, so dropout and drop path repeat what they drew before; on
  PyTorch also that of PyTorch's global generator, which unseeded dropout draws from;
* the step within the epoch: with `save_freq=n` the weights are those of the middle of the epoch,
  but training goes on at its beginning, and repeats steps;
* the position in the data: the iterator starts over;
* the running means of the epoch's losses and metrics, and the history of the epochs before;
* a kill during the writing: files are overwritten in place, weights and position one after the
  other, so the two may disagree.

What is kept here: every variable of the model (seed generators included), of the optimizer (the
averages and the iteration counter included) and of the metrics, the states of the global generators
(Python, NumPy, PyTorch), the epoch and the step. The position in the data is not asked of the
iterator, since Keras and tf.data read ahead of training: batch k must depend on k alone, and the
data is opened again at the step that comes next.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.ops import random_state
from keras_densepred.training.distribution import fit_input
from keras_densepred.training.optim import assign_trainable, copy_trainable, take_averages

_ARRAYS = "state.npz"
_CHECKSUM = "SHA256SUM"
_NAME = re.compile(r"^step-(\d{8})$")

Batches = Callable[[int], Iterator[tuple[Any, ...]]]


class CheckpointError(ValueError):
    """A checkpoint directory that cannot be continued from; one sentence."""


class TrainingDiverged(RuntimeError):
    """A loss, a metric or a weight that is no finite number; one sentence."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where training stands: `step` batches of epoch `epoch` (both from 0) are done."""

    epoch: int = 0
    step: int = 0


class ResumableCheckpoint(keras.callbacks.Callback):
    """Saves the whole state of a run at every epoch's end and, if asked, in between.

    A checkpoint is a directory `step-<batches trained>` with an `.npz` file (no pickle) and its
    SHA-256 sum. It is written under a temporary name and renamed, so it is there entirely or not at
    all. Callbacks with `get_state() -> JSON-able` and `set_state(state)` are saved along.

    Args:
        directory: where the checkpoints lie.
        settings: JSON-able description of the run; a directory of another run is refused.
        every_steps: also save after every so many batches, counted from the start of the run.
        every_minutes: also save when so many minutes passed since the last checkpoint.
        keep: how many of the newest checkpoints stay.

    Raises:
        ValueError: if `keep`, `every_steps` or `every_minutes` is not positive.
    """

    lazy_logs = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
    ):
        super().__init__()
        for name, value in (("keep", keep), ("every_steps", every_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if every_minutes is not None and every_minutes <= 0:
            raise ValueError(f"every_minutes must be positive; got {every_minutes}.")
        self.directory = pathlib.Path(directory)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.steps_per_epoch = 0
        self.companions: dict[str, Any] = {}
        self._epoch = 0
        self._saved_at = time.monotonic()

    def attach(self, steps_per_epoch: int, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Tells the length of an epoch and the callbacks whose state is saved along."""
        self.steps_per_epoch = steps_per_epoch
        self.companions = {
            f"{index}.{type(callback).__name__}": callback
            for index, callback in enumerate(callbacks)
            if hasattr(callback, "get_state") and hasattr(callback, "set_state")
        }

    # --- saving ------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves in the middle of an epoch when it is time; the epoch's last batch is left out."""
        done = batch + 1
        if done == self.steps_per_epoch:
            return
        total = self._epoch * self.steps_per_epoch + done
        due = self.every_steps is not None and total % self.every_steps == 0
        if self.every_minutes is not None:
            due = due or time.monotonic() - self._saved_at >= 60 * self.every_minutes
        if due:
            self.save(Position(self._epoch, done), logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves; a callback in front of this one has added its results to the history."""
        self.save(Position(epoch + 1, 0), logs)

    def save(self, position: Position, logs: Mapping[str, Any] | None = None) -> pathlib.Path:
        """Writes a checkpoint and deletes those beyond `keep`.

        Args:
            position: where training stands.
            logs: the losses of the last step, checked to be finite.

        Returns:
            The checkpoint's directory.

        Raises:
            TrainingDiverged: if a loss or a weight is not finite; nothing is written then.
        """
        _check_finite_logs(logs, position.epoch, position.step - 1)
        model = self.model
        arrays, dtypes = _state_arrays(model)
        broken = next(
            (
                variable.path
                for index, variable in enumerate(model.trainable_variables)
                if not np.isfinite(arrays[f"trainable_{index}"]).all()
            ),
            None,
        )
        if broken is not None:
            raise TrainingDiverged(
                f"After step {position.step} of epoch {position.epoch + 1} the weight {broken} "
                "holds numbers that are not finite: lower the learning rate."
            )
        state = {
            "settings": self.settings,
            "epoch": position.epoch,
            "step": position.step,
            "steps_per_epoch": self.steps_per_epoch,
            "dtypes": dtypes,
            "callbacks": {name: item.get_state() for name, item in self.companions.items()},
        }
        generators = RandomState.capture()
        arrays |= generators.arrays
        state["random"] = generators.values
        arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        done = position.epoch * self.steps_per_epoch + position.step
        path = self._write(f"step-{done:08d}", arrays)
        # A later checkpoint can only be a damaged one that this run was not continued from.
        later = [old for old in self.checkpoints() if old.name > path.name]
        for old in [*later, *self.checkpoints()[len(later) + self.keep :]]:
            shutil.rmtree(old)
        self._saved_at = time.monotonic()
        return path

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f".{name}.tmp"
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getbuffer()
        for file_name, data in (
            (_ARRAYS, content),
            (_CHECKSUM, f"{hashlib.sha256(content).hexdigest()}  {_ARRAYS}\n".encode()),
        ):
            with open(temporary / file_name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        final = self.directory / name
        if final.exists():  # left by a run that was killed later and resumed from an earlier one
            shutil.rmtree(final)
        os.replace(temporary, final)
        return final

    # --- restoring ---------------------------------------------------------------------------

    def checkpoints(self) -> list[pathlib.Path]:
        """Returns the checkpoints' directories, newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.match(path.name)]
        return sorted(found, reverse=True)

    def latest(self) -> "Snapshot | None":
        """Reads the newest checkpoint that is whole, saying so where a newer one is damaged.

        Returns:
            The snapshot, or None if there is no checkpoint.

        Raises:
            CheckpointError: if it belongs to a run with other settings, or all are damaged.
        """
        paths = self.checkpoints()
        for path in paths:
            try:
                snapshot = _read(path)
            except CheckpointError as error:
                print(f"{error} Using the one before it.")
                continue
            self._check_settings(path, snapshot.state)
            return snapshot
        if paths:
            raise CheckpointError(
                f"Every checkpoint in {self.directory} is damaged: delete that directory to start "
                "again from the beginning."
            )
        return None

    def _check_settings(self, path: pathlib.Path, state: Mapping[str, Any]) -> None:
        theirs = {**state["settings"], "steps_per_epoch": state["steps_per_epoch"]}
        ours = {**self.settings, "steps_per_epoch": self.steps_per_epoch}
        if ours == theirs:
            return
        differences = [
            f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} now"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({'; '.join(differences)}): repeat that "
            "run's command to continue it, or choose another output directory."
        )


@dataclasses.dataclass(frozen=True)
class RandomState:
    """The states of the global generators: Python's, NumPy's and, on PyTorch, the backend's."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def capture(cls) -> "RandomState":
        """Takes the states as they are now."""
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
        """Puts them back."""
        version, internal, gauss = self.values["python"]
        random.setstate((version, tuple(internal), gauss))
        name, *rest = self.values["numpy"]
        np.random.set_state((name, self.arrays["random_numpy"], *rest))  # noqa: NPY002
        random_state.set_backend_random_state(
            [self.arrays[f"random_backend_{i}"] for i in range(self.values["backend"])]
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory; `fit` puts it back."""

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where training stood."""
        return Position(self.state["epoch"], self.state["step"])

    @property
    def random_state(self) -> "RandomState":
        """The states of the global generators."""
        return RandomState(self.state["random"], self.arrays)

    def restore(self, model: keras.Model, companions: Mapping[str, Any]) -> None:
        """Puts weights, seed generators, optimizer and callbacks back; the optimizer must be built.

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
        """Puts the running means of the epoch back."""
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
            if value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"{self.path} has shape {value.shape} for {variable.path}, which has shape "
                    f"{tuple(variable.shape)}: it belongs to another model."
                )
            variable.assign(value)


def _variables(model: keras.Model) -> dict[str, list[Any]]:
    return {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def _state_arrays(model: keras.Model) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the state's arrays by name, and the dtypes that `.npz` cannot name (bfloat16)."""
    arrays, dtypes = {}, {}
    for role, variables in _variables(model).items():
        for index, variable in enumerate(variables):
            name = f"{role}_{index}"
            value = keras.ops.convert_to_numpy(variable)
            if value.dtype.isbuiltin != 1:
                dtypes[name] = value.dtype.name
                value = value.view(np.dtype(f"V{value.dtype.itemsize}"))
            arrays[name] = value
    return arrays, dtypes


def _read(path: pathlib.Path) -> Snapshot:
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


# --- stopping at the first number that is not finite ---------------------------------------------


def _check_finite_logs(logs: Mapping[str, Any] | None, epoch: int, batch: int) -> None:
    # Only losses: a metric may be NaN by definition, such as the AP of a class without objects.
    values = {name: float(value) for name, value in (logs or {}).items() if "loss" in name}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        # The total is the sum of the parts: name a part where there is one.
        culprit = next((name for name in broken if name != "loss"), broken[0])
        raise TrainingDiverged(
            f"{culprit} became {values[culprit]} at step {batch + 1} of epoch {epoch + 1}: lower "
            "the learning rate or check the data; the last checkpoint is from before."
        )


class NanGuard(keras.callbacks.Callback):
    """Stops training when a loss is not finite, naming the step and the part of the loss.

    The losses of a step are looked at when the next one has been dispatched, so the host never
    waits for the accelerator; `ResumableCheckpoint` looks at once before it writes.

    Raises:
        TrainingDiverged: from `fit`.
    """

    lazy_logs = True

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._pending: tuple[int, Any] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the step before this one."""
        self._check()
        self._pending = (batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks the last step."""
        self._check()

    def _check(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            _check_finite_logs(pending[1], self._epoch, pending[0])


# --- fit -----------------------------------------------------------------------------------------


class _SpanningCallbacks(keras.callbacks.CallbackList):
    """The callbacks of one run that takes two calls of `Model.fit`.

    Training begins and ends once, batches of a half-done epoch count from where it stopped, and its
    running means are put back after Keras has reset them. The global generators are put back at the
    first batch of each call, because opening the data draws from PyTorch's. Losses reach callbacks
    that say `lazy_logs` as the backend's arrays: Keras makes floats of them after every batch,
    which waits for the accelerator.
    """

    def __init__(self, callbacks: Sequence[Any], model: keras.Model, epochs: int, steps: int):
        super().__init__(list(callbacks), add_history=True, model=model, epochs=epochs, steps=steps)
        self.first_batch = 0
        self.epoch_snapshot: Snapshot | None = None
        self.generators: RandomState | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Does nothing: `begin` does it once."""

    def on_train_end(self, logs: Any = None) -> None:
        """Does nothing: `end` does it once."""

    def begin(self) -> None:
        super().on_train_begin()

    def end(self) -> None:
        super().on_train_end()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.epoch_snapshot is not None:
            self.epoch_snapshot.restore_metrics(self.model)
            self.epoch_snapshot = None
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.generators is not None:
            self.generators.restore()
            self.generators = None
        super().on_train_batch_begin(self.first_batch + batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        floats: dict[str, float] | None = None
        base = keras.callbacks.Callback.on_train_batch_end
        for callback in self.callbacks:
            if getattr(callback, "lazy_logs", False):
                callback.on_train_batch_end(self.first_batch + batch, logs)
            elif type(callback).on_train_batch_end is not base:
                if floats is None:
                    floats = {name: float(value) for name, value in (logs or {}).items()}
                callback.on_train_batch_end(self.first_batch + batch, floats)


class _RawWeights(keras.callbacks.Callback):
    """Keeps the weights of an epoch's end: `Model.fit` leaves the averaged ones in the model."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Copies the weights."""
        self._values = copy_trainable(self.model)

    def put_back(self) -> None:
        """Assigns the copy."""
        assign_trainable(self.model, self._values)


def fit(
    model: keras.Model,
    batches_from: Batches,
    *,
    epochs: int,
    steps_per_epoch: int,
    checkpoint: ResumableCheckpoint,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Position:
    """Trains `model` with `Model.fit`, continuing exactly where a killed run left off.

    Run the same program again: with the same seed, settings and data it ends with the same weights
    and the same history as if it had never been interrupted; bit for bit on CPU. Everything that
    draws random numbers while the model is built must be seeded before
    (`keras.utils.set_random_seed`).

    Args:
        model: a compiled and built model.
        batches_from: called with the number of batches trained so far, returns an iterator over the
            batches from there on, `(x, y)` or `(x, y, sample_weight)`; batch k must depend on k
            alone.
        epochs: of the whole run.
        steps_per_epoch: batches in an epoch.
        checkpoint: where and when to save.
        callbacks: more callbacks, called before the checkpoint is written. Those with `get_state`
            and `set_state` are saved with it.

    Returns:
        The position that training was continued from; `Position(0, 0)` for a fresh run. With
        `use_ema=True` the model holds the averaged weights afterwards, as after `Model.fit`.

    Raises:
        CheckpointError: if the checkpoints belong to another run or model, or are all damaged.
        TrainingDiverged: if a loss or a weight becomes NaN or infinite.
    """
    checkpoint.attach(steps_per_epoch, callbacks)
    snapshot = checkpoint.latest()
    start = Position()
    # Metrics and the optimizer make their variables when they see a batch; on TensorFlow Keras does
    # this after the first step, too late to put the running means back.
    model._symbolic_build(data_batch=next(batches_from(0)))
    if snapshot is not None:
        start = snapshot.position
        print(
            f"Continuing from {snapshot.path}: {start.epoch} of {epochs} epochs and {start.step} "
            f"of {steps_per_epoch} steps are done."
        )
        snapshot.restore(model, checkpoint.companions)
    spanning = _SpanningCallbacks(
        [NanGuard(), *callbacks, checkpoint], model, epochs, steps_per_epoch
    )
    spanning.generators = snapshot.random_state if snapshot else None
    spanning.begin()

    def run(position: Position, until: int) -> None:
        done = position.epoch * steps_per_epoch + position.step
        spanning.first_batch = position.step
        model.fit(
            fit_input(lambda: batches_from(done)),
            initial_epoch=position.epoch,
            epochs=until,
            steps_per_epoch=steps_per_epoch - position.step,
            callbacks=spanning,
            shuffle=False,
            verbose=0,
        )

    epoch = start.epoch
    if start.step and epoch < epochs:
        spanning.epoch_snapshot = snapshot
        keeper = _RawWeights()
        spanning.callbacks.append(keeper)
        keeper.set_model(model)
        run(start, epoch + 1)
        spanning.callbacks.remove(keeper)
        keeper.put_back()
        spanning.generators = RandomState.capture()
        epoch += 1
    if epoch < epochs and not model.stop_training:
        run(Position(epoch, 0), epochs)
    take_averages(model)
    spanning.end()
    return start
