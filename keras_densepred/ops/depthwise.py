"""Depthwise 2D convolution, the operation that decides how fast a ConvNeXt-like network runs.

The plain form is `keras.ops.depthwise_conv`, and in a TensorFlow graph it is what runs. Elsewhere
another path is faster; the numbers are medians on 2 CPU cores, float32, kernel 7x7:

* JAX on CPU: XLA's grouped convolution takes 155 ms for a (1, 80, 80, 192) map; the same sum
  written as 49 shifted products, which XLA fuses into one loop, takes 6.5 ms. Its input gradient
  is that operation with the flipped kernel. The kernel gradient that JAX derives takes 112 ms at
  (4, 56, 56, 96); a loop over pixels that updates all taps at once takes 11 ms.
* TensorFlow compiled by XLA: the same form, for the same reason. A training step of CEDNet-NeXt-T
  (224 px, 4 images) takes 2.6 s with it and 20 s without.
* PyTorch: Keras copies a channels-last tensor to contiguous NCHW and back around every
  convolution, 10 to 18 ms against 0.6 ms for `conv2d` on a channels-last view of the same memory.
  On CPU its gradient by a large kernel takes 8.8 ms for (4, 56, 56, 96), as a convolution of each
  map with its gradient 1.9; both gradients 12.8 and 2.9.

On GPUs JAX keeps XLA's own convolution. On an H200, bfloat16, 64 images, the four levels of
CEDNet-NeXt-T at 224 px take 0.41, 0.57, 0.21 and 0.26 ms by it, 0.85, 0.54, 0.27 and 0.27 ms by
shifted products (benchmarks/gpu_depthwise.csv). So they do for TPUs: the TPU compiler expects of a
v5e, bfloat16, 32 maps of 56 x 56 x 96, 0.97 ms forward and 1.24 ms for the gradients, of shifted
products 3.83 and 8.49 ms and a gigabyte of temporaries (benchmarks/tpu_depthwise.csv; no TPU ran).
"""

import keras
from keras import KerasTensor, ops

from keras_densepred.runtime.devices import jax_runs_on_cpu

Padding2D = tuple[tuple[int, int], tuple[int, int]]


def depthwise_conv(
    inputs,
    kernel,
    bias=None,
    *,
    strides: int = 1,
    padding: str | int = "valid",
    dilation_rate: int = 1,
    data_format: str | None = None,
):
    """Convolves every channel with its own kernel.

    Equal to `keras.ops.depthwise_conv` plus the bias, in value and gradient.

    Args:
        inputs: float tensor, `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.
        kernel: float tensor `(kernel_height, kernel_width, channels, 1)`.
        bias: float tensor `(channels,)`, or None.
        strides: step of the window in pixels, the same along both axes.
        padding: `"valid"`, `"same"` (zeros, the surplus one at the bottom and the right), or the
            number of zeros on each side.
        dilation_rate: distance between taps in pixels, the same along both axes.
        data_format: `"channels_last"`, `"channels_first"`, or None for Keras' default.

    Returns:
        A tensor with the rank, axis order and dtype of `inputs`.

    Raises:
        ValueError: if `padding` is none of these, if the kernel's last axis is not 1, or if both
            `strides` and `dilation_rate` exceed 1.
    """
    if padding not in ("same", "valid") and not (isinstance(padding, int) and padding >= 0):
        raise ValueError(
            f'`padding` must be "same", "valid" or a number of zeros, got {padding!r}.'
        )
    if kernel.shape[-1] != 1:
        raise ValueError(
            "`kernel` must have the shape (height, width, channels, 1): a depth multiplier is not "
            f"supported, got {tuple(kernel.shape)}."
        )
    if strides > 1 and dilation_rate > 1:
        raise ValueError(
            "`strides` and `dilation_rate` cannot both exceed 1, "
            f"got {strides} and {dilation_rate}."
        )
    data_format = data_format or keras.config.image_data_format()
    inputs, kernel = ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel)
    if bias is not None:
        bias = ops.convert_to_tensor(bias)
    compute = _depthwise_keras
    if not isinstance(inputs, KerasTensor):
        backend = keras.config.backend()
        if backend == "torch":
            compute = _depthwise_torch
        elif backend == "jax" and jax_runs_on_cpu():
            compute = _depthwise_jax
        elif backend == "tensorflow" and _tensorflow_wants_shifts(inputs):
            compute = _depthwise_tensorflow
    return compute(inputs, kernel, bias, strides, padding, dilation_rate, data_format)


