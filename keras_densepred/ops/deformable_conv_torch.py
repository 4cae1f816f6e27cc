"""Deformable convolution for PyTorch: the loop over taps with `embedding_bag`, and its gradients.

Imported on the PyTorch backend only; `deformable_conv.py` says what is computed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import embedding_bag, grid_sample

from keras_densepred.ops.deformable_attention_torch import shares_gradient, table_gradient
from keras_densepred.ops.deformable_conv import Parts, backward, forward

Tensor = torch.Tensor


def convolve(maps: Tensor, y: Tensor, x: Tensor, mask: Tensor, kernel: Tensor) -> Tensor:
    """(B * H_out * W_out, filters)."""
    return _Convolve.apply(maps, y, x, mask, kernel)


class _Convolve(torch.autograd.Function):
    """Nothing but the inputs is kept for the gradients."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return forward(inputs, _PARTS)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return backward(ctx.saved_tensors, gradient.contiguous(), _PARTS)


def _read(table: Tensor, index: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    return embedding_bag(
        torch.stack(tuple(index), -1),
        table,
        mode="sum",
        per_sample_weights=torch.stack(tuple(shares), -1),
    )


def _add(
    shape: Any, total: Tensor, index: Sequence[Tensor], shares: Sequence[Tensor], rows: Tensor
) -> Tensor:
    batch, height, width, groups, channels = shape
    like = total.view(batch, height * width, groups, channels)
    size = [(height - 2, width - 2)]
    added = table_gradient(
        like, torch.stack(tuple(index), -1), torch.stack(tuple(shares), -1), rows, size
    )
    return total.add_(added.view(total.shape))


def _products(_: Any, table: Tensor, index: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
    stacked = torch.stack(tuple(index), -1)
    shares = torch.empty(stacked.shape, device=table.device)  # their values do not matter
    return shares_gradient(table, stacked, shares, rows).unbind(-1)


def _scan(function: Any, carry: Tensor, xs: Sequence[Tensor], num_ys: int) -> tuple:
    rounds = []
    for values in zip(*xs, strict=True):
        carry, ys = function(carry, values)
        rounds.append(ys)
    return carry, [torch.stack(parts) for parts in zip(*rounds, strict=True)][:num_ys]


_PARTS = Parts(_read, _add, _products, _scan)


def by_grid_sample(maps: Tensor, y: Tensor, x: Tensor, mask: Tensor, kernel: Tensor) -> Tensor:
    """The same in operations that other runtimes have, all taps at once: a file of few of them."""
    _, height, width, groups, channels = maps.shape
    rows, columns, _, taps = y.shape[1:]
    planes = maps.permute(0, 3, 4, 1, 2).reshape(-1, channels, height, width)
    # From cells' centres to -1..1 between the edges of the map.
    grid = torch.stack(((2.0 * x + 1.0) / width - 1.0, (2.0 * y + 1.0) / height - 1.0), -1)
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(-1, rows, columns * taps, 2)
    share = mask.permute(0, 3, 1, 2, 4).reshape(-1, 1, rows, columns * taps)
    sampled = grid_sample(planes, grid, align_corners=False) * share
    sampled = sampled.reshape(-1, groups * channels, rows * columns, taps)  # images first
    _, kernel_groups, each, filters = kernel.shape
    sampled = sampled.unflatten(1, (kernel_groups, each)).permute(0, 1, 3, 4, 2)
    product = sampled.reshape(-1, kernel_groups, rows * columns, taps * each) @ (
        kernel.permute(1, 0, 2, 3).reshape(kernel_groups, taps * each, filters)
    )
    return product.transpose(1, 2).reshape(-1, kernel_groups * filters)
