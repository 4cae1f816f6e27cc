"""Exact GELU, in the form that each backend computes fastest."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_densepred")
def gelu(x):
    """Gaussian error linear unit, x times the normal distribution function of x (not its tanh).

    Equal to `keras.ops.gelu(x, approximate=False)` to float32 rounding. There JAX calls erfc, whose
    two ranges XLA computes both for every element: at (32768, 128) in float32 on 2 CPU cores it
    and its gradient take 45 ms of CPU time, this form 14 ms.

    Args:
        x: float tensor of any shape.

    Returns:
        A tensor with the shape and dtype of `x`.
    """
    # In 16 bits 1 + erf would round away the tail that erfc keeps.
    if keras.config.backend() != "jax" or keras.backend.standardize_dtype(x.dtype) != "float32":
        return ops.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))
