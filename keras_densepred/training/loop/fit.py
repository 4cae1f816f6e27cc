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

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.loop.checkpoint import ResumableCheckpoint
from keras_densepred.training.loop.divergence import NanGuard
from keras_densepred.training.loop.snapshots import Position, RandomState, Snapshot
from keras_densepred.training.optim import assign_trainable, copy_trainable, take_averages

Batches = Callable[[int], Iterator[tuple[Any, ...]]]


class SpanningCallbacks(keras.callbacks.CallbackList):
    """The callbacks of one run, which may take two calls of `Model.fit`.

    Training begins and ends once; batches of an interrupted epoch count from where it stopped, and
    its running means are restored after Keras has reset them. The global generators are restored at
    the first batch of each call, because opening the data draws from PyTorch's. Callbacks with
    `lazy_logs` get losses as the backend's arrays: Keras turns them into floats after every batch,
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

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        cluster = current_cluster()
        if cluster.metrics_are_local and logs:
            own = {name: np.array([value], np.float64) for name, value in logs.items()}
            logs.update({name: float(all_.mean()) for name, all_ in cluster.gather(own).items()})
        super().on_epoch_end(epoch, logs)

    def end_epoch_again(self, snapshot: Snapshot) -> None:
        """Does what is left of an epoch whose steps are all done."""
        epoch = snapshot.position.epoch
        self.epoch_snapshot = snapshot
        self.on_epoch_begin(epoch)
        snapshot.random_state.restore()
        super().on_epoch_end(epoch, snapshot.epoch_logs)
        self.generators = RandomState.capture()

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


class _EpochTrained(keras.callbacks.Callback):
    """Saves an epoch before the callbacks after this one."""

    def __init__(self, checkpoint: ResumableCheckpoint):
        super().__init__()
        self._checkpoint = checkpoint

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves."""
        self._checkpoint.on_epoch_trained(epoch, logs)


class _RawWeights(keras.callbacks.Callback):
    """Keeps the raw weights of an epoch's end: `Model.fit` leaves averaged ones in the model."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Copies the weights."""
        self._values = copy_trainable(self.model)

    def put_back(self) -> None:
        """Assigns the copy."""
        assign_trainable(self.model, self._values)


def _noting(
    batches: Iterator[tuple[Any, ...]], failures: list[Exception]
) -> Generator[tuple[Any, ...], None, None]:
    """The same batches; what they raise is noted."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise


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
    and the same history as if it had never been interrupted; bit for bit on CPU, with the same
    number of threads: on TensorFlow a toy detector's weights differ by 1e-6 after six steps between
    one thread and two. Seed everything that draws random numbers before the model is built
    (`keras.utils.set_random_seed`).

    Within `training.distribute` with several processes, all of them call it alike; killing one ends
    the run, which is then started again as a whole.

    Args:
        model: a compiled and built model.
        batches_from: called with the number of batches trained so far, returns an iterator over the
            batches from there on, `(x, y)` or `(x, y, sample_weight)`; batch k must depend on k
            alone. With several processes: this process' rows of batch k (`Cluster.shard`).
        epochs: of the whole run.
        steps_per_epoch: batches in an epoch.
        checkpoint: where and when to save.
        callbacks: more callbacks, called before the checkpoint is written. Those with `get_state`
            and `set_state` are saved with it. If one fails at the end of an epoch, the epoch is not
            trained again: the next start begins with what they do then. A run that one of them has
            stopped is finished.

    Returns:
        The position that training was continued from; `Position(0, 0)` for a fresh run. With
        `use_ema=True` the model holds the averaged weights afterwards, as after `Model.fit`.

    Raises:
        CheckpointError: if the checkpoints belong to another run or model, or are all damaged.
        TrainingDiverged: if a loss or a weight becomes NaN or infinite.
    """
    cluster = current_cluster()
    checkpoint.attach(steps_per_epoch, callbacks)
    snapshot = checkpoint.latest()
    start = Position()
    # Metrics and the optimizer make their variables when they see a batch; on TensorFlow Keras does
    # this after the first step, too late to put the running means back.
    model._symbolic_build(data_batch=next(batches_from(0)))
    if snapshot is not None:
        start = snapshot.position
        steps = f" and {start.step} of {steps_per_epoch} steps" if start.step else ""
        done = f"{start.epoch} of {epochs} epochs{steps} are done"
        if snapshot.stopped:
            cluster.say(f"Training is finished: it was stopped when {done}.")
        else:
            cluster.say(f"Continuing from {snapshot.path}: {done}.")
        snapshot.restore(model, checkpoint.companions)
    spanning = SpanningCallbacks(
        [NanGuard(), *callbacks, checkpoint], model, epochs, steps_per_epoch
    )
    spanning.generators = snapshot.random_state if snapshot else None
    spanning.begin()
    model.stop_training = snapshot is not None and snapshot.stopped

    def run(position: Position, until: int) -> None:
        done = position.epoch * steps_per_epoch + position.step
        spanning.first_batch = position.step
        failures: list[Exception] = []
        # KerasHub's tasks (0.32) wrap `fit` to run their preprocessor, which ours do not have, and
        # take no generator there.
        try:
            keras.Model.fit(
                model,
                cluster.fit_input(lambda: _noting(batches_from(done), failures)),
                initial_epoch=position.epoch,
                epochs=until,
                steps_per_epoch=steps_per_epoch - position.step,
                callbacks=spanning,
                shuffle=False,
                verbose=0,
            )
        except Exception as error:
            # TensorFlow makes a graph's error of what the data raised.
            if failures and failures[0] is not error:
                raise failures[0] from error
            raise

    epoch = start.epoch
    with cluster.training(model):
        if snapshot is not None and start.step == steps_per_epoch:
            spanning.end_epoch_again(snapshot)
            epoch += 1
        spanning.callbacks.insert(1, _EpochTrained(checkpoint))
        if 0 < start.step < steps_per_epoch and epoch < epochs and not model.stop_training:
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
