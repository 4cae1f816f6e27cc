"""The deformable convolution layer: how it starts, what it keeps, what it refuses."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import DeformableConv2D
from keras_densepred.ops.conv import conv2d
from tests.weights import compiled

MAPS = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype("float32")


def outputs_of(network):
    if not network.built:
        network.build(MAPS.shape)
    return ops.convert_to_numpy(compiled(network)(MAPS))


@pytest.mark.parametrize("strides", [1, 2])
def test_it_starts_as_the_convolution(strides):
    layer = DeformableConv2D(6, strides=strides)
    outputs = outputs_of(layer)
    assert outputs.shape == tuple(layer.compute_output_shape(MAPS.shape))
    expected = conv2d(MAPS, layer.kernel, strides=strides, padding=1)
    np.testing.assert_allclose(outputs, ops.convert_to_numpy(expected), atol=1e-5)


def test_modulated_it_starts_at_one_half():
    """Factors are sigmoids of zeros, of the channels behind all offsets."""
    layer = DeformableConv2D(6, modulated=True, offset_groups=2)
    outputs = outputs_of(layer)
    assert layer.offset_kernel.shape == (3, 3, 4, 3 * 2 * 9)
    expected = ops.convert_to_numpy(conv2d(MAPS, layer.kernel, padding=1))
    np.testing.assert_allclose(outputs, 0.5 * expected, atol=1e-5)


def test_offsets_are_found_in_the_map():
    layer = DeformableConv2D(6)
    layer.build(MAPS.shape)
    bias = np.zeros(18, "float32")
    bias[0::2] = 1.0  # down
    layer.offset_bias.assign(bias)
    shifted = np.pad(MAPS, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
    expected = ops.convert_to_numpy(conv2d(shifted, layer.kernel, padding=1))
    # The first row's taps above read the map's first row instead of zeros.
    outputs = outputs_of(layer)
    np.testing.assert_allclose(outputs[:, 1:], expected[:, 1:], atol=1e-5)
    assert not np.allclose(outputs[:, 0], expected[:, 0], atol=1e-3)


@pytest.mark.parametrize("dilation", [1, 2])
def test_saved_models_reload(dilation, tmp_path):
    inputs = keras.Input((None, None, 4))
    layer = DeformableConv2D(
        *(6, 3, 2), dilation, groups=2, offset_groups=2, modulated=True, use_bias=True, name="dcn"
    )
    model = keras.Model(inputs, layer(inputs))
    for weight in layer.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    outputs = outputs_of(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs_of(again), outputs)
    assert again.get_layer("dcn").get_config() == layer.get_config()


def test_half_precision_maps_keep_their_type():
    layer = DeformableConv2D(6, dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(layer(MAPS).dtype) == "bfloat16"


def test_the_start_of_the_kernels_is_mmcvs():
    wide = np.zeros((1, 3, 3, 64), "float32")
    for modulated, limit in ((False, (6 / (9 * 64)) ** 0.5), (True, (9 * 64) ** -0.5)):
        layer = DeformableConv2D(32, modulated=modulated)
        layer.build(wide.shape)
        largest = np.abs(ops.convert_to_numpy(layer.kernel)).max()
        assert 0.98 * limit < largest <= limit


def test_groups_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="`filters` must be a multiple of `groups`, got 6, 4"):
        DeformableConv2D(6, groups=4)
    with pytest.raises(ValueError, match="`offset_groups` is 3, which does not divide the 4"):
        DeformableConv2D(6, offset_groups=3)(MAPS)
