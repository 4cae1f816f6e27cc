"""Deformable convolution against the reference outputs, values and gradients, on each backend.

Of the traps of its definition `test_reference_values_and_gradients` catches: x before y, taps or
offset groups in another order, `groups` taken for offset groups, positions clamped to the map
(`v1_far`, `v1_border`), the gradient at whole positions (`v1_zero_offset`, `v1_integer`) and at -1.
"""

import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.conv import conv2d
from keras_densepred.ops.deformable_conv import deformable_conv
from tests.weights import value_and_gradients

CASES = (
    "v1_3x3",
    "v1_stride2",
    "v1_zero_offset",
    "v1_border",
    "v2_mask_bias_dg2",
    "v1_groups2_dilation2",
    "v1_far",
    "v1_1pixel",
    "v1_integer",
)


def channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def names_of(file):
    return sorted({name.split("/")[0] for name in file.files})


def reference(golden, case):
    with np.load(golden / "points" / "deform_conv.npz") as file:
        assert case in names_of(file)
        return {
            name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{case}/")
        }


def test_every_case_of_the_reference_is_run(golden):
    with np.load(golden / "points" / "deform_conv.npz") as file:
        assert set(names_of(file)) == set(CASES)


def function_and_inputs(data):
    config = json.loads(str(data["config"]))
    assert all(len(set(config[name])) == 1 for name in ("stride", "padding", "dilation"))
    function = functools.partial(
        deformable_conv,
        strides=config["stride"][0],
        padding=config["padding"][0],
        dilation=config["dilation"][0],
        groups=config["groups"],
        offset_groups=config["offset_groups"],
    )
    inputs = [channels_last(data["x"]), channels_last(data["offset"])]
    inputs.append(np.ascontiguousarray(data["weight"].transpose(2, 3, 1, 0)))
    if "mask" in data:
        inputs.append(channels_last(data["mask"]))
    return function, inputs


@pytest.mark.parametrize("case", CASES)
def test_reference_values_and_gradients(case, golden):
    data = reference(golden, case)
    function, inputs = function_and_inputs(data)
    outputs, gradients = value_and_gradients(function, inputs, channels_last(data["grad"]))
    expected = [
        channels_last(data["grad_x"]),
        channels_last(data["grad_offset"]),
        data["grad_weight"].transpose(2, 3, 1, 0),
    ]
    if "mask" in data:
        expected.append(channels_last(data["grad_mask"]))
    assert_outputs(outputs, data)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=2e-5, atol=2e-5)


def assert_outputs(outputs, data):
    outputs = outputs + data.get("bias", np.float32(0))  # which a layer adds
    np.testing.assert_allclose(outputs, channels_last(data["out"]), rtol=1e-5, atol=1e-5)


def example(size=(6, 5), channels=4, filters=3, spread=1.0, offset_groups=1):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(2, *size, channels)),
        rng.normal(size=(2, *size, 2 * 9 * offset_groups)) * spread,
        rng.normal(size=(3, 3, channels, filters)),
    )
    return [array.astype("float32") for array in arrays]


def test_without_offsets_it_is_the_convolution():
    maps, offsets, kernel = example(spread=0.0)
    outputs = deformable_conv(*map(ops.convert_to_tensor, (maps, offsets, kernel)), padding=1)
    expected = conv2d(maps, kernel, padding=1)
    np.testing.assert_allclose(to_numpy(outputs), to_numpy(expected), atol=1e-5)


def to_numpy(value):
    return ops.convert_to_numpy(value)


@pytest.mark.parametrize("far", [1e30, -1e30, np.inf, -np.inf])
def test_offsets_without_bound_sample_zeros_and_have_finite_gradients(far):
    """Cast to integers as they are, such positions could be any cell."""
    maps, offsets, kernel = example(spread=0.3)
    offsets[:, 2:4] = far
    upstream = np.ones((2, 6, 5, 3), "float32")
    outputs, gradients = value_and_gradients(
        functools.partial(deformable_conv, padding=1), [maps, offsets, kernel], upstream
    )
    np.testing.assert_array_equal(outputs[:, 2:4], 0.0)
    assert np.any(outputs[:, :2])
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    np.testing.assert_array_equal(gradients[1][:, 2:4], 0.0)


def test_positions_are_float32_whatever_the_maps_are():
    """In bfloat16 there is nothing between cells 128 and 129."""
    maps = np.zeros((1, 1, 200, 1), "float32")
    maps[0, 0, 150] = 1.0
    offsets = np.zeros((1, 1, 200, 2), "float32")
    offsets[..., 1] = 0.25
    outputs = deformable_conv(
        ops.cast(maps, "bfloat16"), ops.convert_to_tensor(offsets), np.ones((1, 1, 1, 1), "float32")
    )
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    outputs = to_numpy(ops.cast(outputs, "float32"))[0, 0, :, 0]
    np.testing.assert_allclose(outputs[149:152], [0.25, 0.75, 0.0])


