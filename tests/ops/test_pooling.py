"""Max-pooling against windows taken one by one."""

import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.pooling import max_pool2d


@pytest.mark.parametrize("height,width", [(8, 7), (1, 2)])
def test_equals_the_windows_maxima(height, width):
    maps = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
    outputs = ops.convert_to_numpy(max_pool2d(maps, pool_size=3, strides=2, padding=1))
    assert outputs.shape == (2, -(-height // 2), -(-width // 2), 3)
    for row in range(outputs.shape[1]):
        for column in range(outputs.shape[2]):
            window = maps[
                :, max(2 * row - 1, 0) : 2 * row + 2, max(2 * column - 1, 0) : 2 * column + 2
            ]
            np.testing.assert_array_equal(outputs[:, row, column], window.max((1, 2)))


def test_symbolic_shapes_are_those_of_the_result():
    import keras

    symbolic = max_pool2d(keras.KerasTensor((None, 9, 6, 4)), pool_size=3, strides=2, padding=1)
    assert symbolic.shape == (None, 5, 3, 4)
