"""Branches and loops: the values and gradients of what is computed, and of nothing else."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.loops import first_columns, switch
from tests.weights import normal, value_and_gradients


class Powers(keras.layers.Layer):
    """From (exponent, x), a batch of one: (factor x)^exponent, with a factor for each exponent."""

    def build(self, input_shape):
        self.factors = [
            self.add_weight(name=f"factor_{n}", shape=(), initializer="ones") for n in range(3)
        ]

    def call(self, inputs):
        x = inputs[:, 1:]
        branches = [
            lambda n=n, factor=factor: (factor * x) ** (n + 1)
            for n, factor in enumerate(self.factors)
        ]
        return switch(ops.cast(inputs[0, 0], "int32") - 1, branches)


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_one_branch_is_computed_and_learns(exponent):
    model = keras.Sequential([keras.Input((2,)), Powers()])
    model.compile(keras.optimizers.SGD(0.01), "mean_squared_error")
    inputs = np.float32([[exponent, 2]])
    power = 2.0**exponent
    # The loss is the square of the power, and its derivative by the factor 2 exponent times that.
    assert model.train_on_batch(inputs, np.zeros((1, 1))) == pytest.approx(power**2)
    expected = np.ones(3)
    expected[exponent - 1] -= 0.01 * 2 * exponent * power**2
    np.testing.assert_allclose(model.get_weights(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.predict(inputs, verbose=0), [[(2 * expected[exponent - 1]) ** exponent]], rtol=1e-5
    )


@pytest.mark.parametrize("number", [0, 1, 16, 17, 35, 37])
@pytest.mark.parametrize("columns", [5, 37])
def test_first_columns(columns, number):
    """Blocks of 16, of which the last may reach back; what is behind `number` has no gradient."""
    number = min(number, columns)
    values, others = (normal(name, (2, columns, 3)) for name in ("values", "others"))
    upstream = normal("upstream", (2, columns, 3))
    upstream[:, number:] = 0.0

    def squares(values, others):
        return ops.square(values) * others, ops.sum(values, axis=-1)

    def form(values):
        product, total = first_columns(squares, number, values, ops.convert_to_tensor(others))
        return product + total[..., None]

    found, (gradient,) = value_and_gradients(form, [values], upstream)
    expected = values**2 * others + values.sum(-1, keepdims=True)
    np.testing.assert_allclose(found[:, :number], expected[:, :number], rtol=1e-5)
    slope = 2 * values * others * upstream + upstream.sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)
