"""Depthwise convolution on JAX as a sum of shifted products, with its gradients.

Imported on the JAX backend only; `depthwise.py` says when this path is taken and why.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from keras_densepred.runtime.devices import writes_onnx


def _sum_of_shifts(padded, kernel, bias, strides, dilation):
    """Sums kernel[i, j] times `padded` shifted by (i, j), and `bias`, in float32; NHWC.

    Each row of the kernel has a sum of its own: in one sum every addition waits for the one before
    it. With it (1, 160, 160, 96) took 16.3 ms, and takes 11.8 ms; (4, 56, 56, 96) 11.5 and 5.2 ms
    (7x7, two CPU cores).
    """
    batch, height, width, channels = padded.shape
    kernel_height, kernel_width = kernel.shape[:2]
    rows = (height - (kernel_height - 1) * dilation - 1) // strides + 1
    columns = (width - (kernel_width - 1) * dilation - 1) // strides + 1

    def window(i, j):
        top, left = i * dilation, j * dilation
        bottom, right = top + (rows - 1) * strides + 1, left + (columns - 1) * strides + 1
        starts, stops = (0, top, left, 0), (batch, bottom, right, channels)
        return lax.slice(padded, starts, stops, (1, strides, strides, 1)).astype("float32")

    def add_all(*_):
        total = 0.0 if bias is None else bias.astype("float32")
        for i in range(kernel_height):
            row_total = 0.0
            for j in range(kernel_width):
                row_total += window(i, j) * kernel[i, j].astype("float32")
            total += row_total
        return total

    if writes_onnx():
        return add_all()
    # XLA on CPU would compute the sum again in each of the loops that read it, if it did not stand
    # in a loop itself. The number of turns depends on the weights, so that XLA keeps the loop: one,
    # or with a NaN in the weights two, which give the same.
    turns = 1 + (kernel[0, 0, 0] != kernel[0, 0, 0]).astype("int32")
    # What the first turn starts from has the type of the sum, on each device of a `shard_map` too.
    first = window(0, 0) * kernel[0, 0].astype("float32")
    return lax.fori_loop(0, turns, add_all, first if bias is None else first + bias)


def _zero_pad(inputs, pads):
    return jnp.pad(inputs, ((0, 0), *pads, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _shifted_products(inputs, kernel, bias, strides, dilation, pads):
    total = _sum_of_shifts(_zero_pad(inputs, pads), kernel, bias, strides, dilation)
    return total.astype(inputs.dtype)


def _forward(inputs, kernel, bias, strides, dilation, pads):
    outputs = _shifted_products(inputs, kernel, bias, strides, dilation, pads)
    return outputs, (inputs, kernel, bias)


def _backward(strides, dilation, pads, residuals, gradient):
    inputs, kernel, bias = residuals
    kernel_height, kernel_width = kernel.shape[:2]

    # Input gradient: the output gradient, spread by the stride, under the flipped kernel. The
    # (possibly negative) padding makes the result exactly as large as the input.
    spread = []
    for axis, taps, (low, _) in zip((1, 2), kernel.shape[:2], pads, strict=True):
        reach = (taps - 1) * dilation
        length = (gradient.shape[axis] - 1) * strides + 1
        spread.append((reach - low, inputs.shape[axis] + low - length, strides - 1))
    zero = jnp.zeros((), gradient.dtype)
    spread = lax.pad(gradient, zero, ((0, 0, 0), *spread, (0, 0, 0)))
    none = ((0, 0), (0, 0))
    # By the function with a gradient of its own: this one may be differentiated again.
    inputs_gradient = _shifted_products(spread, kernel[::-1, ::-1], None, 1, dilation, none)

    # Kernel gradient: one pass over the output pixels, each updating all taps. The batch axis
    # stays whole, so that a sharded batch is reduced once, at the end; one accumulator a row
    # keeps the float32 rounding error small.
    padded = _zero_pad(inputs, pads)
    batch, rows, columns, channels = gradient.shape
    patch_shape = (
        batch,
        (kernel_height - 1) * dilation + 1,
        (kernel_width - 1) * dilation + 1,
        channels,
    )
    zeros = jnp.zeros((batch, kernel_height, kernel_width, channels), "float32")

    def add_row(row, total):
        def add_pixel(column, row_total):
            at_pixel = lax.dynamic_slice(
                gradient, (0, row, column, 0), (batch, 1, 1, channels)
            ).astype("float32")
            patch = lax.dynamic_slice(padded, (0, row * strides, column * strides, 0), patch_shape)
            taps = patch[:, ::dilation, ::dilation].astype("float32")
            return row_total + taps * at_pixel

        return total + lax.fori_loop(0, columns, add_pixel, zeros, unroll=2)

    kernel_gradient = jnp.sum(lax.fori_loop(0, rows, add_row, zeros), axis=0)
    bias_gradient = None
    if bias is not None:
        bias_gradient = jnp.sum(gradient, axis=(0, 1, 2), dtype="float32").astype(bias.dtype)
    return (
        inputs_gradient.astype(inputs.dtype),
        kernel_gradient.astype(kernel.dtype),
        bias_gradient,
    )


_shifted_products.defvjp(_forward, _backward)


# Compiled as a whole also where the caller runs eagerly: op by op it would be 49 compilations.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def shifted_products(inputs, kernel, bias, strides, dilation, pads):
    """Depthwise convolution of a channels-last map.

    Args:
        inputs: `(batch, height, width, channels)`, any float dtype; sums are float32.
        kernel: `(kernel_height, kernel_width, channels)`.
        bias: `(channels,)`, or None.
        strides: step of the window in pixels along both axes.
        dilation: distance between taps in pixels along both axes.
        pads: zeros to add, ((top, bottom), (left, right)).

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `inputs`.
    """
    return _shifted_products(inputs, kernel, bias, strides, dilation, pads)
