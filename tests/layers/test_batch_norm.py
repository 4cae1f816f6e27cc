"""Batch normalisation: Keras' own on one device, by the moments of all replicas on several."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import layers
from keras_densepred.layers.norm import ConvBatchNorm, SyncConvBatchNorm
from keras_densepred.ops.moments import moments
from keras_densepred.runtime import replicas

BACKEND = keras.backend.backend()


def maps():
    return np.random.default_rng(0).normal(3.0, 0.1, size=(4, 5, 6, 3)).astype("float32")


@pytest.mark.parametrize("training", [False, True])
def test_equals_keras_on_one_device(training):
    ours, theirs = layers.BatchNorm(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    if BACKEND == "jax":  # whose moments are other operations, see `ops.moments`
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
        for layer in (ours, theirs):
            layer.build((None, None, None, 3))
            layer.moving_mean.assign([2.8, 3.0, 3.1])  # maps have 3.0, and a deviation of 0.1
    else:
        tolerance = {"rtol": 1e-7}
    found, expected = (layer(maps(), training=training) for layer in (ours, theirs))
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, expected)), **tolerance)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (a, b)), **tolerance)


@pytest.mark.parametrize("kind", [ConvBatchNorm, SyncConvBatchNorm])
def test_of_convolutional_networks_in_training(kind):
    ours, theirs = kind(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    for layer in (ours, theirs):
        layer.build((None, None, None, 3))
        layer.moving_mean.assign([2.8, 3.0, 3.1])
        layer(maps(), training=True)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (a, b)), rtol=1e-5)


def test_config():
    layer = layers.BatchNorm(momentum=0.9, epsilon=1e-5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is layers.BatchNorm
    assert (copy.momentum, copy.epsilon) == (0.9, 1e-5)


def test_moments_of_two_replicas(monkeypatch):
    """The second replica's slot is added as its process would."""
    x = maps()
    halves = [ops.convert_to_tensor(half) for half in np.split(x, 2)]
    monkeypatch.setattr(replicas, "replica_count", lambda: 2)
    slots = []

    def collect(slot):
        slots.append(slot)
        return slot

    monkeypatch.setattr(replicas, "sum_over_replicas", collect)
    for index in range(2):
        monkeypatch.setattr(replicas, "_replica_index", lambda index=index: index)
        replicas.moments_of_all(*moments(halves[index], (0, 1, 2), ops.zeros(3)))
    monkeypatch.setattr(replicas, "sum_over_replicas", lambda slot: slots[0] + slots[1])
    mean, variance = replicas.moments_of_all(*moments(halves[0], (0, 1, 2), ops.zeros(3)))
    exact = x.astype("float64")
    np.testing.assert_allclose(ops.convert_to_numpy(mean), exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(variance), exact.var((0, 1, 2)), rtol=1e-3)


def test_replicas_draw_other_numbers(monkeypatch):
    seed = ops.convert_to_tensor(np.array([7, 3], "int32"))
    assert ops.convert_to_numpy(replicas.own_seed(seed)).tolist() == [7, 3]
    monkeypatch.setattr(replicas, "replica_count", lambda: 2)
    monkeypatch.setattr(replicas, "_replica_index", lambda: 1)
    assert ops.convert_to_numpy(replicas.own_seed(seed)).tolist() == [8, 3]


def test_loss_normalizer_on_one_device():
    for count, expected in ((0.0, 1.0), (5.0, 5.0)):
        found = replicas.loss_normalizer(ops.convert_to_tensor(count, "float32"))
        assert float(found) == expected


def test_keras_still_refuses_to_synchronize():
    """What `BatchNorm` is for: Keras 3.15.1 synchronises statistics on TensorFlow only."""
    if BACKEND == "tensorflow":
        return
    with pytest.raises(ValueError, match="synchronized=True is only supported with the TensorFlow"):
        keras.layers.BatchNormalization(synchronized=True)
