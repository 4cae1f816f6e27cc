"""Pooling against windows taken one by one."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import AdaptiveMean, MaxPool
from keras_densepred.layers.darknet import Maxout
from keras_densepred.ops.pooling import adaptive_mean_pool, largest, max_pool2d


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


@pytest.mark.parametrize(
    "height,width,padding", [(8, 7, 0), (5, 4, 0), (8, 7, (0, 1)), (1, 2, (0, 1))]
)
def test_windows_that_do_not_overlap(height, width, padding):
    maps = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
    after = padding[1] if padding else 0
    outputs = ops.convert_to_numpy(max_pool2d(maps, pool_size=2, strides=2, padding=padding))
    assert outputs.shape == (2, (height + after) // 2, (width + after) // 2, 3)
    for row in range(outputs.shape[1]):
        for column in range(outputs.shape[2]):
            window = maps[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(outputs[:, row, column], window.max((1, 2)))


def test_symbolic_shapes_are_those_of_the_result():
    symbolic = max_pool2d(keras.KerasTensor((None, 9, 6, 4)), pool_size=3, strides=2, padding=1)
    assert symbolic.shape == (None, 5, 3, 4)


@pytest.mark.parametrize("pool_size", [1, 2, 3])
def test_gradients_reach_the_maxima_when_compiled(pool_size):
    """By XLA too, which Keras takes for whole models on TensorFlow."""
    assert_learns(MaxPool(pool_size))


def assert_learns(layer):
    """That a convolution's kernel changes by a step through `layer`, and stays finite.

    Between them is a batch norm, which XLA may compute twice: for the maximum, and for the
    comparison with it.
    """
    inputs = keras.Input((6, 6, 4))
    conv = keras.layers.Conv2D(4, 1, use_bias=False, data_format="channels_last")
    norm = keras.layers.BatchNormalization(axis=-1, gamma_initializer="random_normal")
    outputs = layer(keras.layers.LeakyReLU(0.1)(norm(conv(inputs))))
    model = keras.Model(inputs, ops.sum(outputs, axis=(1, 2)))
    before = conv.get_weights()[0]
    model.compile(keras.optimizers.SGD(0.1), "mean_squared_error")
    maps = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    assert np.isfinite(model.train_on_batch(maps, np.zeros((2, outputs.shape[-1]), "float32")))
    after = conv.get_weights()[0]
    assert np.isfinite(after).all() and (before != after).any()


def test_gradients_reach_the_largest_channels_when_compiled():
    assert_learns(Maxout(2))


def test_the_largest_of_several():
    """NaN is not hidden, wherever it stands."""
    parts = np.float32([[1, 5, np.nan, 2], [3, 5, 1, np.nan], [2, 4, 0, 1]])
    result = ops.convert_to_numpy(largest(list(ops.convert_to_tensor(parts))))
    np.testing.assert_array_equal(result, np.float32([3, 5, np.nan, np.nan]))


def cell_means(maps, cells):
    """The definition: cell i from floor(i * H / s) up to, not including, ceil((i + 1) * H / s)."""
    height, width = maps.shape[1:3]
    edges = [
        [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        for side in (height, width)
    ]
    rows = [
        [maps[:, top:bottom, left:right].mean((1, 2)) for left, right in edges[1]]
        for top, bottom in edges[0]
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def check_cells(sizes):
    maps = np.random.default_rng(0).normal(size=(1, 40, 40, 2)).astype("float32")
    for height, width in sizes:
        part = maps[:, :height, :width]
        for cells in (1, 2, 3, 6):
            means = ops.convert_to_numpy(adaptive_mean_pool(part, cells))
            expected = cell_means(part, cells)
            np.testing.assert_allclose(means, expected, atol=1e-6, err_msg=f"{part.shape} {cells}")


@pytest.mark.slow_on("jax")
def test_adaptive_means_equal_the_definition():
    check_cells([(side, 41 - side) for side in range(1, 41)])


@pytest.mark.slow
def test_adaptive_means_equal_the_definition_for_every_size():
    check_cells([(height, width) for height in range(1, 41) for width in range(1, 41)])


def test_adaptive_means_of_sizes_known_when_it_runs():
    layer = AdaptiveMean(3)
    model = keras.Sequential([keras.Input((None, None, 2)), layer])
    assert model.output_shape == (None, 3, 3, 2)
    maps = np.random.default_rng(0).normal(size=(2, 7, 4, 2)).astype("float32")
    predicted = keras.Sequential([keras.Input((None, None, 2)), layer]).predict(maps, verbose=0)
    np.testing.assert_allclose(predicted, cell_means(maps, 3), atol=1e-6)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        any_size = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 2))])
        np.testing.assert_allclose(any_size(maps), cell_means(maps, 3), atol=1e-6)
    assert AdaptiveMean.from_config(layer.get_config()).cells == 3
