"""Darknet's layers against plain NumPy."""

import keras
import numpy as np
import pytest

from keras_densepred.layers import (
    BroadcastLike,
    ConvNorm,
    Maxout,
    PartialAdd,
    SpatialPyramidPooling,
    attention_gate,
)

MAP = np.random.default_rng(0).normal(size=(2, 6, 7, 12)).astype("float32")


def run(layer, *inputs):
    """The result, which has the shape that the layer tells."""
    result = keras.ops.convert_to_numpy(layer(*map(keras.ops.convert_to_tensor, inputs)))
    assert layer.compute_output_shape(*(x.shape for x in inputs)) == result.shape
    return result


@pytest.mark.parametrize("filters", [4, 5, 12])
def test_maxout_takes_every_nth_channel(filters):
    """With 5 of 12 channels the last groups have two members instead of three."""
    expected = [MAP[..., first::filters].max(-1) for first in range(filters)]
    np.testing.assert_array_equal(run(Maxout(filters), MAP), np.stack(expected, -1))


def test_maxout_only_narrows():
    with pytest.raises(ValueError, match="13, more than the 12 channels"):
        Maxout(13)(MAP)


def test_partial_add_keeps_the_channels_of_the_first_map():
    narrow = MAP[..., :5]
    wide = MAP + np.pad(narrow, ((0, 0), (0, 0), (0, 0), (0, 7)))
    np.testing.assert_allclose(run(PartialAdd(), MAP, narrow), wide, rtol=1e-6)
    np.testing.assert_allclose(run(PartialAdd(), narrow, MAP), 2 * narrow, rtol=1e-6)
    np.testing.assert_allclose(run(PartialAdd(), MAP, MAP), 2 * MAP, rtol=1e-6)


def test_pyramid_pooling_has_the_widest_window_first():
    found = run(SpatialPyramidPooling(), MAP)
    for part, side in enumerate((13, 9, 5, 1)):
        reach = side // 2
        for y, x in ((0, 0), (3, 3), (5, 2)):
            window = MAP[:, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            expected = window.max(axis=(1, 2))
            np.testing.assert_array_equal(found[:, y, x, 12 * part : 12 * part + 12], expected)


def test_broadcast_like():
    point = MAP[:, :1, :1, :3]
    expected = np.broadcast_to(point, (2, 6, 7, 3))
    np.testing.assert_array_equal(run(BroadcastLike(), point, MAP), expected)


def test_attention_gate_scales_by_a_sigmoid_of_a_normed_convolution():
    inputs = keras.Input((6, 7, 12))
    model = keras.Model(inputs, attention_gate(ConvNorm(epsilon=1e-5), inputs, "sam"))
    names = [layer.name for layer in model.layers[1:]]
    assert names == ["sam_conv", "sam_norm", "sam_gate"]
    kernel = keras.ops.convert_to_numpy(model.get_layer("sam_conv").kernel).reshape(12, 12)
    gate = MAP @ kernel / np.sqrt(1 + 1e-5)
    found = keras.ops.convert_to_numpy(model(MAP, training=False))
    np.testing.assert_allclose(found, MAP / (1 + np.exp(-gate)), rtol=1e-4, atol=1e-5)
