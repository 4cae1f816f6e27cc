"""Weights and gradients for tests, the same on every backend and machine."""

import functools
import zlib

import keras
import numpy as np


def compiled(function, *static):
    """The function, compiled on JAX, which otherwise compiles each of its operations.

    Arguments named in `static`, passed by name, are no arrays.
    """
    if keras.config.backend() != "jax":
        return function
    import jax

    return jax.jit(function, static_argnames=static)


def normal(key: str, shape) -> np.ndarray:
    """Standard normal float32 values that depend on `key` and `shape` alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def value_and_gradients(function, inputs, upstream):
    """`function(*inputs)`, compiled on JAX, and for each input the gradient of its product with
    `upstream`; all NumPy arrays."""
    backend = keras.config.backend()
    if backend == "jax":
        outputs, gradients = _compiled_gradients(function)(upstream, *inputs)
    elif backend == "torch":
        tensors = [keras.ops.convert_to_tensor(x).clone().requires_grad_() for x in inputs]
        outputs = function(*tensors)
        outputs.backward(keras.ops.convert_to_tensor(upstream))
        gradients = [tensor.grad for tensor in tensors]
    else:
        import tensorflow as tf

        tensors = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        gradients = tape.gradient(outputs, tensors, tf.constant(upstream))
    arrays = [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
    return keras.ops.convert_to_numpy(outputs), arrays


@functools.cache
def _compiled_gradients(function):
    import jax

    def call(upstream, *inputs):
        outputs, pull = jax.vjp(function, *inputs)
        return outputs, pull(upstream)

    return jax.jit(call)


def gradients_of(loss, variables):
    """For each Keras variable the gradient of a function of nothing that reads them."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return loss()

        return jax.jit(jax.grad(stateless))([variable.value for variable in variables])
    if backend == "torch":
        loss().backward()
        return [variable.value.grad for variable in variables]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, [variable.value for variable in variables])


def set_deterministic_weights(model: keras.Model) -> None:
    """Sets every weight from its name: kernels by fan-in, scales around 1, the rest small."""
    for weight in model.weights:
        if "seed_generator" in weight.path:
            continue
        value = normal(weight.path, weight.shape)
        if weight.name.endswith("kernel"):
            fan_in = weight.shape[:2] if is_depthwise(weight) else weight.shape[:-1]
            value = value / np.sqrt(np.prod(fan_in))
        elif weight.name in ("gamma", "moving_variance", "scales"):
            value = 1 + 0.1 * value
        else:
            value = 0.1 * value
        weight.assign(value)


def is_depthwise(weight) -> bool:
    return len(weight.shape) == 4 and weight.shape[-1] == 1


def gradients(model: keras.Model, images: np.ndarray) -> list[np.ndarray | None]:
    """Gradient of the sum of squares of all outputs for each trainable variable."""

    def loss_of(outputs):
        outputs = keras.tree.flatten(outputs)
        return sum(keras.ops.mean(keras.ops.square(x)) for x in outputs)

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of(model(images, training=True))
        grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
    elif backend == "torch":
        for variable in model.trainable_variables:  # `zero_grad` knows them after a `fit` only
            variable.value.grad = None
        loss_of(model(images, training=True)).backward()
        grads = [v.value.grad for v in model.trainable_variables]
    else:
        import jax

        def loss(trainable):
            non_trainable = [v.value for v in model.non_trainable_variables]
            outputs, _ = model.stateless_call(trainable, non_trainable, images, training=True)
            return loss_of(outputs)

        grads = jax.jit(jax.grad(loss))([v.value for v in model.trainable_variables])
    return [None if g is None else keras.ops.convert_to_numpy(g) for g in grads]
