"""The tuned depthwise convolution equals `keras.ops.depthwise_conv` in value and gradient."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.depthwise import depthwise_conv, explicit_padding
from tests.networks import run
from tests.weights import compiled, gradients


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class Depthwise(keras.layers.Layer):
    """Either form of the operation, with trainable kernel, bias and scale of the input."""

    def __init__(self, tuned, **options):
        super().__init__()
        self.tuned = tuned
        self.options = options

    def build(self, input_shape):
        channels = input_shape[-1 if self.options["data_format"] == "channels_last" else 1]
        kernel = np.random.default_rng(1).normal(size=(*self.options.pop("kernel"), channels, 1))
        self.kernel = self.add_weight(shape=kernel.shape, initializer="zeros")
        self.kernel.assign(kernel)
        self.bias = self.add_weight(shape=(channels,), initializer="zeros")
        self.scale = self.add_weight(shape=input_shape[1:], initializer="ones")

    def call(self, inputs):
        inputs = inputs * self.scale  # its gradient is the gradient of the input, weighted
        if self.tuned:
            return depthwise_conv(inputs, self.kernel, self.bias, **self.options)
        bias = self.bias
        if self.options["data_format"] == "channels_first":
            bias = ops.reshape(bias, (-1, 1, 1))
        return ops.depthwise_conv(inputs, self.kernel, **self.options) + bias

    def compute_output_shape(self, input_shape):
        return input_shape


CASES = [
    dict(kernel=(7, 7), strides=1, padding="same", dilation_rate=1),
    dict(kernel=(7, 7), strides=1, padding="same", dilation_rate=3),
    dict(kernel=(3, 5), strides=1, padding="valid", dilation_rate=2),
    dict(kernel=(3, 3), strides=2, padding="same", dilation_rate=1),
    dict(kernel=(5, 5), strides=2, padding="valid", dilation_rate=1),
    dict(kernel=(2, 4), strides=1, padding="same", dilation_rate=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", [(2, 11, 13, 4), (1, 10, 10, 3)], ids=str)
def test_equals_keras_in_value_and_gradient(case, shape):
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    results = []
    for tuned in (True, False):
        layer = Depthwise(tuned, data_format="channels_last", **case)
        layer.build(shape)
        model = keras.Sequential([keras.Input(shape[1:]), layer])
        outputs = ops.convert_to_numpy(run(layer, images))
        results.append([outputs, *gradients(model, images)])
    for ours, reference in zip(*results, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="about TensorFlow under XLA")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensorflow_compiled_by_xla_equals_its_graph(case):
    import tensorflow as tf

    shape = (2, 11, 13, 4)
    generator = np.random.default_rng(0)
    images = tf.constant(generator.normal(size=shape), "float32")
    options = dict(case)
    kernel = tf.constant(generator.normal(size=(*options.pop("kernel"), 4, 1)), "float32")

    def step(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = depthwise_conv(images, kernel, data_format="channels_last", **options)
            loss = tf.reduce_mean(tf.square(outputs))
        return outputs, *tape.gradient(loss, [images, kernel])

    by_xla = tf.function(step, jit_compile=True)
    graph = by_xla.get_concrete_function(images, kernel).graph
    names = {node.type for node in graph.get_operations()}
    assert "DepthwiseConv2dNative" not in names
    results = by_xla(images, kernel), tf.function(step)(images, kernel)
    for ours, reference in zip(*results, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="about TensorFlow's defaults")
def test_keras_does_not_compile_a_network_by_xla_on_cpu_of_its_own_accord():
    from keras_densepred.layers import DepthwiseConv

    model = keras.Sequential([keras.Input((8, 8, 4)), DepthwiseConv(3)])
    model.compile(loss="mse")
    assert model.jit_compile is False


@pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX under XLA")
def test_the_sum_is_computed_once_whoever_reads_it():
    """XLA on CPU puts what looks cheap into each loop that reads it: here mean, spread and map."""
    import jax

    def normed(images, kernel, bias):
        maps = depthwise_conv(images, kernel, bias, padding="same", data_format="channels_last")
        mean = ops.mean(maps, -1, keepdims=True)
        spread = ops.mean(ops.square(maps - mean), -1, keepdims=True)
        return (maps - mean) * ops.rsqrt(spread + 1e-6)

    shapes = [(1, 9, 9, 8), (3, 3, 8, 1), (8,)]
    program = jax.jit(normed).lower(*(np.zeros(shape, "float32") for shape in shapes)).compile()
    products = program.as_text().count(" multiply(")
    assert 9 <= products < 18


@pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX under XLA")
def test_nan_weights_give_nan():
    import jax

    images, kernel = np.ones((1, 5, 5, 2), "float32"), np.ones((3, 3, 2, 1), "float32")
    kernel[..., 1, :] = np.nan
    for first in (1.0, np.nan):  # the weight that the loop's turns are made of
        kernel[0, 0, 0] = first
        for convolve in (depthwise_conv, jax.jit(depthwise_conv)):
            maps = convolve(images, kernel)
            assert (
                np.isnan(maps[..., 1]).all() and (np.isnan(maps[..., 0]) == np.isnan(first)).all()
            )


@pytest.mark.parametrize("padding,strides", [("same", 1), ("same", 2), ("valid", 1)])
def test_channels_first_is_the_same_operation(padding, strides):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 9, 8, 5)).astype("float32")
    kernel = generator.normal(size=(5, 5, 5, 1)).astype("float32")
    bias = generator.normal(size=(5,)).astype("float32")
    options = {"padding": padding, "strides": strides}
    convolve = compiled(depthwise_conv, "data_format", *options)
    last = convolve(images, kernel, bias, data_format="channels_last", **options)
    if keras.config.backend() == "tensorflow":
        return  # TensorFlow has no channels-first depthwise convolution on CPU
    first = convolve(
        images.transpose(0, 3, 1, 2), kernel, bias, data_format="channels_first", **options
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(first).transpose(0, 2, 3, 1),
        ops.convert_to_numpy(last),
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_stays_close(dtype):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(1, 12, 12, 8)).astype("float32")
    kernel = generator.normal(size=(7, 7, 8, 1)).astype("float32") / 7
    convolve = compiled(depthwise_conv, "padding")
    expected = ops.convert_to_numpy(convolve(images, kernel, padding="same"))
    outputs = convolve(ops.cast(images, dtype), ops.cast(kernel, dtype), padding="same")
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    np.testing.assert_allclose(outputs, expected, atol=0.05)


@pytest.mark.backend_free
def test_padding_is_that_of_same():
    assert explicit_padding((11, 10), (7, 7), 1, "same", 3) == ((9, 9), (9, 9))
    assert explicit_padding((10, 11), (3, 3), 2, "same", 1) == ((0, 1), (1, 1))
    assert explicit_padding((10, 11), (3, 3), 2, "valid", 1) == ((0, 0), (0, 0))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "changes,message",
    [
        ({"padding": "reflect"}, "`padding` must be"),
        ({"strides": 2, "dilation_rate": 2}, "cannot both exceed 1"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(np.zeros((1, 8, 8, 2)), np.zeros((3, 3, 2, 1)), **changes)
    with pytest.raises(ValueError, match="depth multiplier"):
        depthwise_conv(np.zeros((1, 8, 8, 2)), np.zeros((3, 3, 2, 2)))


def test_a_block_on_pytorch_copies_no_layout():
    """Keras' own convolution copies the map twice; ours runs on a view of the same memory."""
    if keras.config.backend() != "torch":
        return
    import torch

    images = ops.convert_to_tensor(torch.randn(1, 16, 16, 8))  # on the device that computes
    kernel = ops.convert_to_tensor(torch.randn(7, 7, 8, 1))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        outputs = depthwise_conv(images, kernel, padding="same")
    assert outputs.is_contiguous()
    copied = [
        math.prod(event.input_shapes[0])
        for event in profile.events()
        if event.name in ("aten::clone", "aten::contiguous", "aten::copy_")
    ]
    assert all(size < images.numel() for size in copied)  # of the kernel only


