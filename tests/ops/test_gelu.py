"""The exact GELU against its definition."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.pointwise import gelu, pointwise


def test_it_is_x_times_the_normal_distribution_function():
    x = np.linspace(-12, 12, 4001, dtype="float32").reshape(1, -1)
    expected = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x[0].astype("float64")])
    result = ops.convert_to_numpy(gelu(ops.convert_to_tensor(x)))[0]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_the_negative_tail(dtype):
    x = ops.cast(ops.convert_to_tensor([-3.0, -2.0, 0.0, 2.0]), dtype)
    result = ops.convert_to_numpy(ops.cast(gelu(x), "float32"))
    np.testing.assert_allclose(result, [-0.00405, -0.0455, 0.0, 1.9545], rtol=0.03)
    assert gelu(x).dtype == x.dtype


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="about TensorFlow's graphs")
@pytest.mark.parametrize("height", [4, None])
def test_tensorflow_can_fuse_it_with_the_product_before(height):
    """Its optimiser makes one operation of product, bias and GELU, with no view between them."""
    import tensorflow as tf

    kernel, bias = tf.Variable(tf.ones((3, 8))), tf.Variable(tf.ones(8))
    expand = tf.function(
        lambda maps: gelu(pointwise(maps, kernel, bias)),
        input_signature=[tf.TensorSpec((None, height, 5, 3))],
    )
    operations = expand.get_concrete_function().graph.get_operations()
    (erf,) = (operation for operation in operations if operation.type == "Erf")
    (scaled,) = (tensor.op for tensor in erf.inputs)
    assert [tensor.op.type for tensor in scaled.inputs] == ["BiasAdd", "Const"]
    maps = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    expected = gelu(pointwise(maps, kernel, bias))  # eagerly
    np.testing.assert_allclose(expand(maps), expected, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="about TensorFlow's graphs")
def test_tensorflow_has_its_gradient_by_the_map_that_it_was_given():
    import tensorflow as tf

    kernel = tf.ones((3, 8))

    @tf.function
    def by_map(images):
        with tf.GradientTape() as tape:
            maps = pointwise(images, kernel)
            tape.watch(maps)
            total = tf.reduce_sum(gelu(maps))
        return tape.gradient(total, maps)

    found = by_map(tf.zeros((1, 4, 5, 3)))
    np.testing.assert_allclose(found, np.full((1, 4, 5, 8), 0.5), atol=1e-6)
