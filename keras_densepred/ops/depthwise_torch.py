"""Depthwise convolution on PyTorch, and on CPU with gradients of its own.

Imported on the PyTorch backend only; `depthwise.py` says when the second are taken and why.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch.nn.grad import conv2d_input, conv2d_weight

from keras_densepred.runtime.devices import writes_onnx

Tensor = torch.Tensor

_LARGE = 5  # taps along an axis from which on the gradient by the kernel is a convolution
_FEW, _WIDE = 16, 28 * 28  # images, or positions of each, with which that pays
# Read once: within `torch.compile` it cannot be asked.
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def depthwise(
    maps: Tensor, kernel: Tensor, bias: Tensor | None, strides: int, padding: Any, dilation: int
) -> Tensor:
    """Depthwise convolution of maps, in any memory format, in the precision of the kernel.

    Args:
        maps: `(batch, channels, height, width)`.
        kernel: `(channels, 1, kernel_height, kernel_width)`.
        bias: `(channels,)`, or None.
        strides: step of the window in pixels along both axes.
        padding: zeros on each side, (vertically, horizontally).
        dilation: distance between taps in pixels along both axes.

    Returns:
        `(batch, channels, out_height, out_width)`.
    """
    bias = None if bias is None else bias.to(kernel.dtype)
    if _learns_on_cpu(maps, kernel):
        return _LargeKernel.apply(maps, kernel, bias, strides, padding, dilation)
    return _convolve(maps, kernel, bias, strides, padding, dilation)


def deal(maps: Tensor, distance: int, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """A convolution with a distance between its taps, by one without.

    Rows and columns are dealt out to distance * distance smaller maps.

    Args:
        maps: (B, H, W, C).
        distance: in pixels.
        convolve: of maps without distances; keeps their size.

    Returns:
        (B, H, W, filters).
    """
    d = distance
    batch, height, width, channels = maps.shape
    padded = functional.pad(maps, (0, 0, 0, -width % d, 0, -height % d))
    rows, columns = padded.shape[1] // d, padded.shape[2] // d
    dealt = padded.reshape(batch, rows, d, columns, d, channels).permute(0, 2, 4, 1, 3, 5)
    outputs = convolve(dealt.reshape(batch * d * d, rows, columns, channels))
    filters = outputs.shape[-1]
    outputs = outputs.reshape(batch, d, d, rows, columns, filters).permute(0, 3, 1, 4, 2, 5)
    outputs = outputs.reshape(batch, rows * d, columns * d, filters)
    return outputs[:, :height, :width].contiguous()


def _convolve(maps, kernel, bias, strides, padding, dilation):
    channels, _, *taps = kernel.shape
    within = tuple(n // 2 for n in taps)
    if not (
        strides == 1
        and is_dealt(dilation)
        and _runs_as_written()
        and maps.device.type == "cpu"
        and all(n % 2 for n in taps)
        and tuple(padding) == tuple(n * dilation for n in within)
    ):
        return functional.conv2d(maps, kernel, bias, strides, padding, dilation, channels)

    def convolve(dealt):
        near = functional.conv2d(dealt.permute(0, 3, 1, 2), kernel, bias, 1, within, 1, channels)
        return near.permute(0, 2, 3, 1)

    return deal(maps.permute(0, 2, 3, 1), dilation, convolve).permute(0, 3, 1, 2)


def is_dealt(distance: int) -> bool:
    """Whether dealing pays on the CPU: 0.7 ms instead of 4.2 at 3, (4, 28, 28, 192).

    oneDNN's kernels for AVX-512 take a distance of 2 as they take none; those for AVX2 do not.
    """
    return distance > (2 if _HAS_AVX512 else 1)


def _runs_as_written() -> bool:
    """Whether PyTorch runs now, and no compiler or exporter reads what would run."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or writes_onnx())


def _learns_on_cpu(maps: Tensor, kernel: Tensor) -> bool:
    return (
        _runs_as_written()
        and torch.is_grad_enabled()
        and (maps.requires_grad or kernel.requires_grad)
        and maps.device.type == "cpu"
        and maps.dtype == kernel.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(kernel.shape[2:]) >= _LARGE
    )


class _LargeKernel(torch.autograd.Function):
    """The convolution; its gradients are convolutions too, as often as one asks for them."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        maps, kernel, _, *window = inputs
        ctx.save_for_backward(maps, kernel)
        ctx.window = window

    @staticmethod
    def forward(maps, kernel, bias, strides, padding, dilation):
        return _convolve(maps, kernel, bias, strides, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient):
        maps, kernel = ctx.saved_tensors
        by_maps = by_kernel = by_bias = None
        if ctx.needs_input_grad[0]:
            by_maps = _by_maps(gradient, kernel, maps.shape, *ctx.window)
        if ctx.needs_input_grad[1]:
            by_kernel = _by_kernel(gradient, maps, kernel.shape, *ctx.window)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 2, 3))
        return by_maps, by_kernel, by_bias, None, None, None


def _by_maps(gradient, kernel, size, strides, padding, dilation):
    channels, _, *taps = kernel.shape
    around = [(n - 1) * dilation - zeros for n, zeros in zip(taps, padding, strict=True)]
    if strides > 1 or min(around) < 0:
        return conv2d_input(size, kernel, gradient, strides, padding, dilation, channels)
    return _convolve(gradient, kernel.flip(2, 3), None, 1, around, dilation)


def _by_kernel(gradient, maps, kernel_shape, strides, padding, dilation):
    """What each tap sees, weighted by the gradient: image by image, the map under its gradient."""
    channels, _, rows, columns = kernel_shape
    if len(maps) > _FEW and maps.shape[2] * maps.shape[3] < _WIDE:
        return conv2d_weight(maps, kernel_shape, gradient, strides, padding, dilation, channels)
    total = maps.new_zeros((channels, rows, columns))
    for image, weight in zip(maps, gradient, strict=True):
        seen = functional.conv2d(
            image[None], weight[:, None], None, dilation, padding, strides, channels
        )
        total = total + seen[0, :, :rows, :columns]
    return total[:, None]
