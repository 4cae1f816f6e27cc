"""The tuned convolutions and norm equal their plain `keras.ops` forms in value and gradient."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import Conv
from keras_densepred.ops.conv import conv2d
from keras_densepred.ops.loops import is_in_branch, switch
from keras_densepred.ops.pointwise import layer_norm, pointwise
from tests.networks import run
from tests.weights import compiled, gradients


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class Operation(keras.layers.Layer):
    """`operation(inputs * scale, *weights)`, all of them trainable."""

    def __init__(self, operation, shapes):
        super().__init__()
        self.operation = operation
        self.shapes = shapes

    def build(self, input_shape):
        generator = np.random.default_rng(1)
        self.scale = self.add_weight(shape=input_shape[1:], initializer="ones")
        self.parts = [self.add_weight(shape=shape) for shape in self.shapes]
        for part in self.parts:
            part.assign(generator.normal(size=part.shape))

    def call(self, inputs):
        return self.operation(inputs * self.scale, *self.parts)


def values_and_gradients(operation, shapes, images):
    layer = Operation(operation, shapes)
    layer.build(images.shape)
    model = keras.Sequential([keras.Input(images.shape[1:]), layer])
    return [ops.convert_to_numpy(run(layer, images)), *gradients(model, images)]


def assert_equal(ours, plain, shapes, images):
    results = [values_and_gradients(operation, shapes, images) for operation in (ours, plain)]
    for result, reference in zip(*results, strict=True):
        np.testing.assert_allclose(result, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(12, 16), (11, 9), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "kernel,strides,padding,groups",
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (2, 2, 0, 1),
        (1, 1, 0, 1),
        (3, 2, 1, 2),
        (3, 1, 1, 6),
        (1, 1, 0, 3),
    ],
)
def test_convolution(kernel, strides, padding, groups, size):
    images = np.random.default_rng(0).normal(size=(2, *size, 6)).astype("float32")

    def plain(x, weights, bias):
        around = (padding, padding)
        x = ops.pad(x, ((0, 0), around, around, (0, 0)))
        return ops.conv(x, weights, strides, "valid", data_format="channels_last") + bias

    def ours(x, weights, bias):
        return conv2d(x, weights, bias, strides=strides, padding=padding, groups=groups)

    assert_equal(ours, plain, [(kernel, kernel, 6 // groups, 12), (12,)], images)


@pytest.mark.parametrize("kernel,padding", [(3, 1), (3, 0), (1, 0)])
def test_convolution_of_wide_maps(kernel, padding):
    """Their kernel gradient is computed in another way on JAX."""
    images = np.random.default_rng(0).normal(size=(2, 24, 25, 64)).astype("float32")

    def plain(x, weights):
        around = (padding, padding)
        x = ops.pad(x, ((0, 0), around, around, (0, 0)))
        return ops.conv(x, weights, 1, "valid", data_format="channels_last") / 24

    def ours(x, weights):
        return conv2d(x, weights, padding=padding) / 24

    assert_equal(ours, plain, [(kernel, kernel, 64, 66)], images)


def test_grouped_convolution_of_maps_of_unknown_size():
    layer = Conv(8, 3, strides=2, groups=2)
    batch = np.random.default_rng(0).normal(size=(2, 7, 9, 4)).astype("float32")
    expected = ops.convert_to_numpy(layer(batch))
    images = keras.Input((None, None, 4))
    model = keras.Model(images, layer(images))
    np.testing.assert_allclose(model.predict(batch, verbose=0), expected, atol=1e-5)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec((None, None, None, 4), "float32")]
        loss = tf.function(lambda x: tf.gradients(layer(x), x)[0], input_signature=signature)
        for size in ((7, 9), (6, 4)):
            assert loss(np.ones((1, *size, 4), "float32")).shape == (1, *size, 4)


def test_layer_with_groups():
    layer = Conv(8, 3, strides=2, groups=2)
    outputs = layer(np.ones((1, 5, 6, 4), "float32"))
    assert outputs.shape == (1, 3, 3, 8)
    assert layer.kernel.shape == (3, 3, 2, 8)
    copy = Conv.from_config(layer.get_config())
    assert copy.groups == 2
    with pytest.raises(ValueError, match="`groups` is 2, which does not divide the 5 channels"):
        Conv(8, 3, groups=2).build((None, 8, 8, 5))
    with pytest.raises(ValueError, match="`filters` must be a multiple of `groups`, got 8, 3"):
        Conv(8, 3, groups=3)


def test_a_kernel_that_does_not_fit_is_refused():
    """Groups were once guessed from the shapes: a kernel for narrower maps convolved in groups."""
    images = np.ones((1, 5, 6, 8), "float32")
    for kernel, groups in (((3, 3, 4, 8), 1), ((3, 3, 8, 8), 2), ((3, 3, 2, 6), 4)):
        message = rf"{kernel[2]}, {kernel[3]}\) in {groups} groups does not fit .* 8 channels"
        with pytest.raises(ValueError, match=message):
            conv2d(images, np.ones(kernel, "float32"), groups=groups)
    layer = Conv(8, 3)
    layer.build((None, None, None, 4))
    with pytest.raises(ValueError, match="does not fit maps of 8 channels"):
        layer(images)


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (3, 6)], ids=str)
def test_pointwise(shape):
    images = np.random.default_rng(0).normal(size=shape).astype("float32")

    def plain(x, weights, bias):
        return ops.matmul(x, weights) + bias

    assert_equal(pointwise, plain, [(6, 9), (9,)], images)


def test_layer_norm():
    images = np.random.default_rng(0).normal(3, 2, size=(2, 4, 5, 8)).astype("float32")

    def plain(x, gamma, beta):
        mean, variance = ops.moments(x, axes=-1, keepdims=True)
        return (x - mean) / ops.sqrt(variance + 1e-6) * gamma + beta

    assert_equal(lambda *x: layer_norm(*x, 1e-6), plain, [(8,), (8,)], images)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_stays_close(dtype):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(1, 8, 8, 8)).astype("float32")
    kernel = generator.normal(size=(2, 2, 8, 8)).astype("float32") / 6
    scale, shift = np.ones(8, "float32"), np.zeros(8, "float32")
    for operation, arguments in (
        (lambda x, k, b: conv2d(x, k, b, strides=2), (images, kernel, shift)),
        (lambda x, k, b: conv2d(x, k, b, strides=2, groups=4), (images, kernel[:, :, :2], shift)),
        (pointwise, (images, kernel[0, 0], shift)),
        (lambda x, g, b: layer_norm(x, g, b, 1e-6), (images, scale, shift)),
    ):
        operation = compiled(operation)
        expected = ops.convert_to_numpy(operation(*map(ops.convert_to_tensor, arguments)))
        outputs = operation(*(ops.cast(ops.convert_to_tensor(x), dtype) for x in arguments))
        assert keras.backend.standardize_dtype(outputs.dtype) == dtype
        outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
        np.testing.assert_allclose(outputs, expected, atol=0.05)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX under XLA")
@pytest.mark.parametrize("strides", [1, 2])
def test_gradients_in_a_branch_are_products(strides):
    """XLA's own are right there and take ten times as long and more."""
    import jax

    maps, kernel = np.ones((2, 7, 6, 8), "float32"), np.ones((3, 3, 8, 4), "float32")

    def total(kernel):
        return ops.sum(ops.square(conv2d(maps, kernel, strides=strides, padding=1)))

    def in_branch(kernel, index):
        return switch(index, [lambda: 0.0 * ops.sum(kernel), lambda: total(kernel)])

    outside, inside = jax.jit(jax.grad(total)), jax.jit(jax.grad(in_branch))
    assert "dot_general" not in str(jax.make_jaxpr(outside)(kernel))
    assert str(jax.make_jaxpr(inside)(kernel, 1)).count("dot_general") >= 1
    np.testing.assert_allclose(inside(kernel, 1), outside(kernel), rtol=1e-5)
    assert not inside(kernel, 0).any() and not is_in_branch()
