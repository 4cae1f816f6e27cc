"""A block costs the operations it needs: no copy of a layout, no transpose, no extra product."""

import collections
import math

import keras
import numpy as np
import pytest

from keras_densepred.layers import NeXtMixer
from keras_densepred.runtime.devices import jax_runs_on_cpu

SHAPE = (2, 8, 8, 32)
MIXER = NeXtMixer(layer_scale_init=0.5)
BLOCKS = {
    "base": (lambda x: MIXER.base_block(x, name="b", rate=0.0, index=0, level=3), 1),
    "long range": (lambda x: MIXER.lr_block(x, name="b", rate=0.0, index=0, level=5), 2),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    build, depthwise = BLOCKS[request.param]
    inputs = keras.Input(SHAPE[1:])
    return keras.Model(inputs, build(inputs)), depthwise


def of_jax(model):
    import jax

    def count(jaxpr, names):
        for equation in jaxpr.eqns:
            names[equation.primitive.name] += 1
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", None)
                if inner is not None:
                    count(inner if hasattr(inner, "eqns") else inner.jaxpr, names)
        return names

    state = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )
    jaxpr = jax.make_jaxpr(lambda x: model.stateless_call(*state, x)[0])(np.zeros(SHAPE, "float32"))
    return count(jaxpr.jaxpr, collections.Counter())


@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX's trace")
def test_jax(block):
    model, depthwise = block
    names = of_jax(model)
    assert names["dot_general"] == 2
    assert names["transpose"] == names["copy"] == 0
    # On CPU as shifted products, where XLA's grouped convolution is slow; each pads its map once.
    shifted = depthwise if jax_runs_on_cpu() else 0
    assert names["conv_general_dilated"] == depthwise - shifted
    assert names["pad"] == shifted


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="reads TensorFlow's graph")
def test_tensorflow(block):
    import tensorflow as tf

    model, depthwise = block
    function = tf.function(model).get_concrete_function(tf.TensorSpec(SHAPE))
    names = collections.Counter(node.type for node in function.graph.get_operations())
    assert names["MatMul"] == 2
    assert names["DepthwiseConv2dNative"] == depthwise
    assert names["Transpose"] == names["BatchMatMulV2"] == names["Pad"] == 0


@pytest.mark.skipif(keras.config.backend() != "torch", reason="reads PyTorch's profile")
def test_torch(block):
    import torch

    from keras_densepred.ops.depthwise_torch import is_dealt

    model, depthwise = block
    dealt = [
        is_dealt(layer.dilation_rate) for layer in model.layers if hasattr(layer, "dilation_rate")
    ]
    images = torch.zeros(SHAPE)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.no_grad(),
        torch.profiler.profile(activities=activities, record_shapes=True) as profile,
    ):
        model(images)
    names = collections.Counter(event.name for event in profile.events())
    assert names["aten::linear"] == 2
    assert names["aten::conv2d"] == depthwise
    copied = [
        math.prod(event.input_shapes[0])
        for event in profile.events()
        if event.name == "aten::clone"
    ]
    # A map is copied where its rows and columns are dealt out, back and cut; else kernels only.
    assert sum(size >= images.numel() for size in copied) == 3 * sum(dealt)
