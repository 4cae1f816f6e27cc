"""Training that stops at the first number that is not finite."""

import numpy as np
import pytest

from keras_densepred import training
from tests.training import resume_toy as toy


def poisoned(step):
    """Batches of which the seventh holds a NaN."""
    for number, (x, y) in enumerate(toy.batches_from(step), start=step):
        yield x, y * np.float32("nan") if number == 6 else y


@pytest.mark.parametrize("every_steps", [None, 1])
def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, every_steps):
    saver = training.ResumableCheckpoint(tmp_path, {}, every_steps=every_steps)
    with pytest.raises(training.TrainingDiverged, match="loss became nan at step 7 of epoch 1"):
        training.fit(toy.make_model(), poisoned, epochs=2, steps_per_epoch=8, checkpoint=saver)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ([] if every_steps is None else ["step-00000005", "step-00000006"])


def test_nan_guard_names_the_part_of_the_loss():
    guard = training.NanGuard()
    guard.on_epoch_begin(2)
    guard.on_train_batch_end(4, {"loss": float("inf"), "box_loss": 1.0, "class_loss": float("inf")})
    with pytest.raises(
        training.TrainingDiverged, match="class_loss became inf at step 5 of epoch 3"
    ):
        guard.on_train_batch_end(5, {"loss": 1.0})
