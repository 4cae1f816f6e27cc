"""Convolution on JAX, and on CPU with gradients of its own.

Imported on the JAX backend only; `conv.py` says when the second is taken and why.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def conv(inputs, kernel, strides, padding, groups):
    """Convolution of a channels-last map, as XLA has it.

    Args:
        inputs: `(batch, height, width, channels)`.
        kernel: `(kernel_height, kernel_width, channels / groups, filters)`.
        strides: step of the window in pixels along both axes.
        padding: zeros on each side.
        groups: number of groups of channels.

    Returns:
        `(batch, out_height, out_width, filters)` in the dtype of `inputs`.
    """
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_on_cpu(inputs, kernel, strides, padding, groups):
    """`conv` whose gradient by the kernel consists of matrix products."""
    return conv(inputs, kernel, strides, padding, groups)


def _forward(inputs, kernel, strides, padding, groups):
    return conv(inputs, kernel, strides, padding, groups), (inputs, kernel)


def _backward(strides, padding, groups, residuals, gradient):
    inputs, kernel = residuals
    padded = jnp.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if groups > 1:
        _, by_inputs = jax.vjp(lambda x: conv(x, kernel, strides, padding, groups), inputs)
        (inputs_gradient,) = by_inputs(gradient)
    else:
        inputs_gradient = _by_inputs(gradient, kernel, inputs.shape, strides, padding)
    if groups == strides == 1:
        kernel_gradient = _of_one_product(padded, gradient, kernel.shape)
    else:
        kernel_gradient = _of_taps(padded, gradient, kernel.shape, strides, groups)
    return inputs_gradient, kernel_gradient.astype(kernel.dtype)


conv_on_cpu.defvjp(_forward, _backward)


def _by_inputs(gradient, kernel, input_shape, strides, padding):
    """The gradient by the inputs: that of the outputs, spread, under the flipped kernel.

    JAX has the same and leaves it to XLA to exchange the kernel's channels and filters. In a branch
    or a loop XLA (JAX 0.10.2) does so badly: 446 ms instead of 78, 64 maps of 14x14, 256 channels.
    """
    edges = []
    for axis in (1, 2):
        spread = (gradient.shape[axis] - 1) * strides + 1
        low = kernel.shape[axis - 1] - 1 - padding
        edges.append((low, input_shape[axis] + padding - spread))
    if strides > 1:
        zero = jnp.zeros((), gradient.dtype)
        between = ((0, 0, strides - 1),) * 2
        gradient = lax.pad(gradient, zero, ((0, 0, 0), *between, (0, 0, 0)))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        gradient, flipped, (1, 1), edges, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _of_one_product(padded, gradient, kernel_shape):
    """One product, for a stride of one: all taps of the kernel at once.

    What the columns of the kernel see lies side by side along the channels, and so do copies of the
    gradient shifted by the rows of the kernel.
    """
    kernel_height, kernel_width, channels, filters = kernel_shape
    rows, columns = gradient.shape[1:3]
    below = padded.shape[1] - rows
    seen = [padded[:, :, _reach(j, columns, 1)] for j in range(kernel_width)]
    seen = jnp.concatenate(seen, axis=-1).reshape(-1, kernel_width * channels)
    wanted = [
        jnp.pad(gradient, ((0, 0), (i, below - i), (0, 0), (0, 0))) for i in range(kernel_height)
    ]
    wanted = jnp.concatenate(wanted, axis=-1).reshape(-1, kernel_height * filters)
    product = jnp.matmul(seen.T, wanted, preferred_element_type="float32")
    product = product.reshape(kernel_width, channels, kernel_height, filters)
    return product.transpose(2, 0, 1, 3)


def _of_taps(padded, gradient, kernel_shape, strides, groups):
    """One product for each tap and group of what the tap saw and what it is to change."""
    kernel_height, kernel_width, width, filters = kernel_shape
    rows, columns = gradient.shape[1:3]
    gradient = gradient.reshape(-1, groups, filters // groups)
    taps = []
    for i in range(kernel_height):
        for j in range(kernel_width):
            view = padded[:, _reach(i, rows, strides), _reach(j, columns, strides)]
            view = view.reshape(-1, groups, width)
            tap = jnp.einsum("mgc,mgf->cgf", view, gradient, preferred_element_type="float32")
            taps.append(tap.reshape(width, filters))
    return jnp.stack(taps).reshape(kernel_shape)


def _reach(tap, count, strides):
    """What a tap of the kernel sees along one axis while the window takes `count` steps."""
    return slice(tap, tap + (count - 1) * strides + 1, strides)
