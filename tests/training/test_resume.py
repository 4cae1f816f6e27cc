"""Exact resume: a killed and continued run equals one that was never interrupted, bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_densepred import training
from tests.training import resume_toy as toy

TOY = pathlib.Path(toy.__file__)


def weights(model):
    return [np.asarray(w) for w in model.get_weights()]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    model, rows, _ = toy.train(tmp_path_factory.mktemp("whole"))
    return weights(model), rows


@pytest.mark.slow_on("tensorflow", "torch")
def test_killed_and_started_again(tmp_path, uninterrupted):
    root = TOY.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(TOY), str(tmp_path)]
    killed = subprocess.run([*command, "--kill-after", "14"], env=environment, cwd=root)
    assert killed.returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000009", "step-00000012"]  # batch 12 is the fourth of epoch 2
    subprocess.run(command, env=environment, cwd=root, check=True)
    expected, rows = uninterrupted
    with np.load(tmp_path / "result.npz") as result:
        assert result["start"].tolist() == [1, 4]
        assert result["losses"].tolist() == [row["loss"] for row in rows]
        assert result["maes"].tolist() == [row["mae"] for row in rows]
        assert_same([result[str(i)] for i in range(len(expected))], expected)


class Interrupt(Exception):
    pass


def interrupt_after(directory, batches, **options):
    """Trains until after so many batches; returns nothing that the next run could use."""

    def stop(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Interrupt

    patched = type("Stop", (toy.KillAfter,), {"on_train_batch_end": stop})
    original, toy.KillAfter = toy.KillAfter, patched
    try:
        with pytest.raises(Interrupt):
            toy.train(directory, kill_after=batches, **options)
    finally:
        toy.KillAfter = original


@pytest.mark.parametrize("batches", [2, 9, 23])  # nothing saved yet, epoch's end, last epoch
def test_interrupted_anywhere(tmp_path, uninterrupted, batches):
    interrupt_after(tmp_path, batches)
    model, rows, _ = toy.train(tmp_path)
    assert_same(weights(model), uninterrupted[0])
    assert rows == uninterrupted[1]


class FailsOnce(keras.callbacks.Callback):
    """An evaluation that draws random numbers and adds to the history; it fails the first time."""

    fails = True

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        logs["drawn"] = float(np.random.random() + logs["loss"])  # noqa: NPY002 - the global one
        if epoch == self.epoch and FailsOnce.fails:
            FailsOnce.fails = False
            raise Interrupt


@pytest.mark.parametrize("epoch", [0, toy.EPOCHS - 1])
def test_what_fails_at_an_epochs_end_loses_no_step(tmp_path, monkeypatch, epoch):
    steps = []

    def run(directory, fails):
        monkeypatch.setattr(FailsOnce, "fails", fails)
        count = keras.callbacks.Callback()
        count.on_train_batch_begin = lambda batch, logs=None: steps.append(batch)
        return toy.train(directory, before=[FailsOnce(epoch), count])

    model, expected, _ = run(tmp_path / "whole", False)
    everything = len(steps)
    steps.clear()
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", True)
    newest = max(path.name for path in (tmp_path / "broken").iterdir())
    assert newest == f"step-{8 * (epoch + 1):08d}-trained"
    continued, rows, start = run(tmp_path / "broken", False)
    assert start == training.Position(epoch, toy.STEPS)
    assert len(steps) == everything, "a step was done again"
    assert rows == expected and "drawn" in rows[0]
    assert_same(weights(continued), weights(model))
    names = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert names == ["step-00000021", "step-00000024"]


def test_what_the_data_raise_is_what_fit_raises(tmp_path, monkeypatch):
    """On TensorFlow it was an error of the graph, with a traceback in its text."""
    original = toy.batches_from

    def broken(step):
        for number, batch in enumerate(original(step), step):
            if number == 11:
                raise ValueError("photo.jpg is broken.")
            yield batch

    monkeypatch.setattr(toy, "batches_from", broken)
    with pytest.raises(ValueError, match=r"^photo\.jpg is broken\.$"):
        toy.train(tmp_path)


def test_finished_run_is_left_as_it_is(tmp_path, uninterrupted):
    toy.train(tmp_path)
    model, rows, start = toy.train(tmp_path)
    assert start == training.Position(toy.EPOCHS, 0)
    assert_same(weights(model), uninterrupted[0])
    assert rows == uninterrupted[1]


def test_damaged_newest_is_passed_over(tmp_path, uninterrupted, capsys):
    interrupt_after(tmp_path, 14)
    newest = tmp_path / "step-00000012" / "state.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    model, _, start = toy.train(tmp_path)
    assert start == training.Position(1, 1)
    assert "step-00000012 is damaged. Using the one before it." in capsys.readouterr().out
    assert_same(weights(model), uninterrupted[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000021", "step-00000024"]


def test_all_damaged(tmp_path):
    interrupt_after(tmp_path, 14)
    for path in tmp_path.glob("*/state.npz"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        training.CheckpointError, match=r"Every checkpoint in .* is damaged: delete"
    ):
        toy.train(tmp_path)


def test_half_written_checkpoint_is_no_checkpoint(tmp_path, uninterrupted):
    interrupt_after(tmp_path, 14)
    unfinished = tmp_path / ".step-00000013.abc.unfinished"
    (unfinished / "new").mkdir(parents=True)
    (unfinished / "new" / "state.npz").write_bytes(b"half")
    model, _, start = toy.train(tmp_path)
    assert not unfinished.exists()
    assert start == training.Position(1, 4)
    assert_same(weights(model), uninterrupted[0])


def test_other_model_is_refused(tmp_path):
    toy.train(tmp_path, epochs=1)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("adam", "mse", metrics=["mae"])
    with pytest.raises(training.CheckpointError, match="it belongs to another model"):
        toy.train(tmp_path, model=model)


@pytest.mark.slow_on("jax", "tensorflow")  # of Keras, whose callback is one
def test_backup_and_restore_still_loses_state(tmp_path):
    """What this module is for: remove it when Keras' own callback continues exactly."""

    def run(batches, interrupt=None):
        model = toy.make_model()
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1)]
        if interrupt:
            callbacks.append(interrupt)
        model.fit(
            batches, epochs=2, steps_per_epoch=8, verbose=0, callbacks=callbacks, shuffle=False
        )
        return weights(model)

    class Stop(toy.KillAfter):
        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if self.left == 0:
                raise Interrupt

    expected = run(toy.batches_from(0))
    with pytest.raises(Interrupt):
        run(toy.batches_from(0), Stop(13))
    resumed = run(toy.batches_from(0))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(expected, resumed, strict=True))


def test_a_run_that_was_stopped_early_is_finished(tmp_path, capsys):
    def stop(epoch, logs=None):
        early.model.stop_training = epoch == 1

    early = keras.callbacks.Callback()
    early.on_epoch_end = stop
    model, rows, _ = toy.train(tmp_path, before=[early])
    assert len(rows) == 2 < toy.EPOCHS
    capsys.readouterr()
    again, same_rows, start = toy.train(tmp_path, before=[early])
    assert "finished: it was stopped when 2 of 3 epochs are done" in capsys.readouterr().out
    assert (start, same_rows) == (training.Position(2, 0), rows)
    assert_same(weights(again), weights(model))
