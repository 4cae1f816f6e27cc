"""The speed that `--minutes` plans with, measured on every backend."""

import itertools
import types

import keras
import numpy as np
import pytest

from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.training import AdamW, budget
from keras_densepred.training.devices.cluster import Cluster, current_cluster
from keras_densepred.training.loop.fit import SpanningCallbacks

IMAGES = np.zeros((2, 8, 8, 3), "float32")


class Recipe:
    """A run of a small network that keeps averages of its weights, as those on few images do."""

    @staticmethod
    def build_model(settings, train):
        pixels = keras.Input((8, 8, 3))
        model = keras.Model(pixels, keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(pixels)))
        model.compile(AdamW(1e-3, use_ema=True, ema_momentum=0.9), "mse")
        model.size_divisor = 8
        return model

    @staticmethod
    def preprocessing(settings):
        return Preprocessing("classification", (0.0,) * 3, (1.0,) * 3, image_size=8)

    @staticmethod
    def pyramid_of(model):
        return types.SimpleNamespace(rematerialize=lambda which: None)

    @staticmethod
    def batches(settings, train, model, shard):
        def batches(step):
            for _ in itertools.count(step):
                yield IMAGES, np.zeros((2, 72), "float32")

        return batches

    @staticmethod
    def open_evaluation(settings, val, shard, model):
        return [{"images": IMAGES}] * 4


SETTINGS = types.SimpleNamespace(seed=0, rematerialize=None, image_size=8)


def test_it_trains_twice_and_predicts():
    again = []
    speed = budget._measure(
        Recipe, SETTINGS, current_cluster(), None, range(8), 1e-3, check_start=again.append
    )
    assert len(again) == 1 and again[0] > speed.compiling_step
    assert speed.step > 0 and speed.evaluation > 0.03 and np.isfinite(speed.compiling)


def test_it_ends_once_it_is_known_that_no_step_fits():
    class Unpredicted(Recipe):
        open_evaluation = None

    def refuse(seconds):
        raise RuntimeError("too short")

    with pytest.raises(RuntimeError, match="too short"):
        budget._measure(Unpredicted, SETTINGS, current_cluster(), None, range(8), 10.0, refuse)


def test_it_waits_for_the_first_and_the_last_step_alone():
    """As a run, which prepares a batch while one is trained."""
    waited = []

    class Loss:
        def __init__(self, batch):
            self.batch = batch

        def __float__(self):
            waited.append(self.batch)
            return 0.0

    clock = budget._Clock(5)
    callbacks = SpanningCallbacks([clock], Recipe.build_model(None, None), epochs=1, steps=5)
    for batch in range(5):
        callbacks.on_train_batch_end(batch, {"loss": Loss(batch)})
    assert waited == [0, 4] and (clock.seconds() > 0).all()


class WithASlowOne(Cluster):
    """Another process takes 1,000 s longer for everything."""

    def gather(self, arrays):
        return {name: np.concatenate([value, value + 1e3]) for name, value in arrays.items()}


def test_all_processes_measure_as_many_steps():
    """One that measured more would wait for ever for the gradients of the others."""
    drawn = []

    class Counting(Recipe):
        @staticmethod
        def batches(settings, train, model, shard):
            def batches(step):
                for example in Recipe.batches(settings, train, model, shard)(step):
                    drawn.append(step)
                    yield example

            return batches

    budget._measure(Counting, SETTINGS, WithASlowOne(), None, range(8), 10.0, [].append)
    assert len(drawn) < 50, "few steps, and what is read ahead"
