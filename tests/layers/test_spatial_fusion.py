"""The Spatial Fusion Module against the paper's steps in NumPy, and its mobile counterpart."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import ConvNorm, FastFusion, PlainResampling, SpatialFusion
from tests.weights import set_deterministic_weights

MAP = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype("float32")


def module(resample, steps, like=None):
    x = keras.Input((None, None, 6))
    inputs = [x] if like is None else [x, keras.Input((None, None, 1))]
    y = resample(x, squeeze=4, channels=5, steps=steps, name="edge", like=inputs[-1])
    model = keras.Model(inputs, y)
    set_deterministic_weights(model)
    return model


def dense_norm(model, x, name):
    """1x1 convolution and batch norm of inference."""
    norm = model.get_layer(f"edge_{name}_norm")
    gamma, beta, mean, variance = (ops.convert_to_numpy(w) for w in norm.weights)
    kernel = ops.convert_to_numpy(model.get_layer(f"edge_{name}_conv").kernel)
    return (x @ kernel - mean) / np.sqrt(variance + 1e-3) * gamma + beta


@pytest.mark.parametrize("context", ["mean", "conv"])
def test_up_is_squeeze_context_nearest_context_project(context):
    model = module(SpatialFusion(ConvNorm("relu"), context), steps=-1, like=True)

    def add_context(x, name):
        mean = x.mean((1, 2), keepdims=True)
        if context == "conv":
            layer = model.get_layer(f"edge_{name}_conv")
            mean = mean @ ops.convert_to_numpy(layer.kernel) + ops.convert_to_numpy(layer.bias)
        return x + mean

    x = add_context(np.maximum(dense_norm(model, MAP, "squeeze"), 0), "context1")
    x = x[:, np.arange(5) // 2][:, :, np.arange(8) // 2]
    expected = dense_norm(model, add_context(x, "context2"), "project")
    result = model([MAP, np.zeros((2, 5, 8, 1), "float32")])
    np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=1e-5)


@pytest.mark.parametrize("resample", [SpatialFusion, PlainResampling])
@pytest.mark.parametrize("steps,size", [(0, (3, 4)), (1, (2, 2)), (2, (1, 1))])
def test_going_down_halves_rounded_up(resample, steps, size):
    assert module(resample(ConvNorm()), steps)(MAP).shape == (2, *size, 5)


@pytest.mark.backend_free
def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="`context` must be one of"):
        SpatialFusion(ConvNorm(), "attention")
    with pytest.raises(ValueError, match="`activation` must be one of"):
        ConvNorm("gelu")


def test_fast_fusion_is_a_mean_weighted_by_what_is_positive():
    layer = FastFusion()
    layer.build(MAP.shape, MAP.shape)
    for weights, expected in (((1, 1), (MAP + 1) / 2), ((3, 1), (3 * MAP + 1) / 4), ((-1, 2), 1)):
        layer.scales.assign(weights)
        result = ops.convert_to_numpy(layer(MAP, np.ones_like(MAP)))
        np.testing.assert_allclose(result, np.broadcast_to(expected, MAP.shape), atol=2e-4)