def compiled_calls(call):
    """`call` with XLA, and compiled for maps of any size where the backend has that."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return [jax.jit(call)]
    if backend == "torch":
        return [call]
    import tensorflow as tf

    signature = [tf.TensorSpec((None, None, None, size)) for size in (4, 18)]
    signature.append(tf.TensorSpec((3, 3, 4, 3)))
    return [
        tf.function(call, jit_compile=True),
        tf.function(call, input_signature=signature),
    ]


@pytest.mark.parametrize("strides, dilation", [(1, 1), (2, 2)])
def test_compiled_and_with_open_sizes_it_gives_the_same(strides, dilation):
    call = functools.partial(deformable_conv, strides=strides, padding=dilation, dilation=dilation)
    rows, columns = (-(-size // strides) for size in (6, 5))
    maps, offsets, kernel = example(spread=2.0)
    inputs = [maps, np.ascontiguousarray(offsets[:, :rows, :columns]), kernel]
    upstream = np.random.default_rng(1).normal(size=(2, rows, columns, 3)).astype("float32")
    outputs, gradients = value_and_gradients(call, inputs, upstream)
    by_image = [
        value_and_gradients(
            call, [x[i : i + 1] for x in inputs[:2]] + [kernel], upstream[i : i + 1]
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(outputs, np.concatenate([out for out, _ in by_image]), atol=1e-5)
    np.testing.assert_allclose(gradients[2], sum(of[2] for _, of in by_image), atol=1e-4)
    for compiled in compiled_calls(call):
        others = value_and_gradients(compiled, inputs, upstream)
        np.testing.assert_allclose(others[0], outputs, atol=1e-5)
        for other, gradient in zip(others[1], gradients, strict=True):
            np.testing.assert_allclose(other, gradient, atol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="lowers with JAX")
def test_it_lowers_for_tpu():
    import jax

    inputs = example()
    specs = [jax.ShapeDtypeStruct(x.shape, "float32") for x in inputs]
    gradients = jax.grad(
        lambda *inputs: deformable_conv(*inputs, padding=1).sum(), argnums=(0, 1, 2)
    )
    exported = jax.export.export(jax.jit(gradients), platforms=["tpu"])(*specs)
    assert "custom_call" not in exported.mlir_module()


def test_half_precision_inputs_get_gradients_of_their_type():
    """Sums are float32 inside: all 9 x 4 products of 1 add up to what bfloat16 can hold."""
    maps, offsets, kernel = (np.ones_like(x) for x in example())
    offsets[:] = 0.0

    def call(maps, offsets, kernel):
        halves = [ops.cast(x, "bfloat16") for x in (maps, offsets, kernel)]
        return ops.cast(deformable_conv(*halves, padding=1), "float32")

    outputs, gradients = value_and_gradients(
        call, [maps, offsets, kernel], np.ones((2, 6, 5, 3), "float32")
    )
    assert outputs[0, 2, 2, 0] == 36.0
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][:, 1:-1, 1:-1], 27.0)


def test_at_minus_one_the_gradient_of_an_offset_is_zero():
    """mmcv's rule; torchvision's kernel gives the forward difference to the first cell there."""
    maps = np.arange(1.0, 10.0, dtype="float32").reshape(1, 3, 3, 1)
    kernel, upstream = np.ones((1, 1, 1, 1), "float32"), np.ones((1, 3, 3, 1), "float32")
    offsets = np.zeros((1, 3, 3, 2), "float32")
    offsets[0, 0, :, 0] = -1.0  # the first row reads the row above the map
    outputs, (_, gradient, _) = value_and_gradients(
        deformable_conv, [maps, offsets, kernel], upstream
    )
    np.testing.assert_array_equal(outputs[0, 0], 0.0)
    np.testing.assert_array_equal(gradient[0, 0], 0.0)
    # At whole positions inside the difference to the next cell, which is 0 behind the last.
    np.testing.assert_array_equal(gradient[0, 1, :, 0], maps[0, 2, :, 0] - maps[0, 1, :, 0])
    np.testing.assert_array_equal(gradient[0, 2, :, 0], -maps[0, 2, :, 0])


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's form for ONNX files")
@pytest.mark.parametrize("case", ["v2_mask_bias_dg2", "v1_groups2_dilation2", "v1_border"])
def test_what_onnx_files_compute_is_the_same(case, golden, monkeypatch):
    monkeypatch.setattr("keras_densepred.ops.deformable_conv.writes_onnx", lambda: True)
    data = reference(golden, case)
    function, inputs = function_and_inputs(data)
    assert_outputs(to_numpy(function(*map(ops.convert_to_tensor, inputs))), data)


def test_arguments_that_do_not_fit_are_named():
    maps, offsets, kernel = example()
    with pytest.raises(ValueError, match="`offsets` needs 36 channels"):
        deformable_conv(maps, offsets, kernel, padding=1, offset_groups=2)
    with pytest.raises(ValueError, match="`mask` needs 9 channels"):
        deformable_conv(maps, offsets, kernel, offsets, padding=1)
    with pytest.raises(ValueError, match="in 2 groups does not fit maps of 4 channels"):
        deformable_conv(maps, offsets, kernel, padding=1, groups=2)
