"""Drop path and dropout of channels: what is dropped, and whose draws decide it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import ChannelDropout, DropPath

IMAGES = np.random.default_rng(0).uniform(1, 2, (64, 2, 3, 8)).astype("float32")
LAYERS = {"path": (DropPath, (1, 2, 3)), "channels": (ChannelDropout, (1, 2))}


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.fixture(params=LAYERS)
def dropped(request):
    """The class, and the axes along which it decides once."""
    return LAYERS[request.param]


def test_what_is_dropped_is_dropped_as_a_whole(dropped):
    cls, whole = dropped
    outputs = numpy(cls(0.25, seed=1)(IMAGES, training=True))
    kept = outputs != 0
    assert (kept.all(whole) == kept.any(whole)).all()
    assert 0.6 < kept.mean() < 0.9
    np.testing.assert_allclose(outputs[kept], IMAGES[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(numpy(cls(0.25)(IMAGES)), IMAGES)


@pytest.mark.parametrize("seed", [None, 1])
def test_draws_are_its_own_generators(dropped, seed):
    """So that a run that is continued draws what it would have drawn."""
    cls, _ = dropped
    layer = cls(0.5, seed=seed)
    before = numpy(layer.seed_generator.state).copy()
    first, second = (numpy(layer(IMAGES, training=True)) for _ in range(2))
    assert (first != second).any()
    layer.seed_generator.state.assign(before)
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(numpy(layer(IMAGES, training=True)), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays(dropped, dtype):
    cls, _ = dropped
    outputs = cls(0.5, seed=1, dtype=f"mixed_{dtype}")(IMAGES, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
