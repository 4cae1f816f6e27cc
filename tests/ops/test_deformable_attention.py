"""Multi-scale deformable attention against the reference outputs, values and gradients."""

import keras
import numpy as np
from keras import ops

from keras_densepred.ops.deformable_attention import deformable_attention

GRADIENTS = ("d_value", "d_locations", "d_weights")


def value_and_gradients(function, inputs, upstream):
    """`function(*inputs)` and the gradient of its product with `upstream` for each input."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        outputs, pull = jax.vjp(function, *map(ops.convert_to_tensor, inputs))
        gradients = pull(ops.convert_to_tensor(upstream))
    elif backend == "torch":
        tensors = [ops.convert_to_tensor(x).clone().requires_grad_() for x in inputs]
        outputs = function(*tensors)
        outputs.backward(ops.convert_to_tensor(upstream))
        gradients = [tensor.grad for tensor in tensors]
    else:
        import tensorflow as tf

        tensors = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        gradients = tape.gradient(outputs, tensors, upstream)
    return ops.convert_to_numpy(outputs), [ops.convert_to_numpy(g) for g in gradients]


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
