"""Early stopping: when it stops, which weights are kept, and that a killed run has them too."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.loop.best import BestEpoch
from keras_densepred.training.loop.in_output import Extras, fit_in_output


class Evaluation(keras.callbacks.Callback):
    """Gives made numbers, and remembers the weights of each epoch."""

    monitor = "val_AP"
    on_batch = None

    def __init__(self, numbers, fails_at=None):
        super().__init__()
        self.numbers, self.fails_at = numbers, fails_at
        self.weights, self.forgotten = {}, False

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.fails_at:
            raise RuntimeError("the machine goes down")
        self.weights[epoch] = values_of(self.model)
        if self.numbers[epoch] is not None:
            logs["val_AP"] = self.numbers[epoch]

    def forget(self):
        self.forgotten = True


def values_of(model):
    return np.concatenate(
        [keras.ops.convert_to_numpy(v).ravel() for v in model.variables if "seed" not in v.path]
    )


def small_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.add(keras.layers.BatchNormalization())
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def batches_from(step):
    while True:
        x = np.random.default_rng(step).normal(size=(4, 2)).astype("float32")
        yield x, x[:, :1]
        step += 1


def train(output, evaluation, patience, **extras):
    model = small_model()
    fit_in_output(
        model,
        batches_from,
        evaluation,
        cluster=current_cluster(),
        output=output,
        decisive={"toy": 1},
        step_size=4,
        epochs=len(evaluation.numbers),
        steps_per_epoch=2,
        checkpoint_minutes=10,
        extras=Extras(patience=patience, **extras),
    )
    return model


NUMBERS = [0.1, None, 0.3, 0.2, None, 0.3, 0.9]  # the last is not reached


def test_training_stops_and_the_model_has_the_best_epochs_weights(tmp_path, capsys):
    evaluation = Evaluation(NUMBERS)
    model = train(tmp_path, evaluation, patience=2)
    assert sorted(evaluation.weights) == list(range(6))
    np.testing.assert_array_equal(values_of(model), evaluation.weights[2])
    assert evaluation.forgotten
    printed = capsys.readouterr().out
    assert "val_AP has not been better than 0.3, of epoch 3, in 2 evaluations" in printed
    assert "The best epoch is 3 (val_AP 0.3)" in printed


def test_without_patience_the_last_weights_stay(tmp_path):
    evaluation = Evaluation(NUMBERS)
    model = train(tmp_path, evaluation, patience=None)
    np.testing.assert_array_equal(values_of(model), evaluation.weights[6])
    assert not evaluation.forgotten and not (tmp_path / "best").exists()


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("fails_at", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_stops_at_the_same_epoch(tmp_path, fails_at):
    whole = train(tmp_path / "whole", Evaluation(NUMBERS), patience=2)
    with pytest.raises(RuntimeError, match="goes down"):
        train(tmp_path / "cut", Evaluation(NUMBERS, fails_at), patience=2)
    evaluation = Evaluation(NUMBERS)
    model = train(tmp_path / "cut", evaluation, patience=2)
    assert min(evaluation.weights) == fails_at and max(evaluation.weights) == 5
    np.testing.assert_array_equal(values_of(model), values_of(whole))
    finished = Evaluation(NUMBERS)
    again = train(tmp_path / "cut", finished, patience=2)
    assert not finished.weights, "the run is finished"
    np.testing.assert_array_equal(values_of(again), values_of(whole))


def test_what_was_evaluated_is_kept(tmp_path):
    """Averages, of an optimizer that keeps some."""
    model = small_model()

    @contextlib.contextmanager
    def zeros():
        before = model.get_weights()
        model.set_weights([np.zeros_like(value) for value in before])
        yield
        model.set_weights(before)

    best = BestEpoch("val_AP", 1, tmp_path / "weights.npz", zeros)
    best.set_model(model)
    assert not best.restore(model), "no epoch yet"
    best.on_epoch_end(0, {"val_AP": 0.5})
    assert values_of(model).any()
    assert best.restore(model) and not any(value.any() for value in model.get_weights())
    with pytest.raises(ValueError, match="at least 1"):
        BestEpoch("val_AP", 0, tmp_path / "weights.npz", zeros)
