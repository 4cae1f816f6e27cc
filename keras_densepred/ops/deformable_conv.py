"""Deformable convolution (Dai et al., 2017), also modulated (Zhu et al., 2019: v2).

Every tap of the kernel is shifted by an offset that the map itself gives, and reads the map between
its cells. All taps at once would be K = kernel height x width times the map: here a loop over the
taps gathers, multiplies and adds one after the other, keeps nothing but its inputs, and gathers
again in the backward pass. `deformable_attention.py` has the parts that both are made of.

Gradients are mmcv's: at a whole-numbered position that of the offset is the forward difference (at
the first step, with offsets of zero, all positions are whole), and outside of the map, its
border cells at -1 and at the size included, it is 0.

`tools/timing/deformable_conv.py` times it beside the ordinary convolution.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_densepred.ops.deformable_attention import (
    neighbour_rows,
    neighbour_shares,
    share_gradients,
)
from keras_densepred.runtime.devices import writes_onnx

Tensor = Any


class Window(NamedTuple):
    """How a kernel lies on a map: cells from tap to tap, between windows, of zeros around."""

    height: int
    width: int
    strides: int
    padding: int
    dilation: int

    def output_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Of a map's size; also of unknown integers."""
        rows, columns = (
            (size + 2 * self.padding - self.dilation * (reach - 1) - 1) // self.strides + 1
            for size, reach in ((height, self.height), (width, self.width))
        )
        return rows, columns

    def positions(self, rows: Any, columns: Any) -> tuple[Tensor, Tensor]:
        """Of every window and tap without an offset, (rows, 1, K) and (1, columns, K) float32."""
        y, x = (
            ops.arange(size, dtype="float32") * float(self.strides) - float(self.padding)
            for size in (rows, columns)
        )
        taps = ops.arange(self.height * self.width, dtype="int32")
        down = ops.cast(taps // self.width * self.dilation, "float32")
        right = ops.cast(taps % self.width * self.dilation, "float32")
        return y[:, None, None] + down, x[None, :, None] + right


def deformable_conv(
    inputs: Tensor,
    offsets: Tensor,
    kernel: Tensor,
    mask: Tensor | None = None,
    *,
    strides: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> Tensor:
    """Convolves maps, each tap of each window at a place of its own.

    With offsets of zero and without a mask it is the ordinary convolution. A position between the
    cells is read bilinearly; cells outside of the map count zero. Positions, samples and sums are
    float32 whatever the type of the inputs: a position in bfloat16 is wrong by up to half a cell
    from 128 on.

    Args:
        inputs: (B, H, W, C), any float type.
        offsets: (B, H_out, W_out, G * K * 2), the cells that tap k of offset group g is shifted by:
            down in channel 2 (g K + k), right in the next. Taps count row by row. Any number, also
            infinite.
        kernel: (kernel height, kernel width, C / groups, filters).
        mask: None, or (B, H_out, W_out, G * K), the factor of every sample (v2).
        strides: cells between windows.
        padding: cells of zeros around the map.
        dilation: cells between taps.
        groups: the first filters see the first channels only, and so on.
        offset_groups: G; the first C / G channels are read at the first K positions, and so on.

    Returns:
        (B, H_out, W_out, filters) in the type of `inputs`. All inputs take gradients.

    Raises:
        ValueError: if channels, filters, offsets or mask do not fit each other.
    """
    window = Window(kernel.shape[0], kernel.shape[1], strides, padding, dilation)
    _check(inputs, offsets, kernel, mask, groups, offset_groups)
    batch, height, width, channels = ops.shape(inputs)
    rows, columns = window.output_size(height, width)
    taps, filters = window.height * window.width, kernel.shape[3]
    if keras.config.backend() == "torch" and inputs.device.type == "meta":  # shapes are inferred
        return inputs.new_empty((batch, rows, columns, filters))
    down, right = window.positions(rows, columns)
    # One axis for all samples until there are y and x: LiteRT slices five axes at most.
    offsets = ops.cast(offsets, "float32")
    offsets = ops.reshape(offsets, (batch, rows, columns, offset_groups * taps, 2))
    by_tap = (batch, rows, columns, offset_groups, taps)
    y = ops.reshape(offsets[..., 0], by_tap) + down[:, :, None]
    x = ops.reshape(offsets[..., 1], by_tap) + right[:, :, None]
    mask = ops.ones_like(y) if mask is None else ops.reshape(ops.cast(mask, "float32"), by_tap)
    maps = ops.reshape(
        ops.cast(inputs, "float32"),
        (batch, height, width, offset_groups, channels // offset_groups),
    )
    # (K, groups, C / groups, filters / groups): a tap's products are over the last but one.
    kernel = ops.reshape(
        ops.cast(kernel, "float32"), (taps, channels // groups, groups, filters // groups)
    )
    kernel = ops.transpose(kernel, (0, 2, 1, 3))
    outputs = _function()(maps, y, x, mask, kernel)
    outputs = ops.reshape(outputs, (batch, rows, columns, filters))
    return ops.cast(outputs, inputs.dtype)


# What the loop is made of, for the rows (N, C) of maps with their border, the rows of the four
# neighbours of M samples, upper left first, and four times (M,) shares; `shape` is of the maps:
#   read(table, index, shares): their weighted sum (M, C).
#   add(shape, total, index, shares, rows): `total` (N, C) with the rows (M, C) added, by shares.
#   products(shape, table, index, rows): four times (M,), of the rows (M, C) with each neighbour.
#   scan(function, carry, xs, number of ys): as `keras.ops.scan`, gives (carry, ys).
Index = Sequence[Tensor]


class Parts(NamedTuple):
    read: Callable[[Tensor, Index, Sequence[Tensor]], Tensor]
    add: Callable[[tuple, Tensor, Index, Sequence[Tensor], Tensor], Tensor]
    products: Callable[[tuple, Tensor, Index, Tensor], Sequence[Tensor]]
    scan: Callable[..., tuple]


def forward(inputs: Sequence[Tensor], parts: Parts) -> Tensor:
    """(B * H_out * W_out, filters) of maps, y, x, mask and kernel."""
    maps, y, x, mask, kernel = inputs
    bordered = with_border(maps)
    shape = ops.shape(bordered)
    groups = shape[3]
    rows, samples, _ = tap_samples(maps, y, x, mask)
    table = ops.reshape(bordered, (-1, shape[-1]))

    def add_tap(total: Tensor, tap: Sequence[Tensor]) -> tuple[Tensor, tuple]:
        (row, offset_y, offset_x, share), tap_kernel = tap[:4], tap[4]
        index = neighbour_rows(row, rows, groups)
        sampled = parts.read(table, index, neighbour_shares(offset_x, offset_y, share))
        return total + _product(sampled, tap_kernel), ()

    windows = ops.shape(samples[0])[1] // groups
    total = ops.zeros((windows, kernel.shape[1] * kernel.shape[3]), "float32")
    return parts.scan(add_tap, total, (*samples, kernel), 0)[0]


def backward(inputs: Sequence[Tensor], gradient: Tensor, parts: Parts) -> tuple[Tensor, ...]:
    """Gradients of maps, y, x, mask and kernel from that of the result."""
    maps, y, x, mask, kernel = inputs
    bordered = with_border(maps)
    shape = ops.shape(bordered)
    groups, channels = shape[3:]
    rows, samples, slope = tap_samples(maps, y, x, mask)
    table = ops.reshape(bordered, (-1, shape[-1]))

    def add_tap(total: Tensor, tap: Sequence[Tensor]) -> tuple[Tensor, tuple]:
        (row, offset_y, offset_x, share), tap_kernel = tap[:4], tap[4]
        index = neighbour_rows(row, rows, groups)
        shares = neighbour_shares(offset_x, offset_y, share)
        of_sampled, of_kernel = _product_gradients(
            parts.read(table, index, shares), tap_kernel, gradient
        )
        of_sampled = ops.reshape(of_sampled, (-1, channels))
        of_shares = parts.products(shape, table, index, of_sampled)
        total = parts.add(shape, total, index, shares, of_sampled)
        of_x, of_y, of_share = share_gradients(offset_x, offset_y, share, of_shares)
        return total, (of_y, of_x, of_share, of_kernel)

    total, ys = parts.scan(add_tap, ops.zeros_like(table), (*samples, kernel), 4)
    of_y, of_x, of_mask = (_taps_last(part, y) for part in ys[:3])
    of_maps = ops.reshape(total, shape)[:, 1:-1, 1:-1]
    return of_maps, of_y * slope, of_x * slope, of_mask, ys[3]


def with_border(maps: Tensor) -> Tensor:
    """(B, H + 2, W + 2, G, C): zeros around, so that every sample has four neighbours."""
    return ops.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))


def tap_samples(
    maps: Tensor, y: Tensor, x: Tensor, mask: Tensor
) -> tuple[Any, tuple[Tensor, ...], Tensor]:
    """Where each sample lies in the table of rows (B * (H + 2) * (W + 2) * G, C).

    Args:
        maps: (B, H, W, G, C).
        y: (B, H_out, W_out, G, K), the cell's row that is sampled.
        x: its column.
        mask: factor of the sample.

    Returns:
        The rows of the table from a neighbour to the one below it; tap by tap, (K, B * H_out *
        W_out * G), the upper left neighbour's row (int32), how far below it and right of it the
        sample lies, from 0 to 1, and its factor; and, like `y`, 1 inside of the map, 0 where the
        sample is zero wherever it moves.
    """
    batch, height, width, groups, _ = ops.shape(maps)
    cell_y, offset_y, inside_y = _cells(y, height)
    cell_x, offset_x, inside_x = _cells(x, width)
    image = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1, 1, 1)) * (height + 2)
    group = ops.reshape(ops.arange(groups, dtype="int32"), (-1, 1))
    row = ((image + cell_y) * (width + 2) + cell_x) * groups + group
    samples = tuple(_taps_first(part) for part in (row, offset_y, offset_x, mask))
    return (width + 2) * groups, samples, inside_y * inside_x