def explicit_padding(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: int,
    padding: str | int,
    dilation: int,
) -> Padding2D:
    """Zeros that `padding` stands for: ((top, bottom), (left, right)) for a (height, width) map."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if padding == "valid":
        return (0, 0), (0, 0)
    pads = []
    for length, kernel in zip(size, kernel_size, strict=True):
        reach = (kernel - 1) * dilation + 1
        total = max((-(-length // strides) - 1) * strides + reach - length, 0)
        pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


def _depthwise_keras(inputs, kernel, bias, strides, padding, dilation_rate, data_format):
    if isinstance(padding, int):
        around = ((padding, padding), (padding, padding))
        last = data_format == "channels_last"
        inputs = ops.pad(inputs, ((0, 0), *around, (0, 0)) if last else ((0, 0), (0, 0), *around))
        padding = "valid"
    outputs = ops.depthwise_conv(
        inputs,
        kernel,
        strides=strides,
        padding=padding,
        data_format=data_format,
        dilation_rate=dilation_rate,
    )
    if bias is None:
        return outputs
    if data_format == "channels_first":
        bias = ops.reshape(bias, (1, -1, 1, 1))
    return outputs + bias


def _depthwise_torch(inputs, kernel, bias, strides, padding, dilation_rate, data_format):
    import torch.nn.functional as functional

    from keras_densepred.ops.depthwise_torch import depthwise

    # (H, W, C, 1) -> (C, 1, H, W). A channels-last tensor seen as NCHW is torch's own
    # channels_last memory format: no copy is made here or inside conv2d.
    kernel = kernel.permute(2, 3, 0, 1)
    if data_format == "channels_last":
        inputs = inputs.permute(0, 3, 1, 2)
    height, width = inputs.shape[2:]
    (top, bottom), (left, right) = explicit_padding(
        (height, width), kernel.shape[2:], strides, padding, dilation_rate
    )
    if (top, left) == (bottom, right):
        amount = (top, left)
    else:
        inputs, amount = functional.pad(inputs, (left, right, top, bottom)), (0, 0)
    outputs = depthwise(inputs, kernel, bias, strides, amount, dilation_rate)
    return outputs.permute(0, 2, 3, 1) if data_format == "channels_last" else outputs


def _tensorflow_wants_shifts(inputs) -> bool:
    from keras_densepred.ops.depthwise_xla import is_compiled_by_xla

    return None not in inputs.shape[1:] and is_compiled_by_xla()


def _depthwise_tensorflow(inputs, kernel, bias, strides, padding, dilation_rate, data_format):
    from keras_densepred.ops.depthwise_xla import shifted_products

    return _depthwise_shifted(
        shifted_products, inputs, kernel, bias, strides, padding, dilation_rate, data_format
    )


def _depthwise_jax(inputs, kernel, bias, strides, padding, dilation_rate, data_format):
    from keras_densepred.ops.depthwise_jax import shifted_products

    return _depthwise_shifted(
        shifted_products, inputs, kernel, bias, strides, padding, dilation_rate, data_format
    )


def _depthwise_shifted(shifted, inputs, kernel, bias, strides, padding, dilation_rate, data_format):
    if data_format == "channels_first":
        inputs = ops.transpose(inputs, (0, 2, 3, 1))
    pads = explicit_padding(inputs.shape[1:3], kernel.shape[:2], strides, padding, dilation_rate)
    outputs = shifted(inputs, kernel[..., 0], bias, strides, dilation_rate, pads)
    if data_format == "channels_first":
        outputs = ops.transpose(outputs, (0, 3, 1, 2))
    return outputs
