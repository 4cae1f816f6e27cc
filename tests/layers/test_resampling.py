"""Up-sampling to another map's size, the pyramid's mean, space-to-depth, strided depthwise."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import (
    DepthwiseConv,
    NearestUpsample,
    PyramidMean,
    SpaceToDepth,
    TransposedConv,
)


def maps(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("factor,height,width", [(2, 7, 4), (4, 9, 13)])
def test_nearest_upsample_repeats_positions_and_cuts(factor, height, width):
    coarse = maps(2, -(-height // factor), -(-width // factor), 3)
    result = numpy(NearestUpsample(factor)(coarse, maps(2, height, width, 5)))
    rows, columns = np.arange(height) // factor, np.arange(width) // factor
    np.testing.assert_array_equal(result, coarse[:, rows][:, :, columns])


def test_pyramid_mean_equals_upsampling_every_level_at_once():
    levels = [maps(2, -(-13 // 2**n), -(-9 // 2**n), 3) for n in range(4)]
    expected = np.mean(
        [
            level[:, np.arange(13) // 2**n][:, :, np.arange(9) // 2**n]
            for n, level in enumerate(levels)
        ],
        axis=0,
    )
    np.testing.assert_allclose(numpy(PyramidMean()(levels)), expected, atol=1e-6)


def test_space_to_depth_keeps_squares_together():
    image = maps(2, 6, 5, 3)
    result = numpy(SpaceToDepth()(image))
    assert result.shape == (2, 3, 3, 12)
    np.testing.assert_array_equal(result[:, 1, 1], image[:, 2:4, 2:4].reshape(2, 12))
    np.testing.assert_array_equal(result[:, 2, 2, :3], image[:, 4, 4])
    np.testing.assert_array_equal(result[:, 2, 2, 3:6], 0)  # beyond the edge


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_strided_depthwise_takes_every_second_position(size):
    """Symmetric padding: what the unstrided convolution gives at even positions."""
    image = maps(2, *size, 4)
    plain = DepthwiseConv(3, use_bias=False)
    strided = DepthwiseConv(3, use_bias=False, strides=2)
    expected = numpy(plain(image))[:, ::2, ::2]
    strided.build(image.shape)
    strided.set_weights(plain.get_weights())
    assert strided.compute_output_shape((None, *size, 4))[1:] == expected.shape[1:]
    np.testing.assert_allclose(numpy(strided(image)), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_transposed_convolution_equals_keras(factor):
    ours = TransposedConv(5, factor)
    plain = keras.layers.Conv2DTranspose(5, factor, factor, data_format="channels_last")
    image = maps(2, 4, 3, 6)
    expected_shape = plain(image).shape
    assert ours.compute_output_shape((None, 4, 3, 6))[1:] == expected_shape[1:]
    ours.build(image.shape)
    weights = [maps(*weight.shape) for weight in plain.weights]
    plain.set_weights(weights)
    ours.set_weights(weights)
    np.testing.assert_allclose(numpy(ours(image)), numpy(plain(image)), atol=1e-5)


def test_layers_come_back_from_their_configs():
    policy = keras.DTypePolicy("mixed_bfloat16")
    for layer in (
        NearestUpsample(4),
        DepthwiseConv(3, strides=2),
        TransposedConv(8, 3),
        PyramidMean(dtype=policy),
    ):
        config = keras.saving.serialize_keras_object(layer)
        copy = keras.saving.deserialize_keras_object(config)
        assert copy.get_config() == layer.get_config()


@pytest.mark.backend_free
def test_a_dilated_depthwise_has_no_stride():
    with pytest.raises(ValueError, match="cannot both exceed 1, got 2 and 3"):
        DepthwiseConv(3, dilation_rate=3, strides=2)
