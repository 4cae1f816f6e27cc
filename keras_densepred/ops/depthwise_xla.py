"""Depthwise convolution for TensorFlow functions compiled by XLA.

The same form as `depthwise_jax.py`, for the same reason: XLA's grouped convolution is slow on CPU.
Imported on the TensorFlow backend only; `depthwise.py` says when this path is taken and why.
"""

import tensorflow as tf


def is_compiled_by_xla() -> bool:
    """Whether the TensorFlow graph that is being traced will be compiled by XLA."""
    if tf.executing_eagerly():
        return False
    # There is no public way to ask (TensorFlow 2.21); Keras compiles `fit` and `predict` so by
    # default, and a layer is not told.
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _sum_of_shifts(padded, kernel, strides, dilation):
    """Sums kernel[i, j] times `padded` shifted by (i, j), in float32; NHWC.

    Row by row, as on JAX: additions then do not all wait for each other.
    """
    kernel_height, kernel_width = kernel.shape[:2]
    rows, columns = (
        (size - (taps - 1) * dilation - 1) // strides + 1
        for size, taps in zip(padded.shape[1:3], kernel.shape[:2], strict=True)
    )
    kernel = tf.cast(kernel, "float32")
    total = 0.0
    for i in range(kernel_height):
        row_total = 0.0
        for j in range(kernel_width):
            top, left = i * dilation, j * dilation
            bottom, right = top + (rows - 1) * strides + 1, left + (columns - 1) * strides + 1
            window = padded[:, top:bottom:strides, left:right:strides]
            row_total += tf.cast(window, "float32") * kernel[i, j]
        total += row_total
    return total


def _input_gradient(gradient, kernel, size, strides, dilation, pads):
    """The output gradient, spread by the stride, under the flipped kernel."""
    spread = []
    for axis, (low, _) in zip((1, 2), pads, strict=True):
        reach = (kernel.shape[axis - 1] - 1) * dilation
        length = (gradient.shape[axis] - 1) * strides + 1
        spread.append((reach - low, size[axis - 1] + low - length))
    if strides > 1:
        # Zeros between the values, and cut off behind the last one.
        height, width, channels = gradient.shape[1:]
        gradient = tf.reshape(gradient, (-1, height, 1, width, 1, channels))
        between = strides - 1
        gradient = tf.pad(gradient, ((0, 0), (0, 0), (0, between), (0, 0), (0, between), (0, 0)))
        gradient = tf.reshape(gradient, (-1, height * strides, width * strides, channels))
        gradient = gradient[:, : (height - 1) * strides + 1, : (width - 1) * strides + 1]
    (top, bottom), (left, right) = spread
    # Where the output does not reach the input's edge or its padding, `spread` is negative.
    gradient = gradient[
        :,
        max(-top, 0) : gradient.shape[1] - max(-bottom, 0),
        max(-left, 0) : gradient.shape[2] - max(-right, 0),
    ]
    around = ((0, 0), *((max(low, 0), max(high, 0)) for low, high in spread), (0, 0))
    return _sum_of_shifts(tf.pad(gradient, around), kernel[::-1, ::-1], 1, dilation)


def _kernel_gradient(padded, gradient, kernel_size, strides, dilation):
    """One pass over the output rows and pixels, each pixel updating all taps."""
    kernel_height, kernel_width = kernel_size
    rows, columns, channels = gradient.shape[1:]
    batch = tf.shape(gradient)[0]
    patch = ((kernel_height - 1) * dilation + 1, (kernel_width - 1) * dilation + 1)
    zeros = tf.zeros((batch, kernel_height, kernel_width, channels))

    def add_row(row, total):
        def add_pixel(column, row_total):
            at_pixel = tf.slice(gradient, (0, row, column, 0), (batch, 1, 1, channels))
            taps = tf.slice(
                padded, (0, row * strides, column * strides, 0), (batch, *patch, channels)
            )[:, ::dilation, ::dilation]
            product = tf.cast(taps, "float32") * tf.cast(at_pixel, "float32")
            return column + 1, row_total + product

        _, row_total = tf.while_loop(
            lambda column, _: column < columns, add_pixel, (tf.constant(0), zeros)
        )
        return row + 1, total + row_total

    _, total = tf.while_loop(lambda row, _: row < rows, add_row, (tf.constant(0), zeros))
    return tf.reduce_sum(total, axis=0)


def shifted_products(inputs, kernel, bias, strides, dilation, pads):
    """Depthwise convolution of a channels-last map.

    Args:
        inputs: `(batch, height, width, channels)`, any float dtype, of a size that is known when
            tracing; sums are float32.
        kernel: `(kernel_height, kernel_width, channels)`.
        bias: `(channels,)`, or None.
        strides: step of the window in pixels along both axes.
        dilation: distance between taps in pixels along both axes.
        pads: zeros to add, ((top, bottom), (left, right)).

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `inputs`.
    """

    @tf.custom_gradient
    def convolve(inputs, kernel):
        padded = tf.pad(inputs, ((0, 0), *pads, (0, 0)))
        outputs = tf.cast(_sum_of_shifts(padded, kernel, strides, dilation), inputs.dtype)

        def gradients(gradient):
            gradient.set_shape((None, *outputs.shape[1:]))
            size = inputs.shape[1:3]
            inputs_gradient = _input_gradient(gradient, kernel, size, strides, dilation, pads)
            kernel_gradient = _kernel_gradient(
                padded, gradient, kernel.shape[:2], strides, dilation
            )
            return tf.cast(inputs_gradient, inputs.dtype), tf.cast(kernel_gradient, kernel.dtype)

        return outputs, gradients

    outputs = convolve(inputs, kernel)
    return outputs if bias is None else outputs + bias
