"""Mean and variance of a batch, against NumPy in float64."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.moments import moments
from tests.weights import compiled, value_and_gradients

AXES = (0, 1, 2)
MAPS = np.random.default_rng(0).normal(3.0, 0.1, size=(4, 5, 6, 3)).astype("float32")


@pytest.mark.parametrize("near, tolerance", [(3.0, 1e-6), (2.8, 1e-5), (0.0, 1e-3)])
def test_as_in_float64(near, tolerance):
    """0 is 30 deviations away, as at the start of training: three digits of a variance are left.

    Keras' on PyTorch (3.15.1) are a difference of large squares wherever the mean is.
    """
    if keras.config.backend() == "torch":
        tolerance = 1e-3
    exact = MAPS.astype("float64")
    mean, variance = compiled(lambda x: moments(x, AXES, ops.full((3,), near)))(MAPS)
    np.testing.assert_allclose(ops.convert_to_numpy(mean), exact.mean(AXES), rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(variance), exact.var(AXES), rtol=tolerance)


def test_gradients_are_those_of_keras():
    upstream = np.random.default_rng(1).normal(size=(2, 3)).astype("float32")

    def ours(x):
        return ops.stack(moments(x, AXES, ops.full((3,), 2.9)))

    def kerass(x):
        return ops.stack(ops.moments(x, AXES))

    (found, grads), (expected, theirs) = (
        value_and_gradients(function, (MAPS,), upstream) for function in (ours, kerass)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(grads[0], theirs[0], atol=1e-7)


def test_a_variance_is_never_less_than_nothing():
    same = ops.full((4, 5, 6, 3), 1000.1)
    variance = ops.convert_to_numpy(moments(same, AXES, ops.zeros(3))[1])
    assert (variance >= 0).all()


def test_the_variance_does_not_wait_for_the_mean():
    """Two sums over devices, which travel as one: no third one, of the mean within the variance."""
    if keras.config.backend() == "jax":
        import jax

        step = jax.make_jaxpr(lambda x: moments(x, AXES, ops.zeros(3)))
        assert str(step(MAPS)).count("reduce_sum") == 2
    else:  # devices have rows of their own there
        found = moments(ops.convert_to_tensor(MAPS), AXES, ops.zeros(3))
        for one, other in zip(found, ops.moments(MAPS, AXES), strict=True):
            np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, other)))
