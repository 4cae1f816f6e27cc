"""Multi-scale deformable attention against the reference outputs, values and gradients."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.deformable_attention import deformable_attention
from tests.weights import value_and_gradients

GRADIENTS = ("d_value", "d_locations", "d_weights")


def test_reference_values_and_gradients(golden):
    data = np.load(golden / "detr" / "msda_op.npz")
    shapes = [tuple(shape) for shape in data["spatial_shapes"].tolist()]
    outputs, gradients = value_and_gradients(
        lambda values, locations, weights: deformable_attention(values, shapes, locations, weights),
        [data["value"], data["locations"], data["weights"]],
        data["grad"],
    )
    np.testing.assert_allclose(outputs, data["output"], atol=1e-6)
    for gradient, name in zip(gradients, GRADIENTS, strict=True):
        np.testing.assert_allclose(gradient, data[name], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's form for ONNX files")
def test_what_onnx_files_compute_is_the_same(golden, monkeypatch):
    data = np.load(golden / "detr" / "msda_op.npz")
    shapes = [tuple(shape) for shape in data["spatial_shapes"].tolist()]
    monkeypatch.setattr("keras_densepred.ops.deformable_attention.writes_onnx", lambda: True)
    inputs = [ops.convert_to_tensor(data[name]) for name in ("value", "locations", "weights")]
    outputs = deformable_attention(inputs[0], shapes, *inputs[1:])
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), data["output"], atol=1e-6)


SHAPES = [(3, 5), (2, 3)]  # wider than high: the two cannot be swapped


def example(queries=6, spread=1.5):
    """Values, locations far outside and inside, weights and the gradient of the result."""
    rng = np.random.default_rng(0)
    tokens = sum(height * width for height, width in SHAPES)
    arrays = (
        rng.normal(size=(2, tokens, 3, 4)),
        rng.uniform(0.5 - spread, 0.5 + spread, (2, queries, 3, 2, 4, 2)),
        rng.uniform(size=(2, queries, 3, 2, 4)),
        rng.normal(size=(2, queries, 12)),
    )
    *inputs, upstream = (array.astype("float32") for array in arrays)
    return inputs, upstream


def attend(values, locations, weights):
    return deformable_attention(values, SHAPES, locations, weights)


def sample(level, x, y):
    """Bilinear value of a map (H, W, C) with zeros around it."""
    height, width, _ = level.shape
    u, v = x * width - 0.5, y * height - 0.5
    column, row = int(np.floor(u)), int(np.floor(v))
    total = 0.0
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if 0 <= row + i < height and 0 <= column + j < width:
            total = total + level[row + i, column + j] * (
                abs(1 - i - (v - row)) * abs(1 - j - (u - column))
            )
    return total


def test_samples_are_bilinear_with_zeros_outside():
    (values, locations, weights), upstream = example()
    outputs, _ = value_and_gradients(attend, [values, locations, weights], upstream)
    expected = np.zeros((2, 6, 3, 4))
    for b, q, head in np.ndindex(2, 6, 3):
        start = 0
        for level, (height, width) in enumerate(SHAPES):
            tokens = values[b, start : start + height * width, head]
            for point in range(4):
                expected[b, q, head] += weights[b, q, head, level, point] * sample(
                    tokens.reshape(height, width, 4), *locations[b, q, head, level, point]
                )
            start += height * width
    np.testing.assert_allclose(outputs, expected.reshape(2, 6, 12), atol=1e-5)


@pytest.mark.parametrize("value", [-1e30, 1e30, np.inf, -np.inf, 1e4])
def test_far_outside_all_is_zero(value):
    (values, locations, weights), upstream = example()
    outputs, gradients = value_and_gradients(
        attend, [values, np.full_like(locations, value), weights], upstream
    )
    assert not outputs.any()
    assert not any(gradient.any() for gradient in gradients)


def test_locations_that_are_not_numbers_spoil_their_own_query_only():
    (values, locations, weights), upstream = example()
    expected, _ = value_and_gradients(attend, [values, locations, weights], upstream)
    locations[0, 1, 2, 0, 0] = np.nan
    outputs, _ = value_and_gradients(attend, [values, locations, weights], upstream)
    assert np.isnan(outputs[0, 1, 8:]).all()
    outputs[0, 1, 8:] = expected[0, 1, 8:]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_values_are_summed_in_float32(dtype):
    (values, locations, weights), _ = example()
    halved = ops.cast(ops.convert_to_tensor(values), dtype)
    call = attend
    if keras.config.backend() == "jax":
        import jax

        call = jax.jit(attend)
    outputs = call(halved, locations, weights)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    full = call(ops.cast(halved, "float32"), locations, weights)
    rounded = ops.cast(ops.cast(full, dtype), "float32")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(outputs, "float32")), ops.convert_to_numpy(rounded)
    )


class Attention(keras.layers.Layer):
    def call(self, values, locations, weights):
        return attend(values, locations, weights)


def test_shapes_are_inferred():
    (values, locations, weights), _ = example()
    layer = Attention(dtype="mixed_bfloat16", autocast=False)
    inputs = [
        keras.Input(values.shape[1:], dtype="bfloat16"),
        keras.Input((None, *locations.shape[2:])),
        keras.Input((None, *weights.shape[2:])),
    ]
    model = keras.Model(inputs, layer(*inputs))
    assert model.output_shape == (None, None, 12)
    assert model.outputs[0].dtype == "bfloat16"
    assert model.predict([values, locations, weights], verbose=0).shape == (2, 6, 12)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's graphs")
def test_compiled_and_with_open_sizes_it_gives_the_same():
    import tensorflow as tf

    inputs, upstream = example()
    signature = [
        tf.TensorSpec((2, 2), tf.int32),
        tf.TensorSpec((None, None, 3, 4)),
        tf.TensorSpec((None, None, 3, 2, 4, 2)),
        tf.TensorSpec((None, None, 3, 2, 4)),
    ]

    @tf.function(input_signature=signature)
    def open_sizes(shapes, *inputs):
        pairs = [(shapes[level, 0], shapes[level, 1]) for level in range(2)]
        return deformable_attention(inputs[0], pairs, *inputs[1:])

    outputs, gradients = value_and_gradients(attend, inputs, upstream)
    for call in (
        lambda *inputs: open_sizes(tf.constant(SHAPES), *inputs),
        tf.function(attend, jit_compile=True),
    ):
        others = value_and_gradients(call, inputs, upstream)
        np.testing.assert_allclose(others[0], outputs, atol=1e-5)
        for other, gradient in zip(others[1], gradients, strict=True):
            np.testing.assert_allclose(other, gradient, atol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="lowers with JAX")
def test_it_lowers_for_tpu():
    import jax

    inputs, _ = example()
    specs = [jax.ShapeDtypeStruct(x.shape, "float32") for x in inputs]
    gradients = jax.grad(lambda *inputs: attend(*inputs).sum(), argnums=(0, 1, 2))
    exported = jax.export.export(jax.jit(gradients), platforms=["tpu"])(*specs)
    assert "custom_call" not in exported.mlir_module()


def test_bad_arguments_are_named():
    (values, locations, weights), _ = example()
    with pytest.raises(ValueError, match="equally many levels, got 1, 2 and 2"):
        deformable_attention(values, SHAPES[:1], locations, weights)
    with pytest.raises(ValueError, match="21 tokens, and the areas of `shapes` sum to 18"):
        deformable_attention(values, [(3, 5), (1, 3)], locations, weights)
