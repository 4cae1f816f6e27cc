"""The gradient of a scalar with respect to a network's input, on each backend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
Targets = Mapping[str, Tensor]


def input_gradient(
    function: Callable[[Tensor, Targets], Tensor], variables: Sequence[keras.Variable] = ()
) -> Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]:
    """Makes a function that returns the gradient of another with respect to its first argument.

    Changes that the function makes to variables, such as seeds and metrics, are discarded, so the
    same arguments have the same gradient. JAX and TensorFlow compile once for each shape.

    Args:
        function: from `x` and `targets`, as tensors, to a scalar, written with Keras' operations.
        variables: all that `function` reads and that are built, such as `model.variables`; on JAX
            any other would become a constant of the compiled code.

    Returns:
        A function of `x`, float32 of any shape, and `targets`, a dictionary of arrays; it returns
        the gradient, shaped like `x`, as a float32 array.
    """
    make = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[keras.config.backend()]
    gradient = make(function, list(variables))

    def run(x: np.ndarray, targets: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {name: ops.convert_to_tensor(value) for name, value in targets.items()}
        result = gradient(ops.convert_to_tensor(x, dtype="float32"), tensors)
        return np.asarray(ops.convert_to_numpy(result), np.float32)

    return run


def _jax(function: Callable, variables: list[keras.Variable]) -> Callable:
    import jax

    @jax.jit
    def of(values: list[Tensor], x: Tensor, targets: Targets) -> Tensor:
        def scalar(x: Tensor) -> Tensor:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(x, targets)

        return jax.grad(scalar)(x)

    return lambda x, targets: of([variable.value for variable in variables], x, targets)


def _tensorflow(function: Callable, variables: list[keras.Variable]) -> Callable:
    import tensorflow as tf

    @tf.function
    def of(x: Tensor, targets: Targets) -> Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            with keras.StatelessScope():
                scalar = function(x, targets)
        return tape.gradient(scalar, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return of


def _torch(function: Callable, variables: list[keras.Variable]) -> Callable:
    import torch

    def of(x: Tensor, targets: Targets) -> Tensor:
        x = x.detach().requires_grad_()
        with keras.StatelessScope():
            scalar = function(x, targets)
        return torch.autograd.grad(scalar, x)[0]

    return of
