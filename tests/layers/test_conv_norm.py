"""ConvBatchNorm is Keras' BatchNormalization, in training and outside."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import ConvNorm
from keras_densepred.layers.norm import batch_norm

MAP = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("training", [False, True, None])
def test_equals_keras(training, synchronized, dtype):
    ours = batch_norm("ours", 0.9, 1e-3, synchronized, dtype=dtype)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype=dtype)
    values = np.random.default_rng(1).uniform(0.5, 2, size=(4, 5))
    results = []
    for layer in (ours, theirs):
        layer.build(MAP.shape)
        layer.set_weights(values)
        outputs = layer(ops.cast(MAP, layer.compute_dtype), training=training)
        assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
        results.append([ops.convert_to_numpy(ops.cast(outputs, "float32")), *layer.get_weights()])
    for result, reference in zip(*results, strict=True):
        np.testing.assert_allclose(result, reference, atol=1e-5)


def test_frozen_it_keeps_its_statistics():
    layer = batch_norm("frozen", 0.9, 1e-3)
    layer.trainable = False
    outputs = layer(MAP, training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), MAP / np.sqrt(1.001), atol=1e-6)
    assert np.all(ops.convert_to_numpy(layer.moving_mean) == 0)


def test_training_reaches_a_norm_inside_a_model():
    inputs = keras.Input((3, 4, 5))
    model = keras.Model(inputs, ConvNorm().norm(inputs, "norm"))
    for training in (True, False):
        outputs = ops.convert_to_numpy(model(MAP, training=training))
        spread = 1.0 if training else MAP.std()
        assert outputs.std() == pytest.approx(spread, rel=2e-2)
        model.get_layer("norm").moving_mean.assign(np.zeros(5))
        model.get_layer("norm").moving_variance.assign(np.ones(5))


def test_leaky_relu_has_darknets_slope():
    outputs = ConvNorm("leaky_relu").act(keras.ops.convert_to_tensor([[-2.0, 3.0]]), "act")
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), [[-0.2, 3.0]], rtol=1e-6)
