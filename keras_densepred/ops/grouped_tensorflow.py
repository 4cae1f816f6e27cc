"""Grouped convolution on TensorFlow as one matrix product a group, with its gradients.

Imported on the TensorFlow backend only; `conv.py` says when this path is taken and why.
"""

import tensorflow as tf


def grouped_conv(inputs, kernel, strides, padding, groups):
    """Grouped convolution of a channels-last map.

    Args:
        inputs: `(batch, height, width, channels)`; sizes need not be known when tracing.
        kernel: `(kernel_height, kernel_width, channels / groups, filters)`, of sides above
            `padding`.
        strides: step of the window in pixels along both axes.
        padding: zeros on each side.
        groups: number of groups of channels.

    Returns:
        `(batch, out_height, out_width, filters)` in the dtype of `inputs`.
    """

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradients(gradient):
            # The patches are gathered again: kept, they would be nine times the map.
            patches, _ = _patches(_pad(inputs, padding), kernel, strides, groups)
            by_group = tf.reshape(
                tf.transpose(_split(gradient, groups), (3, 0, 1, 2, 4)),
                (groups, -1, kernel.shape[3] // groups),
            )
            kernel_gradient = tf.matmul(patches, by_group, transpose_a=True)
            kernel_gradient = tf.reshape(tf.transpose(kernel_gradient, (1, 0, 2)), kernel.shape)
            inputs_gradient = _input_gradient(inputs, gradient, kernel, strides, padding, groups)
            return inputs_gradient, kernel_gradient

        return _products(_pad(inputs, padding), kernel, strides, groups), gradients

    # A variable itself would be a second kind of argument to `custom_gradient`.
    return convolve(inputs, tf.convert_to_tensor(kernel))


def _pad(inputs, padding):
    return tf.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _sizes(x):
    """Height and width, as numbers where they are known."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2)]


def _split(x, groups):
    """`(batch, height, width, channels)` -> `(batch, height, width, groups, channels / groups)`."""
    return tf.reshape(x, (-1, *_sizes(x), groups, x.shape[-1] // groups))


def _patches(padded, kernel, strides, groups):
    """What each window of each group sees: `(groups, positions, taps * channels / groups)`."""
    kernel_height, kernel_width, width, _ = kernel.shape
    rows, columns = (
        (size - taps) // strides + 1
        for size, taps in zip(_sizes(padded), kernel.shape[:2], strict=True)
    )
    windows = [
        padded[
            :,
            i : i + (rows - 1) * strides + 1 : strides,
            j : j + (columns - 1) * strides + 1 : strides,
        ]
        for i in range(kernel_height)
        for j in range(kernel_width)
    ]
    patches = tf.reshape(tf.stack(windows, axis=3), (-1, len(windows), groups, width))
    patches = tf.transpose(patches, (2, 0, 1, 3))
    return tf.reshape(patches, (groups, -1, len(windows) * width)), (rows, columns)


def _products(padded, kernel, strides, groups):
    *taps, width, filters = kernel.shape
    patches, sizes = _patches(padded, kernel, strides, groups)
    by_group = tf.reshape(kernel, (taps[0] * taps[1] * width, groups, filters // groups))
    outputs = tf.matmul(patches, tf.transpose(by_group, (1, 0, 2)))
    outputs = tf.reshape(outputs, (groups, -1, *sizes, filters // groups))
    return tf.reshape(tf.transpose(outputs, (1, 2, 3, 0, 4)), (-1, *sizes, filters))


def _input_gradient(inputs, gradient, kernel, strides, padding, groups):
    """The output gradient, spread by the stride, under the flipped kernel of swapped channels."""
    kernel_height, kernel_width, width, filters = kernel.shape
    rows, columns = _sizes(gradient)
    if strides > 1:
        gradient = tf.reshape(gradient, (-1, rows, 1, columns, 1, filters))
        between = (0, strides - 1)
        gradient = tf.pad(gradient, ((0, 0), (0, 0), between, (0, 0), between, (0, 0)))
        gradient = tf.reshape(gradient, (-1, rows * strides, columns * strides, filters))
    lengths = ((rows - 1) * strides + 1, (columns - 1) * strides + 1)
    gradient = gradient[:, : lengths[0], : lengths[1]]
    (top, bottom), (left, right) = (
        (taps - 1 - padding, size + padding - length)
        for taps, size, length in zip(kernel.shape[:2], _sizes(inputs), lengths, strict=True)
    )
    gradient = tf.pad(gradient, ((0, 0), (top, bottom), (left, right), (0, 0)))
    swapped = tf.reshape(
        kernel[::-1, ::-1], (kernel_height, kernel_width, width, groups, filters // groups)
    )
    swapped = tf.reshape(
        tf.transpose(swapped, (0, 1, 4, 3, 2)),
        (kernel_height, kernel_width, filters // groups, groups * width),
    )
    return _products(gradient, swapped, 1, groups)
