"""The place of the largest value."""

import keras
import numpy as np

from keras_densepred.ops.argmax import argmax


def test_is_that_of_keras():
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    values[1, 2:4] = 9.0  # equal ones: the first
    for axis in (1, -1):
        found = argmax(keras.ops.convert_to_tensor(values), axis)
        assert keras.backend.standardize_dtype(found.dtype) == "int32"
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), values.argmax(axis))
