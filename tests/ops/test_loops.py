"""`ops.switch`: the value and the gradient of the branch that is chosen, and of no other."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.loops import switch


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