def _cells(position: Tensor, size: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The cell, counted with the border, the way from there to the position, and what is inside."""
    size_float = ops.cast(size, "float32")
    is_inside = ops.cast((position > -1.0) & (position < size_float), "float32")
    nearest = ops.maximum(ops.minimum(position, size_float), -1.0)
    lower = ops.minimum(ops.floor(nearest), size_float - 1.0)
    # The limits on integers are for NaN, which are any integer.
    cell = ops.maximum(ops.minimum(ops.cast(lower, "int32") + 1, size), 0)
    return cell, nearest - lower, is_inside


def _taps_first(values: Tensor) -> Tensor:
    return ops.transpose(ops.reshape(values, (-1, values.shape[-1])))


def _taps_last(values: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_taps_first`, but for the groups, which are of single samples."""
    return ops.reshape(ops.transpose(values), ops.shape(like))


def _product(sampled: Tensor, kernel: Tensor) -> Tensor:
    """(M * G, C / G) with (groups, C / groups, filters / groups) to (M, filters)."""
    groups, channels, filters = kernel.shape
    if groups == 1:
        return ops.matmul(ops.reshape(sampled, (-1, channels)), kernel[0])
    sampled = ops.reshape(sampled, (-1, groups, channels))
    return ops.reshape(ops.einsum("mgc,gcf->mgf", sampled, kernel), (-1, groups * filters))


def _product_gradients(sampled: Tensor, kernel: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    groups, channels, filters = kernel.shape
    if groups == 1:
        sampled = ops.reshape(sampled, (-1, channels))
        # XLA's product of a transposed map takes twice as long.
        of_kernel = ops.einsum("mc,mf->cf", sampled, gradient)
        return ops.matmul(gradient, ops.transpose(kernel[0])), of_kernel[None]
    sampled = ops.reshape(sampled, (-1, groups, channels))
    gradient = ops.reshape(gradient, (-1, groups, filters))
    of_kernel = ops.einsum("mgc,mgf->gcf", sampled, gradient)
    return ops.einsum("mgf,gcf->mgc", gradient, kernel), of_kernel


def _function() -> Callable[..., Tensor]:
    backend = keras.config.backend()
    if backend == "tensorflow":
        from keras_densepred.ops import deformable_conv_tensorflow

        return deformable_conv_tensorflow.convolve
    if backend == "jax":
        from keras_densepred.ops import deformable_conv_jax

        return deformable_conv_jax.convolve
    from keras_densepred.ops.deformable_conv_torch import by_grid_sample, convolve

    return by_grid_sample if writes_onnx() else convolve


def _check(
    inputs: Tensor, offsets: Tensor, kernel: Tensor, mask: Any, groups: int, offset_groups: int
) -> None:
    channels, taps = inputs.shape[-1], kernel.shape[0] * kernel.shape[1]
    if channels != groups * kernel.shape[2] or kernel.shape[3] % groups:
        raise ValueError(
            f"A kernel of shape {tuple(kernel.shape)} in {groups} groups does not fit maps of "
            f"{channels} channels."
        )
    if channels % offset_groups:
        raise ValueError(
            f"`offset_groups` is {offset_groups}, which does not divide {channels} channels."
        )
    wanted = {"offsets": (offsets, 2 * taps * offset_groups), "mask": (mask, taps * offset_groups)}
    for name, (value, number) in wanted.items():
        if value is not None and value.shape[-1] != number:
            raise ValueError(
                f"`{name}` needs {number} channels for {taps} taps and {offset_groups} offset "
                f"groups, and has {value.shape[-1]}."
            )
