"""2D convolution of channels-last maps with symmetric zero padding.

`keras.ops.conv` pads a strided convolution at the bottom and the right only, so the symmetric
padding of the papers takes a second, padded copy of the map. All three backends pad inside their
convolution if asked. Two more reasons to call them directly:

* PyTorch: Keras copies a channels-last tensor to contiguous NCHW and back around every convolution
  (`depthwise.py` has the figures).
* JAX and PyTorch on CPU: a 2x2 convolution of stride 2 is faster as a product of its patches, which
  do not overlap. On JAX the gradient from (4, 56, 56, 96) to 192 channels takes 14 ms instead of
  33, on PyTorch the forward pass from (1, 14, 14, 352) to 512 channels 1.1 ms instead of 3.5.
* PyTorch on CPU changes a kernel's memory layout at every call. Where a map has fewer positions
  than the kernel has filters, that is more work than gathering the map's patches for a product:
  from (1, 7, 7, 256) to 256 channels 3x3 takes 3.8 ms as a convolution, 0.8 as a product, with
  gradient 9.2 and 3.8 (one thread).

And on CPU only:

* JAX: XLA's gradient by the kernel of a wide convolution is slow on large maps and on many: 3x3
  from 256 to 256 channels it takes 9.9 s for (2, 128, 128), as one matrix product 1.7 (forward:
  1.1), 162 and 64 ms for (2, 32, 32), 409 and 172 for 32 regions of 14x14, on a busy machine; from
  64 to 64, 531 and about 130 for 256 regions. With fewer channels or positions XLA's wins.
* JAX, in a branch of `switch`, where R-CNN's heads learn: there XLA's gradients of any convolution
  are slow. 3x3 from 32 to 32 channels, 256 regions of 14x14, both take 1.46 s (outside 0.046), by
  products 0.08; of stride 2 from 64 to 144 channels the kernel's 3.2 s (outside 0.07) and 0.08.
* JAX, in groups of channels: from (1, 56, 56, 128), 3x3 in 32 groups, forward and both gradients
  take 4.9 s, with a product a tap and group for that gradient 0.045 (CPU time on a busy machine;
  2.1 and 0.021 s from (1, 28, 28, 256)). The other two are XLA's in `conv_jax.py` as well: products
  of patches are no faster there.
* TensorFlow, in groups: it has no such convolution on CPU outside of XLA; `keras.ops.conv` has XLA
  compile one, again at each eager call, with that gradient. `grouped_tensorflow.py` multiplies
  patches instead.
"""

import math

import keras
from keras import KerasTensor, ops

from keras_densepred.ops.loops import is_in_branch
from keras_densepred.runtime.devices import (
    jax_runs_on_cpu,
    tensorflow_runs_on_cpu,
    writes_onnx,
)

_WIDE = 64  # channels and filters from which on
_LARGE = 1024  # positions of all maps from which on a matrix product gives the gradient on JAX


def conv2d(inputs, kernel, bias=None, *, strides: int = 1, padding: int = 0, groups: int = 1):
    """Convolves a batch of maps.

    Equal to zero padding, `keras.ops.conv` with `padding="valid"` and the bias, in value and
    gradient.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        kernel: float tensor `(kernel_height, kernel_width, channels / groups, filters)`.
        bias: float tensor `(filters,)`, or None.
        strides: step of the window in pixels, the same along both axes.
        padding: zeros on each of the four sides, in pixels.
        groups: number of groups of channels: the first filters see the first channels only, and
            so on.

    Returns:
        `(batch, out_height, out_width, filters)` in the dtype of `inputs`, with
        `out = (size + 2 * padding - kernel_size) // strides + 1`.

    Raises:
        ValueError: if the kernel does not fit the channels of the input in so many groups.
    """
    inputs, kernel = ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel)
    if inputs.shape[-1] != groups * kernel.shape[2] or kernel.shape[3] % groups:
        raise ValueError(
            f"A kernel of shape {tuple(kernel.shape)} in {groups} groups does not fit maps of "
            f"{inputs.shape[-1]} channels."
        )
    if bias is not None:
        bias = ops.convert_to_tensor(bias)
    backend = keras.config.backend()
    if isinstance(inputs, KerasTensor):
        outputs = _conv_keras(inputs, kernel, strides, padding)
    elif groups > 1:
        outputs = _conv_grouped(inputs, kernel, strides, padding, groups)
    elif padding == 0 and kernel.shape[:2] == (strides, strides) and _patches_are_faster(inputs):
        outputs = _conv_of_patches(inputs, kernel)
    elif backend == "torch" and _has_fewer_positions_than_filters(inputs, kernel, strides, padding):
        outputs = _conv_of_gathered_patches(inputs, kernel, strides, padding)
    elif backend == "torch":
        outputs = _conv_torch(inputs, kernel, strides, padding)
    elif backend == "tensorflow":
        outputs = _conv_tensorflow(inputs, kernel, strides, padding)
    else:
        outputs = _conv_jax(inputs, kernel, strides, padding)
    return outputs if bias is None else outputs + bias


