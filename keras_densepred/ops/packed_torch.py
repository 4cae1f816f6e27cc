"""Layers for inference on PyTorch, with what follows them in the same call and weights packed once.

Imported on the PyTorch backend only. oneDNN, which multiplies and convolves on the CPU, wants
weights in blocks of its own: the operators of `torch.nn.functional` rearrange them at every call.
These are the operators that `torch.compile` with freezing puts in their place, called by hand; they
need no compiler. On other devices, and in a PyTorch without oneDNN, they are PyTorch's own.

Weights are float32 or bfloat16 tensors in Keras' layouts, maps are (B, H, W, C) and are computed
with in the precision of the weights.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional

from keras_densepred.ops.depthwise_torch import deal

Tensor = Any

_SIZES = 8  # of maps for which a convolution keeps packed weights

# Keras' name of an activation: oneDNN's name, its arguments and algorithm, and PyTorch's function.
_ACTIVATIONS: dict[str | None, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    None: ("none", "", lambda x: x),
    "gelu": ("gelu", "none", functional.gelu),
    "relu": ("relu", "", torch.relu),
    "silu": ("swish", "", functional.silu),
    "sigmoid": ("sigmoid", "", torch.sigmoid),
}
ACTIVATIONS = frozenset(_ACTIVATIONS) - {None}


def without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: within the function PyTorch keeps nothing for a backward pass."""
    return torch.no_grad()(function)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN computes with this weight: on a CPU that knows its precision."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Product:
    """Products of the last axis with a matrix, an activation after them or a map added to them.

    Args:
        kernel: (C, units).
        bias: (units,) or None.
        activation: one of `ACTIVATIONS`, or None. With an added map it follows the sum.
    """

    def __init__(self, kernel: Tensor, bias: Tensor | None, activation: str | None = None):
        self.units = kernel.shape[1]
        self.bias = None if bias is None else bias.detach().clone()
        self.name, self.algorithm, self.function = _ACTIVATIONS[activation]
        weight = kernel.detach().t().contiguous()
        self.dtype = weight.dtype
        self.packed = can_pack(weight)
        # Without the number of rows: what is packed for one fits all (measured: as fast).
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., C) and, to be added, (..., units) to (..., units)."""
        shape = (*inputs.shape[:-1], self.units)
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self.dtype)
        residual = None if residual is None else residual.to(self.dtype)
        if not self.packed:
            outputs = functional.linear(rows, self.weight, self.bias).view(shape)
            return self.function(outputs if residual is None else outputs + residual)
        if residual is None:
            return torch.ops.mkldnn._linear_pointwise.default(
                rows, self.weight, self.bias, self.name, [], self.algorithm
            ).view(shape)
        added = residual.reshape(-1, self.units)
        outputs = torch.ops.mkldnn._linear_pointwise.binary(
            rows, added, self.weight, self.bias, "add"
        )
        return self.function(outputs).view(shape)


class Convolution:
    """A convolution, an activation after it or a map added to it.

    Args:
        kernel: (height, width, C / groups, filters).
        bias: (filters,) or None.
        strides: step of the window in pixels.
        padding: zeros on each side, in pixels.
        groups: of channels.
        activation: one of `ACTIVATIONS`, or None. With an added map it follows the sum.
    """

    def __init__(
        self,
        kernel: Tensor,
        bias: Tensor | None,
        strides: int,
        padding: int,
        groups: int = 1,
        activation: str | None = None,
    ):
        self.bias = None if bias is None else bias.detach().clone()
        self.name, self.algorithm, self.function = _ACTIVATIONS[activation]
        weight = kernel.detach().permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        self.window = [padding] * 2, [strides] * 2, [1, 1], groups
        self.dtype = weight.dtype
        self.packed = can_pack(weight)
        self.weight = weight
        self._by_size: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, H, W, C) and, to be added, a map like the result, (B, H_out, W_out, filters)."""
        maps = inputs.to(self.dtype).permute(0, 3, 1, 2)  # a view: PyTorch's "channels last"
        added = None if residual is None else residual.to(self.dtype).permute(0, 3, 1, 2)
        if not self.packed:
            padding, strides, dilation, groups = self.window
            outputs = functional.conv2d(
                maps, self.weight, self.bias, strides, padding, dilation, groups
            )
            outputs = self.function(outputs if added is None else outputs + added)
        elif added is None:
            outputs = torch.ops.mkldnn._convolution_pointwise.default(
                maps, self._weight_for(maps), self.bias, *self.window, self.name, [], self.algorithm
            )
        else:
            outputs = self.function(
                torch.ops.mkldnn._convolution_pointwise.binary(
                    *(maps, added, self._weight_for(maps), self.bias, *self.window),
                    *("add", None, None, [], None),
                )
            )
        return outputs.permute(0, 2, 3, 1)

    def _weight_for(self, maps: Tensor) -> Tensor:
        """Packed for this size: one for any size costs 13 ms instead of 0.8 from (1, 28, 28, 192)
        to 352 channels by steps of 2 (AVX2), and as much as any elsewhere."""
        size = tuple(maps.shape)
        weight = self._by_size.get(size)
        if weight is None:
            if len(self._by_size) >= _SIZES:
                self._by_size.pop(next(iter(self._by_size)), None)
            weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                self.weight.to_mkldnn(), *self.window, size
            )
            self._by_size[size] = weight
        return weight


class Dilated:
    """A convolution of stride 1 that keeps the size, with a distance between its taps.

    Maps are dealt out, which is faster than oneDNN's dilated depthwise convolution.

    Args:
        convolution: without distances, and with zeros so that it keeps the size.
        dilation: d, the distance in pixels.
    """

    def __init__(self, convolution: Convolution, dilation: int):
        self.convolution = convolution
        self.dilation = dilation

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, filters)."""
        return deal(inputs, self.dilation, self.convolution)


def layer_norm(gamma: Tensor, beta: Tensor, epsilon: float) -> Callable[[Tensor], Tensor]:
    """Normalisation of the last axis with these weights, (C,) each, in their precision."""
    gamma, beta = gamma.detach().clone(), beta.detach().clone()
    return lambda x: functional.layer_norm(x.to(gamma.dtype), gamma.shape, gamma, beta, epsilon)
