"""Multi-scale deformable attention for PyTorch, with its gradients.

`embedding_bag` reads and sums in one operation, and has the gradient of the shares. Its gradient of
the table sorts the neighbours of all samples; here the samples are sorted, a fourth of that, and
the gradient of the output is read with `embedding_bag` again, once for each of the four neighbours:
0.4 s against 1.4 s for the 680,320 samples on P3 of an 800 x 1280 px image on 2 cores.

Imported on the PyTorch backend only; `deformable_attention.py` says what is computed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import embedding_bag, grid_sample

from keras_densepred.ops.deformable_attention import (
    neighbour_rows,
    neighbour_shares,
    sample_points,
    share_gradients,
)

Tensor = torch.Tensor


class Attend(torch.autograd.Function):
    """From table, locations, weights, levels and shapes to (B * Q * heads, C) float32.

    Nothing but the inputs is kept for the gradients.
    """

    @staticmethod
    def forward(ctx, table, locations, weights, levels, shapes):
        ctx.save_for_backward(table, locations, weights, levels)
        ctx.shapes = shapes
        index, *offset, _ = _samples(table, locations, levels)
        shares = torch.stack(neighbour_shares(*offset, weights), -1).view(index.shape)
        table = table.view(-1, table.shape[-1])
        return embedding_bag(index, table, mode="sum", per_sample_weights=shares)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        table, locations, weights, levels = ctx.saved_tensors
        index, *offset, slope = _samples(table, locations, levels)
        shares = torch.stack(neighbour_shares(*offset, weights), -1)
        gradient = gradient.contiguous()
        of_table = table_gradient(table, index, shares, gradient, ctx.shapes)
        of_shares = shares_gradient(table, index, shares, gradient)
        *of_offset, of_weights = share_gradients(*offset, weights, of_shares.unbind(-1))
        return of_table, torch.stack(of_offset, -1) * slope, of_weights, None, None


def _samples(table: Tensor, locations: Tensor, levels: Tensor) -> tuple[Tensor, ...]:
    """Rows of the neighbours (B * Q * heads, L * P * 4), offsets (B, Q, heads, L, P) and slopes."""
    _, rows, heads, _ = table.shape
    row, stride, offset, slope = sample_points(locations, levels, rows)
    index = torch.stack(neighbour_rows(row, stride, heads), -1)
    return index.view(-1, index.shape[3:].numel()), offset[..., 0], offset[..., 1], slope


def shares_gradient(table: Tensor, index: Tensor, shares: Tensor, gradient: Tensor) -> Tensor:
    """(B, Q, heads, L, P, 4): the products of the gradient with each neighbour."""
    with torch.enable_grad():
        # As a value of its own: where nothing depends on it, `shares` could not take a gradient.
        weights = shares.view(index.shape).detach().requires_grad_()
        table = table.view(-1, table.shape[-1])
        outputs = embedding_bag(index, table, mode="sum", per_sample_weights=weights)
        return torch.autograd.grad(outputs, weights, gradient)[0].view(shares.shape)


def table_gradient(
    table: Tensor, index: Tensor, shares: Tensor, gradient: Tensor, shapes: Sequence[Any]
) -> Tensor:
    """(B, R, heads, C): for each row, the gradients of what it was a neighbour of."""
    upper_left, order = torch.sort(index.view(-1, 4)[:, 0])
    taker = (order // (index.shape[1] // 4)).int()
    every_row = torch.arange(table.shape[:3].numel(), dtype=torch.int32, device=table.device)
    begin = torch.searchsorted(upper_left, every_row, out_int32=True)
    shares = shares.view(-1, 4).index_select(0, order).t().contiguous()
    upper, upper_right, lower, lower_right = (
        embedding_bag(taker, gradient, begin, mode="sum", per_sample_weights=share).view_as(table)
        for share in shares
    )
    # Each of the four by the row of the upper left neighbour.
    upper[:, 1:] += upper_right[:, :-1]
    lower[:, 1:] += lower_right[:, :-1]
    first = 0
    for height, width in shapes:
        end = first + (height + 2) * (width + 2)
        upper[:, first + width + 2 : end] += lower[:, first : end - width - 2]
        first = end
    return upper


def by_grid_sample(
    values: Tensor, shapes: Sequence[Any], locations: Tensor, weights: Tensor
) -> Tensor:
    """(B, Q, heads, C): the same in operations that other runtimes have.

    Args:
        values: (B, N, heads, C) float32.
        shapes: height and width of each level.
        locations: (B, Q, heads, L, P, 2) float32.
        weights: (B, Q, heads, L, P) float32.
    """
    _, _, heads, channels = values.shape
    queries = locations.shape[1]
    parts = values.split([height * width for height, width in shapes], dim=1)
    total: Any = 0.0
    for level, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        maps = part.permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, Q, P, 2)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        # From 0..1 between the edges to -1..1.
        samples = grid_sample(maps, 2.0 * grid - 1.0, align_corners=False)
        total = total + (samples * share).sum(dim=-1)  # (B * heads, C, Q)
    return total.view(-1, heads, channels, queries).permute(0, 3, 1, 2)