def _conv_grouped(inputs, kernel, strides, padding, groups):
    if keras.config.backend() == "torch":
        return _conv_torch(inputs, kernel, strides, padding, groups)
    if keras.config.backend() == "jax":
        return _conv_jax(inputs, kernel, strides, padding, groups)
    if tensorflow_runs_on_cpu() and padding < min(kernel.shape[:2]):
        from keras_densepred.ops.grouped_tensorflow import grouped_conv

        return grouped_conv(inputs, kernel, strides, padding, groups)
    return _conv_keras(inputs, kernel, strides, padding)


def _patches_are_faster(inputs) -> bool:
    backend = keras.config.backend()
    if backend == "torch":
        return inputs.device.type == "cpu" and not writes_onnx()
    return backend == "jax" and jax_runs_on_cpu()


def _has_fewer_positions_than_filters(inputs, kernel, strides, padding) -> bool:
    if inputs.device.type != "cpu" or writes_onnx():
        return False
    if not all(isinstance(size, int) for size in inputs.shape):
        return False  # `torch.export` leaves one open, and would note the answer as a condition
    rows, columns = _output_size(inputs, kernel, strides, padding)
    return inputs.shape[0] * rows * columns <= kernel.shape[-1]


def _output_size(inputs, kernel, strides, padding) -> tuple[int, int]:
    height, width = (
        (size + 2 * padding - reach) // strides + 1
        for size, reach in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    )
    return height, width


def _conv_keras(inputs, kernel, strides, padding):
    if padding:
        inputs = ops.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return ops.conv(inputs, kernel, strides=strides, padding="valid", data_format="channels_last")


def _conv_torch(inputs, kernel, strides, padding, groups=1):
    import torch.nn.functional as functional

    # Channels-last maps seen as NCHW are torch's own channels_last memory format: no copies.
    outputs = functional.conv2d(
        inputs.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), None, strides, padding, 1, groups
    )
    return outputs.permute(0, 2, 3, 1)


def _conv_of_gathered_patches(inputs, kernel, strides, padding):
    import torch

    rows, columns = _output_size(inputs, kernel, strides, padding)
    around = (0, 0, padding, padding, padding, padding)
    padded = torch.nn.functional.pad(inputs, around) if padding else inputs
    taps = [
        padded[
            :,
            row : row + (rows - 1) * strides + 1 : strides,
            column : column + (columns - 1) * strides + 1 : strides,
        ]
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    ]
    filters = kernel.shape[-1]
    patches = torch.cat(taps, dim=-1).reshape(inputs.shape[0] * rows * columns, -1)
    return (patches @ kernel.reshape(-1, filters)).reshape(-1, rows, columns, filters)


def _conv_tensorflow(inputs, kernel, strides, padding):
    import tensorflow as tf

    around = [padding, padding]
    return tf.nn.conv2d(inputs, kernel, strides, [[0, 0], around, around, [0, 0]])


def _conv_jax(inputs, kernel, strides, padding, groups=1):
    from keras_densepred.ops import conv_jax

    own_gradient = (
        jax_runs_on_cpu()
        and all(isinstance(size, int) for size in inputs.shape[:3])  # not while shapes are inferred
        and (groups > 1 or is_in_branch() or _is_wide_and_large(inputs, kernel, strides))
    )
    convolve = conv_jax.conv_on_cpu if own_gradient else conv_jax.conv
    return convolve(inputs, kernel, strides, padding, groups)


def _is_wide_and_large(inputs, kernel, strides) -> bool:
    return strides == 1 and min(kernel.shape[2:]) >= _WIDE and math.prod(inputs.shape[:3]) >= _LARGE


def _conv_of_patches(inputs, kernel):
    """A convolution whose windows neither overlap nor leave gaps: a product of patches."""
    size, _, channels, filters = kernel.shape
    batch, height, width, _ = inputs.shape
    rows, columns = height // size, width // size
    patches = inputs[:, : rows * size, : columns * size]
    patches = ops.reshape(patches, (batch, rows, size, columns, size, channels))
    patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))
    patches = ops.reshape(patches, (batch * rows * columns, size * size * channels))
    outputs = ops.matmul(patches, ops.reshape(kernel, (-1, filters)))
    return ops.reshape(outputs, (batch, rows, columns, filters))
