"""Attention to a few learned points of each level, and the encoder made of it.

Zhu et al., "Deformable DETR" (ICLR 2021), section 4.1; the layers as in MMDetection 2.28.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.initializers import FixedNormal
from keras_densepred.layers.token_attention import (
    FeedForward,
    TokenDropout,
    check_heads,
    linear,
    token_norm,
)
from keras_densepred.layers.token_maps import TokenLayout, as_tokens, in_float32
from keras_densepred.ops.deformable_attention import deformable_attention

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_densepred")
class OffsetStart(keras.initializers.Initializer):
    """Bias of the offsets: head k looks in direction k, its point number i at i pixels' distance.

    On the unit square, "Deformable DETR", appendix A.4; the same on every level.

    Args:
        num_heads: H.
        num_levels: L.
        num_points: P.
    """

    def __init__(self, num_heads: int, num_levels: int, num_points: int):
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        angles = 2.0 * math.pi * np.arange(self.num_heads) / self.num_heads
        direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        direction /= np.abs(direction).max(axis=-1, keepdims=True)
        distance = np.arange(1, self.num_points + 1)[:, None]
        start = np.broadcast_to(
            direction[:, None, None] * distance,
            (self.num_heads, self.num_levels, self.num_points, 2),
        )
        return ops.convert_to_tensor(start.reshape(shape).astype("float32"), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableAttention(keras.layers.Layer):
    """Multi-scale deformable attention: each head looks at a few points of every level.

    Locations and their weights are float32 whatever the policy.

    Args:
        num_heads: must divide the channels.
        num_levels: of the maps that are looked at.
        num_points: points of each head on each level.
        dropout: of the result.

    Raises:
        ValueError: if the channels are no multiple of `num_heads`.
    """

    def __init__(
        self,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)  # references stay float32
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.rate = dropout
        self.dropout = TokenDropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[Any, ...]) -> None:
        channels = input_shape[-1]
        check_heads(channels, self.num_heads)
        samples = self.num_heads * self.num_levels * self.num_points
        policy = self.dtype_policy
        self.sampling_offsets = linear(
            2 * samples,
            "sampling_offsets",
            policy,
            kernel_initializer="zeros",
            bias_initializer=OffsetStart(self.num_heads, self.num_levels, self.num_points),
        )
        self.attention_weights = linear(
            samples, "attention_weights", policy, kernel_initializer="zeros"
        )
        self.value_proj = linear(channels, "value_proj", policy)
        self.output_proj = linear(channels, "output_proj", policy)
        for layer in (
            self.sampling_offsets,
            self.attention_weights,
            self.value_proj,
            self.output_proj,
        ):
            layer.build(input_shape)

    def call(
        self,
        query: Tensor,
        memory: Tensor,
        references: Tensor,
        layout: TokenLayout,
        training: bool | None = False,
    ) -> Tensor:
        """Attends.

        Args:
            query: (B, Q, C), position included.
            memory: (B, N, C), the tokens looked at, without positions.
            references: (B, Q, L, 2) float32 x, y of 0..1 in each map, or (B, Q, L, 4) with width
                and height, in whose halves offsets are then measured; B may be 1.
            layout: of the tokens.
            training: whether numbers are dropped.

        Returns:
            (B, Q, C).
        """
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        channels, queries = query.shape[-1], ops.shape(query)[1]
        values = self.value_proj(memory)
        valid = layout.valid
        if valid is not None:
            # After the projection, so that its bias goes, too.
            values = ops.where(valid[..., None], values, ops.zeros((), values.dtype))
        values = ops.reshape(values, (-1, ops.shape(memory)[1], heads, channels // heads))
        offsets = ops.reshape(
            in_float32(self.sampling_offsets(query)), (-1, queries, heads, levels, points, 2)
        )
        weights = ops.reshape(
            in_float32(self.attention_weights(query)), (-1, queries, heads, levels * points)
        )
        weights = ops.reshape(ops.softmax(weights, axis=-1), (-1, queries, heads, levels, points))
        # For each image: TensorFlow 2.21 does not repeat every other of six axes at once.
        whole = (ops.shape(query)[0], *ops.shape(references)[1:])
        references = ops.broadcast_to(references, whole)[:, :, None, :, None]
        if references.shape[-1] == 2:
            offsets = offsets / layout.sizes[:, None]
        else:
            offsets = offsets * references[..., 2:] * (0.5 / points)
        sampled = deformable_attention(
            values, layout.shapes, references[..., :2] + offsets, weights
        )
        return self.dropout(self.output_proj(sampled), training=training)

    def compute_output_shape(self, query_shape: tuple, *others: Any) -> tuple:
        return query_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
            "dropout": self.rate,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableEncoderLayer(keras.layers.Layer):
    """Deformable self-attention and a feed-forward network, each added and then normalised.

    Args:
        num_heads: of the attention.
        num_levels: of the maps.
        num_points: of each head on each level.
        hidden: features inside the feed-forward network.
        dropout: of both parts.
        xavier: of the feed-forward network, see `token_attention.linear`.
    """

    def __init__(
        self,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        hidden: int = 1024,
        dropout: float = 0.0,
        xavier: str = "uniform",
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.hidden = hidden
        self.rate = dropout
        self.xavier = xavier
        policy = self.dtype_policy
        self.attention = DeformableAttention(
            *(num_heads, num_levels, num_points, dropout), name="attention", dtype=policy
        )
        self.attention_norm = token_norm("attention_norm", policy)
        self.feed_forward = FeedForward(hidden, dropout, xavier, name="feed_forward", dtype=policy)
        self.feed_forward_norm = token_norm("feed_forward_norm", policy)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        for layer in (
            self.attention,
            self.attention_norm,
            self.feed_forward,
            self.feed_forward_norm,
        ):
            layer.build(input_shape)

    def call(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        layout: TokenLayout,
        training: bool | None = False,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C).

        Args:
            tokens: of all levels.
            positions: (B, N, C) in the dtype of the tokens; B may be 1.
            references: (B, N, L, 2) float32, see `DeformableAttention`.
            layout: of the tokens.
            training: whether numbers are dropped.
        """
        found = self.attention(
            tokens + positions, tokens, references, layout=layout, training=training
        )
        tokens = self.attention_norm(tokens + found)
        return self.feed_forward_norm(tokens + self.feed_forward(tokens, training=training))

    def compute_output_shape(self, tokens_shape: tuple, *others: Any) -> tuple:
        return tokens_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
            "hidden": self.hidden,
            "dropout": self.rate,
            "xavier": self.xavier,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableEncoder(keras.layers.Layer):
    """Mixes the levels of a pyramid: the encoder of Deformable DETR and of Mask2Former's pixels.

    Args:
        num_layers: 0 passes the tokens on.
        num_heads: of the attention.
        num_levels: of the maps.
        num_points: of each head on each level.
        hidden: features inside the feed-forward networks.
        dropout: in every layer.
        xavier: of the feed-forward networks, see `token_attention.linear`.
        offset: of the sine positions: -0.5, or 0 in Mask2Former.
    """

    def __init__(
        self,
        num_layers: int = 6,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        hidden: int = 1024,
        dropout: float = 0.0,
        xavier: str = "uniform",
        offset: float = -0.5,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.hidden = hidden
        self.rate = dropout
        self.xavier = xavier
        self.offset = offset
        self.encoder_layers = [
            DeformableEncoderLayer(
                *(num_heads, num_levels, num_points, hidden, dropout, xavier),
                name=f"layer_{n}",
                dtype=self.dtype_policy,
            )
            for n in range(num_layers)
        ]

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Of the tokens, (B, N, C)."""
        self.level_embeds = self.add_weight(
            name="level_embeds",
            shape=(self.num_levels, input_shape[-1]),
            initializer=FixedNormal(1.0),
        )
        for layer in self.encoder_layers:
            layer.build(input_shape)

    def call(
        self, maps: list[Tensor], layout: TokenLayout, training: bool | None = False
    ) -> Tensor:
        """The tokens of all levels, mixed.

        Args:
            maps: L times (B, H_l, W_l, C), in the order of the levels.
            layout: of these maps.
            training: whether numbers are dropped.

        Returns:
            (B, N, C); `layout.split` makes maps of it.
        """
        tokens = ops.cast(as_tokens(maps), self.compute_dtype)
        embeds = in_float32(ops.convert_to_tensor(self.level_embeds))
        parts = layout.positions(tokens.shape[-1], self.offset)
        positions = ops.concatenate(
            [part + embeds[level] for level, part in enumerate(parts)], axis=1
        )
        positions = ops.cast(positions, self.compute_dtype)
        references = layout.on_levels(layout.centres)
        for layer in self.encoder_layers:
            tokens = layer(tokens, positions, references, layout=layout, training=training)
        return tokens

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
            "hidden": self.hidden,
            "dropout": self.rate,
            "xavier": self.xavier,
            "offset": self.offset,
        }
