"""Gradients with respect to a network's input against finite differences."""

import keras
import numpy as np
from keras import ops

from keras_densepred.runtime.input_gradient import input_gradient


def test_equals_finite_differences_and_leaves_variables_alone():
    model = keras.Sequential(
        [
            keras.Input((5, 4, 3)),
            keras.layers.Conv2D(4, 3, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=3),
        ]
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:  # a norm that is no identity
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    model_values = [ops.convert_to_numpy(v).copy() for v in model.variables]

    def loss(x, targets):
        return ops.mean(ops.square(model(x, training=True) - targets["y"]))

    gradient = input_gradient(loss, model.variables)
    x = rng.normal(size=(2, 5, 4, 3)).astype("float32")
    targets = {"y": rng.normal(size=(2, 3, 2, 4)).astype("float32")}
    found = gradient(x, targets)
    assert found.shape == x.shape and found.dtype == np.float32
    assert np.ptp(found) > 0.01

    def value(x):
        with keras.StatelessScope():  # the same dropout each time
            tensors = {name: ops.convert_to_tensor(y) for name, y in targets.items()}
            return float(ops.convert_to_numpy(loss(ops.convert_to_tensor(x), tensors)))

    step = 1e-2
    for index in [(0, 0, 0, 0), (1, 2, 1, 2), (0, 4, 3, 1)]:
        shift = np.zeros_like(x)
        shift[index] = step
        expected = (value(x + shift) - value(x - shift)) / (2 * step)
        np.testing.assert_allclose(found[index], expected, rtol=0.02, atol=2e-4)

    np.testing.assert_array_equal(gradient(x, targets), found)
    for before, variable in zip(model_values, model.variables, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(variable))


def test_what_the_loss_does_not_read_has_no_gradient():
    gradient = input_gradient(lambda x, targets: ops.sum(x[:, 1:] * targets["y"]))
    x = np.ones((1, 3), "float32")
    np.testing.assert_array_equal(gradient(x, {"y": x[:, 1:] * 2}), [[0, 2, 2]])
