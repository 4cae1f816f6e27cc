"""Bilinear up-sampling is that of the definition, whatever the backend and the size."""

import keras
import numpy as np
import pytest

from keras_densepred.layers.upsampling import UpsampleToImage
from keras_densepred.ops.resize import resize_bilinear, upsample_bilinear
from tests.hosts import repaired


def by_hand(x, factor, size):
    """Half-pixel centres, positions beyond the border taken at it."""
    x = np.asarray(x, np.float64)
    for axis in (1, 2):
        length = x.shape[axis]
        at = (np.arange(length * factor) + 0.5) / factor - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        first = x.take(np.clip(low, 0, length - 1), axis)
        x = first * (1 - share) + x.take(np.clip(low + 1, 0, length - 1), axis) * share
    return x[:, : size[0], : size[1]]


@pytest.mark.parametrize("factor, size", [(8, (24, 32)), (8, (19, 31)), (3, (7, 12)), (1, (3, 4))])
def test_equal_to_the_definition(factor, size):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    found = keras.ops.convert_to_numpy(upsample_bilinear(x, factor, size))
    np.testing.assert_allclose(found, by_hand(x, factor, size), atol=1e-5)


def test_a_model_of_unknown_size():
    images = keras.Input((None, None, 3))
    maps = keras.layers.MaxPooling2D(4, padding="same", data_format="channels_last")(images)
    model = keras.Model(images, UpsampleToImage(4)(maps, images))
    assert model.output_shape == (None, None, None, 3)
    for size in ((8, 12), (9, 13)):
        x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")
        assert model.predict(x, verbose=0).shape == x.shape


if keras.config.backend() == "tensorflow":

    def test_a_graph_that_does_not_know_its_size():
        import tensorflow as tf

        layer = UpsampleToImage(4)
        spec = tf.TensorSpec((1, None, None, 2))
        call = tf.function(layer, input_signature=[spec, tf.TensorSpec((1, None, None, 3))])
        x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype("float32")
        found = call(x, np.zeros((1, 11, 14, 3), "float32"))
        np.testing.assert_allclose(found.numpy(), by_hand(x, 4, (11, 14)), atol=1e-5)

    def resized_to_a_tensor(resize):
        import tensorflow as tf

        signature = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((2,), "int32")]
        function = tf.function(lambda x, size: resize(x, (size[0], size[1])), signature)
        return function(np.zeros((1, 4, 4, 3), "float32"), np.array([2, 6], "int32"))

    def test_sizes_may_be_tensors():
        assert resized_to_a_tensor(resize_bilinear).shape == (1, 2, 6, 3)

    @repaired(keras, "3.16")
    def test_keras_still_refuses_to_resize_to_a_size_that_is_a_tensor():
        """`resize_bilinear` then asks TensorFlow itself (keras 3.15.1)."""
        import tensorflow as tf

        with pytest.raises((TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError)):
            resized_to_a_tensor(
                lambda x, size: keras.ops.image.resize(x, size, data_format="channels_last")
            )