def test_gradients_of_gradients():
    """A penalty on the gradient by the map, differentiated by the kernel."""
    generator = np.random.default_rng(0)
    maps, kernel = (
        generator.normal(size=size).astype("float32") for size in ((2, 9, 8, 3), (5, 5, 3, 1))
    )
    results = []
    for convolve in (depthwise_conv, ops.depthwise_conv):

        def squared(maps, kernel, convolve=convolve):
            outputs = convolve(maps, kernel, padding="same", data_format="channels_last")
            return ops.sum(ops.square(outputs))

        if keras.config.backend() == "jax":
            import jax

            def penalty(kernel, squared=squared):
                return ops.sum(ops.square(jax.grad(squared)(maps, kernel)))

            results.append(jax.jit(jax.grad(penalty))(kernel))
        elif keras.config.backend() == "tensorflow":
            import tensorflow as tf

            inputs, weights = tf.constant(maps), tf.constant(kernel)
            with tf.GradientTape() as outer:
                outer.watch(weights)
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    total = squared(inputs, weights)
                penalty = tf.reduce_sum(tf.square(inner.gradient(total, inputs)))
            results.append(outer.gradient(penalty, weights))
        else:
            import torch

            inputs, weights = (torch.tensor(x, requires_grad=True) for x in (maps, kernel))
            total = squared(inputs, weights)
            (by_maps,) = torch.autograd.grad(total, inputs, create_graph=True)
            (by_kernel,) = torch.autograd.grad(by_maps.square().sum(), weights)
            results.append(by_kernel.numpy())
    ours, reference = results
    np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max())


