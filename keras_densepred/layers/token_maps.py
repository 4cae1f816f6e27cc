"""The levels of a pyramid as one row of tokens, of which some may be padding."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.sine_position import sine_positions

Tensor = Any


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of several maps lie: row by row, one map behind the other.

    Images lie in the top left of what they are padded to, and so does what is image of each map.

    Attributes:
        shapes: height and width of each map, integers or scalar int32 tensors.
        counts: (B, L, 2) int32, rows and columns of each map that are image, at least 1; None
            where nothing is padding.
    """

    shapes: tuple[tuple[Any, Any], ...]
    counts: Tensor | None = None

    @classmethod
    def of(
        cls,
        maps: Sequence[Tensor],
        image_sizes: Tensor | None = None,
        canvas: tuple[Any, Any] | None = None,
    ) -> "TokenLayout":
        """The layout of maps of images.

        Args:
            maps: L times (B, H_l, W_l, channels).
            image_sizes: (B, 2) int32, height and width in pixels of what is image; None for all.
            canvas: height and width of the padded images; needed with `image_sizes`.
        """
        shapes = tuple(tuple(ops.shape(x)[1:3]) for x in maps)
        if image_sizes is None or canvas is None:
            return cls(shapes)
        # A cell is image if the pixel that the nearest sampling of a full-size mask takes is.
        counts = [
            [-((-image_sizes[:, axis] * shape[axis]) // canvas[axis]) for axis in (0, 1)]
            for shape in shapes
        ]
        stacked = ops.stack([ops.stack(pair, axis=-1) for pair in counts], axis=1)
        return cls(shapes, ops.maximum(stacked, 1))

    @property
    def sizes(self) -> Tensor:
        """(L, 2) float32: width and height of each map."""
        rows = [ops.stack([ops.cast(n, "float32") for n in shape[::-1]]) for shape in self.shapes]
        return ops.stack(rows)

    @property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2) float32 in 0..1: the share of columns and rows that is image; B may be 1."""
        if self.counts is None:
            return ops.ones((1, len(self.shapes), 2), "float32")
        return ops.cast(ops.flip(self.counts, axis=-1), "float32") / self.sizes

    @property
    def valid(self) -> Tensor | None:
        """(B, N) bool, whether a token is image; None where all are."""
        if self.counts is None:
            return None
        parts = []
        for level, (height, width) in enumerate(self.shapes):
            rows = ops.arange(height, dtype="int32")[None] < self.counts[:, level, :1]
            columns = ops.arange(width, dtype="int32")[None] < self.counts[:, level, 1:]
            inside = ops.logical_and(rows[:, :, None], columns[:, None])
            parts.append(ops.reshape(inside, (-1, height * width)))
        return ops.concatenate(parts, axis=1)

    @property
    def centres(self) -> Tensor:
        """(B, N, 2) float32: x and y of each token, 0..1 in the part of its map that is image."""
        ratios = self.valid_ratios
        parts = []
        for level, (height, width) in enumerate(self.shapes):
            x, y = (
                (ops.cast(ops.arange(size), "float32") + 0.5)[None]
                / (ratios[:, level, axis, None] * ops.cast(size, "float32"))
                for axis, size in ((0, width), (1, height))
            )
            whole = (ops.shape(ratios)[0], height, width)
            xy = (ops.broadcast_to(x[:, None], whole), ops.broadcast_to(y[:, :, None], whole))
            parts.append(ops.reshape(ops.stack(xy, axis=-1), (-1, height * width, 2)))
        return ops.concatenate(parts, axis=1)

    def on_levels(self, boxes: Tensor) -> Tensor:
        """Points or boxes relative to the image, as relative to each padded map.

        Args:
            boxes: (B, Q, 2) float32 x, y, or (B, Q, 4) with width and height.

        Returns:
            (B, Q, L, 2 or 4) float32.
        """
        ratios = self.valid_ratios
        if boxes.shape[-1] == 4:
            ratios = ops.concatenate([ratios, ratios], axis=-1)
        return boxes[:, :, None] * ratios[:, None]

    def positions(self, width: int, offset: float) -> list[Tensor]:
        """For each level (B, H_l * W_l, width) float32, see `sine_positions`; B may be 1."""
        counts: list[Any] = [None] * len(self.shapes)
        if self.counts is not None:
            counts = [self.counts[:, level] for level in range(len(self.shapes))]
        return [
            ops.reshape(
                sine_positions(shape, count, width, offset), (-1, shape[0] * shape[1], width)
            )
            for shape, count in zip(self.shapes, counts, strict=True)
        ]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """(B, N, channels) to L times (B, H_l, W_l, channels)."""
        maps, start = [], 0
        for height, width in self.shapes:
            part = tokens[:, start : start + height * width]
            maps.append(ops.reshape(part, (-1, height, width, tokens.shape[-1])))
            start = start + height * width
        return maps


def as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """L times (B, H_l, W_l, channels) to (B, N, channels)."""
    flat = []
    for x in maps:
        height, width = ops.shape(x)[1:3]
        flat.append(ops.reshape(x, (-1, height * width, x.shape[-1])))
    return ops.concatenate(flat, axis=1)


def in_float32(x: Tensor) -> Tensor:
    """`x` in the precision of locations, softmax and losses."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float32" else ops.cast(x, "float32")
