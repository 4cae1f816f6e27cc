"""Grouped convolution on JAX with a kernel gradient of its own.

Imported on the JAX backend only; `conv.py` says when this path is taken and why.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def _convolve(inputs, kernel, strides, padding):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1] // kernel.shape[2],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def grouped_conv(inputs, kernel, strides, padding):
    """Grouped convolution of a channels-last map.

    Args:
        inputs: `(batch, height, width, channels)`.
        kernel: `(kernel_height, kernel_width, channels / groups, filters)`.
        strides: step of the window in pixels along both axes.
        padding: zeros on each side.

    Returns:
        `(batch, out_height, out_width, filters)` in the dtype of `inputs`.
    """
    return _convolve(inputs, kernel, strides, padding)


def _forward(inputs, kernel, strides, padding):
    return _convolve(inputs, kernel, strides, padding), (inputs, kernel)


def _backward(strides, padding, residuals, gradient):
    inputs, kernel = residuals
    # XLA's gradient by the inputs is another grouped convolution, and as fast as the first.
    _, by_inputs = jax.vjp(lambda x: _convolve(x, kernel, strides, padding), inputs)
    (inputs_gradient,) = by_inputs(gradient)

    kernel_height, kernel_width, width, filters = kernel.shape
    groups = inputs.shape[-1] // width
    rows, columns = gradient.shape[1:3]
    padded = jnp.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    gradient = gradient.reshape(-1, groups, filters // groups)
    taps = []
    for i in range(kernel_height):
        for j in range(kernel_width):
            bottom, right = i + (rows - 1) * strides + 1, j + (columns - 1) * strides + 1
            window = padded[:, i:bottom:strides, j:right:strides].reshape(-1, groups, width)
            # One product a group of what the tap saw and what it is to change.
            tap = jnp.einsum("mgc,mgf->cgf", window, gradient, preferred_element_type="float32")
            taps.append(tap.reshape(width, filters))
    kernel_gradient = jnp.stack(taps).reshape(kernel.shape)
    return inputs_gradient, kernel_gradient.astype(kernel.dtype)


grouped_conv.defvjp(_forward, _backward)