@pytest.mark.skipif(keras.config.backend() != "torch", reason="about PyTorch")
class TestWhatPyTorchAsksOfIt:
    def layer(self, dilation=1):
        return Depthwise(
            True, kernel=(7, 7), padding="same", dilation_rate=dilation, data_format="channels_last"
        )

    @pytest.mark.parametrize("dilation", [1, 3])
    def test_no_images(self, dilation):
        import torch

        layer = self.layer(dilation)
        layer.build((None, 9, 9, 4))
        outputs = layer(torch.zeros((0, 9, 9, 4)))
        assert outputs.shape == (0, 9, 9, 4)
        outputs.sum().backward()
        assert not layer.kernel.value.grad.any()

    def test_autocast(self):
        import torch

        layer = self.layer()
        layer.build((None, 9, 9, 4))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = layer(torch.ones((1, 9, 9, 4)))
        outputs.float().sum().backward()
        assert layer.kernel.value.grad.any()

    @pytest.mark.parametrize("dilation", [1, 3])
    def test_compilers_and_exporters_see_one_convolution(self, dilation):
        import torch

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.kernel = torch.nn.Parameter(torch.ones((7, 7, 4, 1)))

            def forward(self, maps):
                return depthwise_conv(
                    maps,
                    self.kernel,
                    padding="same",
                    dilation_rate=dilation,
                    data_format="channels_last",
                )

        exported = torch.export.export(Network(), (torch.ones((1, 9, 9, 4)),), strict=True)
        names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        assert sum("conv" in name for name in names) == 1
        assert not any("clone" in name or "autograd" in name for name in names)

    @pytest.mark.parametrize("images", [3, 20])
    def test_many_small_maps(self, images):
        case = dict(kernel=(5, 5), strides=1, padding="same", dilation_rate=1)
        test_equals_keras_in_value_and_gradient(case, (images, 6, 5, 2))

    def test_a_bias_of_another_precision(self):
        maps, kernel = (ops.ones(shape, "bfloat16") for shape in ((1, 9, 9, 2), (7, 7, 2, 1)))
        outputs = depthwise_conv(maps, kernel, ops.ones(2), data_format="channels_last")
        assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
