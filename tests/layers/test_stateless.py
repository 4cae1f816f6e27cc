"""Layers that PyTorch runs directly compute what they compute by way of Keras."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import layers
from keras_densepred.runtime.eager import can_run_directly

IS_TORCH = keras.config.backend() == "torch"


def built(dtype=None):
    layer = layers.Pointwise(4, dtype=dtype)
    layer.build((None, 3))
    return layer


def test_only_pytorch_runs_plain_tensors_directly():
    x = ops.ones((2, 3))
    assert can_run_directly(built(), (x,), {"training": True}) == IS_TORCH
    assert not can_run_directly(layers.Pointwise(4), (x,), {})  # not built
    assert not can_run_directly(built(), (np.ones((2, 3), "float32"),), {})
    assert not can_run_directly(built(), (keras.Input((3,)),), {})
    assert not can_run_directly(built(), (ops.cast(x, "float16"),), {})
    assert not can_run_directly(built(), (x,), {"mask": None})


def test_variables_are_cast_by_keras_where_policies_differ():
    x = ops.ones((2, 3), dtype="bfloat16")
    assert not can_run_directly(built("mixed_bfloat16"), (x,), {})
    assert keras.backend.standardize_dtype(built("mixed_bfloat16")(x).dtype) == "bfloat16"

    class Outer(keras.layers.Layer):
        """Opens the scope in which variables are cast, as a mixed model does."""

        def build(self, input_shape):
            self.direct = []

        def call(self, x):
            for dtype in ("mixed_bfloat16", "float32"):
                layer = built(dtype)
                inputs = ops.cast(x, layer.compute_dtype)
                self.direct.append(can_run_directly(layer, (inputs,), {}))
                assert layer(inputs).dtype == inputs.dtype
            return x

    outer = Outer(dtype="mixed_bfloat16")
    outer.build((2, 3))
    outer(x)
    assert outer.direct == [IS_TORCH, False]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv(4, 3, 2),
        lambda: layers.DepthwiseConv(3),
        lambda: layers.GELU(),
        lambda: layers.LayerNorm(),
        lambda: layers.LayerScale(0.5),
        lambda: layers.Pointwise(4),
    ],
)
def test_a_call_is_the_same_either_way_and_survives_saving(layer, tmp_path):
    layer = layer()
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 5)).astype("float32")
    model = keras.Sequential([keras.Input((6, 6, 5)), layer])
    by_keras = ops.convert_to_numpy(layer(images))  # an array, so not directly
    direct = ops.convert_to_numpy(layer(ops.convert_to_tensor(images)))
    np.testing.assert_array_equal(by_keras, direct)
    assert by_keras.shape == layer.compute_output_shape(images.shape)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again = ops.convert_to_numpy(again(images))
    np.testing.assert_allclose(model.predict(images, verbose=0), again, atol=1e-6)
