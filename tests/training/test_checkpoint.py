"""Checkpoints: when they are written, how many stay, and which are refused."""

import shutil

import numpy as np
import pytest

from keras_densepred import training
from keras_densepred.training.loop import checkpoint
from tests.training import resume_toy as toy


def test_other_settings_are_refused(tmp_path):
    toy.train(tmp_path, epochs=1)
    saver = training.ResumableCheckpoint(tmp_path, {"model": "another", "width": 3})
    saver.attach(toy.STEPS, [])
    with pytest.raises(
        training.CheckpointError, match="model 'toy' there, 'another' now; width None"
    ):
        saver.latest()


def test_keeps_the_newest(tmp_path):
    toy.train(tmp_path, epochs=1, every_steps=1, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000006", "step-00000007", "step-00000008"]


def test_what_a_killed_run_did_not_come_to_delete_goes_at_the_next_start(tmp_path):
    toy.train(tmp_path, epochs=1)
    for name in ("step-00000003", "step-00000008-trained"):
        shutil.copytree(tmp_path / "step-00000008", tmp_path / name)
    *_, start = toy.train(tmp_path, epochs=1)
    assert start == training.Position(1, 0), "the one after the callbacks is the newer one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


def test_saves_by_the_clock(tmp_path, monkeypatch):
    now = iter(range(0, 100000, 61))  # a minute passes between two looks at the clock
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(now))
    toy.train(tmp_path, epochs=1, every_steps=None, every_minutes=1.0, keep=99)
    assert len(list(tmp_path.iterdir())) == toy.STEPS


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = toy.make_model()
    saver = training.ResumableCheckpoint(tmp_path, {})
    saver.attach(8, [])
    saver.set_model(model)
    kernel = model.get_layer("stage1_dense").kernel
    kernel.assign(np.full(kernel.shape, np.inf, "float32"))
    with pytest.raises(training.TrainingDiverged, match=r"the weight .*stage1_dense/kernel holds"):
        saver.save(training.Position(0, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"every_steps": 0}, {"every_minutes": 0.0}], ids=str
)
def test_bad_arguments(tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        training.ResumableCheckpoint(tmp_path, {}, **options)
