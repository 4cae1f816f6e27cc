"""When the state of a run is saved, and which checkpoint a run continues from."""

import functools
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.files import remove_unfinished
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.loop.divergence import TrainingDiverged, check_finite_logs
from keras_densepred.training.loop.snapshots import (
    CheckpointError,
    Position,
    RandomState,
    Snapshot,
    read_snapshot,
    state_arrays,
    write_snapshot,
)

_TRAINED = "-trained"  # ends the name where an epoch's steps are done and its callbacks are not
_NAME = re.compile(rf"^step-(\d{{8}})({_TRAINED})?$")
# Processes save together, and their clocks differ: they ask the main process. Not at every step,
# because asking waits for the accelerator.
_STEPS_BETWEEN_QUESTIONS = 20


class ResumableCheckpoint(keras.callbacks.Callback):
    """Saves the whole state of a run at every epoch's end and, if asked, in between.

    A checkpoint is a directory `step-<batches trained>`, complete or absent. Callbacks with
    `get_state() -> JSON-able` and `set_state(state)` are saved with it. At an epoch's end there are
    two: `-trained` before the other callbacks run, which may fail, and one after them in its place.

    With several processes the main one writes while the others wait, and all read.

    Args:
        directory: of the checkpoints; all processes must see it.
        settings: JSON-able description of the run; a directory of another run is refused.
        every_steps: also save every so many batches, counted from the start of the run.
        every_minutes: also save when so many minutes have passed since the last checkpoint; several
            processes look every 20 steps.
        keep: how many of the newest checkpoints to keep.

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
        """Sets the length of an epoch and the callbacks whose state is saved too."""
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
        """Saves within an epoch when it is time; after its last batch `on_epoch_end` does."""
        done = batch + 1
        if done == self.steps_per_epoch:
            return
        total = self._epoch * self.steps_per_epoch + done
        due = self.every_steps is not None and total % self.every_steps == 0
        if self.every_minutes is not None:
            late = time.monotonic() - self._saved_at >= 60 * self.every_minutes
            cluster = current_cluster()
            if cluster.process_count == 1:
                due = due or late
            elif not due and total % _STEPS_BETWEEN_QUESTIONS == 0:
                due = cluster.agree(late)
        if due:
            self.save(Position(self._epoch, done), logs)

    def on_epoch_trained(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Saves what the other callbacks of an epoch's end cannot lose any more."""
        self.save(Position(epoch, self.steps_per_epoch), logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves; callbacks before this one have added their results to the history."""
        self.save(Position(epoch + 1, 0), logs)

    def save(self, position: Position, logs: Mapping[str, Any] | None = None) -> pathlib.Path:
        """Writes a checkpoint and deletes those beyond `keep`.

        Args:
            position: where training stands.
            logs: the losses of the last step, or the means of the epoch that ends; checked to be
                finite.

        Returns:
            The checkpoint's directory.

        Raises:
            TrainingDiverged: if a loss or a weight is not finite; nothing is written then.
        """
        check_finite_logs(logs, position.epoch, position.step - 1)
        model = self.model
        arrays, dtypes = state_arrays(model)
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
            "logs": {name: float(value) for name, value in (logs or {}).items()},
            "stopped": bool(model.stop_training),
            "dtypes": dtypes,
            "callbacks": {name: item.get_state() for name, item in self.companions.items()},
        }
        generators = RandomState.capture()
        arrays |= generators.arrays
        state["random"] = generators.values
        done = position.epoch * self.steps_per_epoch + position.step
        is_trained = position.step == self.steps_per_epoch
        path = self.directory / f"step-{done:08d}{_TRAINED if is_trained else ''}"

        def write() -> None:
            write_snapshot(path, arrays, state)
            # A later checkpoint can only be a damaged one that this run was not continued from.
            for old in self.checkpoints():
                if _order(old) > _order(path):
                    shutil.rmtree(old)
            self._remove_before(path)

        current_cluster().run_on_main(write)
        self._saved_at = time.monotonic()
        return path

    def _remove_before(self, newest: pathlib.Path) -> None:
        """Deletes those beyond `keep`, and those of epochs whose callbacks are done by now."""
        older = [path for path in self.checkpoints() if _order(path) < _order(newest)]
        kept = [path for path in older if not path.name.endswith(_TRAINED)][: self.keep - 1]
        for path in older:
            if path not in kept:
                shutil.rmtree(path)

    # --- restoring ---------------------------------------------------------------------------

    def checkpoints(self) -> list[pathlib.Path]:
        """Returns the checkpoints' directories, newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.match(path.name)]
        return sorted(found, key=_order, reverse=True)

    def latest(self) -> Snapshot | None:
        """Reads the newest undamaged checkpoint, and says so if a newer one is damaged.

        Older ones that are not to be kept are deleted, which a killed run did not come to.

        Returns:
            The snapshot, or None if there is no checkpoint.

        Raises:
            CheckpointError: if it belongs to a run with other settings, all are damaged, or the
                processes see different ones.
        """
        current_cluster().run_on_main(lambda: remove_unfinished(self.directory))
        paths = self.checkpoints()
        for path in paths:
            try:
                snapshot = read_snapshot(path)
            except CheckpointError as error:
                current_cluster().say(f"{error} Using the one before it.")
                continue
            self._check_settings(path, snapshot.state)
            self._check_others(snapshot.position)
            # What a process was to delete when it was killed.
            current_cluster().run_on_main(functools.partial(self._remove_before, path))
            return snapshot
        self._check_others(None)
        if paths:
            raise CheckpointError(
                f"Every checkpoint in {self.directory} is damaged: delete that directory to start "
                "again from the beginning."
            )
        return None

    def _check_others(self, position: Position | None) -> None:
        step = -1 if position is None else position.epoch * self.steps_per_epoch + position.step
        seen = current_cluster().gather({"step": np.array([step])})["step"].tolist()
        if len(set(seen)) > 1:
            raise CheckpointError(
                f"The processes see different checkpoints in {self.directory} (after "
                f"{', '.join(str(done) for done in seen)} steps, -1 for none): put the output on a "
                "file system that all of them share."
            )

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


def _order(path: pathlib.Path) -> tuple[int, bool]:
    """Steps that are done, and whether the callbacks that follow them are."""
    match = _NAME.match(path.name)
    assert match is not None
    return int(match[1]), match[2] is None
