"""Layers of the decoder: queries look at each other, then at the image; and what they tell."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.layers.deformable_attention import DeformableAttention
from keras_densepred.layers.initializers import FanInUniform
from keras_densepred.layers.token_attention import (
    FeedForward,
    TokenAttention,
    linear,
    token_norm,
)
from keras_densepred.layers.token_maps import TokenLayout, in_float32

Tensor = Any

CLASS_PRIOR = 0.01  # probability that every class starts with
NARROW = -2.0  # logit of width and height that boxes start with: 0.119 of the image


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeformableDecoderLayer(keras.layers.Layer):
    """Self-attention, deformable attention to the image, a feed-forward network; norms after each.

    "Deformable DETR", section 4.1.

    Args:
        num_heads: of both attentions.
        num_levels: of the maps.
        num_points: of each head on each level.
        hidden: features inside the feed-forward network.
        dropout: of all parts.
    """

    def __init__(
        self,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        hidden: int = 1024,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.hidden = hidden
        self.rate = dropout
        policy = self.dtype_policy
        self.self_attention = TokenAttention(
            num_heads, dropout, name="self_attention", dtype=policy
        )
        self.self_attention_norm = token_norm("self_attention_norm", policy)
        self.cross_attention = DeformableAttention(
            *(num_heads, num_levels, num_points, dropout), name="cross_attention", dtype=policy
        )
        self.cross_attention_norm = token_norm("cross_attention_norm", policy)
        self.feed_forward = FeedForward(hidden, dropout, name="feed_forward", dtype=policy)
        self.feed_forward_norm = token_norm("feed_forward_norm", policy)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        for layer in (
            self.self_attention,
            self.self_attention_norm,
            self.cross_attention,
            self.cross_attention_norm,
            self.feed_forward,
            self.feed_forward_norm,
        ):
            layer.build(input_shape)

    def call(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: Tensor,
        references: Tensor,
        layout: TokenLayout,
        training: bool | None = False,
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C).

        Args:
            queries: what they hold.
            positions: (B, Q, C), added where queries look.
            memory: (B, N, C) tokens of the encoder.
            references: (B, Q, L, 2 or 4) float32, see `DeformableAttention`.
            layout: of the tokens.
            training: whether numbers are dropped.
        """
        placed = queries + positions
        found = self.self_attention(placed, placed, queries, training=training)
        queries = self.self_attention_norm(queries + found)
        found = self.cross_attention(
            queries + positions, memory, references, layout=layout, training=training
        )
        queries = self.cross_attention_norm(queries + found)
        return self.feed_forward_norm(queries + self.feed_forward(queries, training=training))

    def compute_output_shape(self, queries_shape: tuple, *others: Any) -> tuple:
        return queries_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
            "hidden": self.hidden,
            "dropout": self.rate,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class QueryHead(keras.layers.Layer):
    """Class logits and the change of a box, of each query.

    Args:
        num_classes: C.
        narrow: whether width and height start at 0.119 of the image where nothing is added.
    """

    def __init__(self, num_classes: int, narrow: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.narrow = narrow

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        policy = self.dtype_policy
        prior = -math.log((1.0 - CLASS_PRIOR) / CLASS_PRIOR)
        self.classes = linear(
            self.num_classes,
            "classes",
            policy,
            kernel_initializer=FanInUniform(),
            bias_initializer=keras.initializers.Constant(prior),
        )
        self.box_1, self.box_2 = (
            linear(
                width,
                f"box_{n}",
                policy,
                kernel_initializer=FanInUniform(),
                bias_initializer=FanInUniform(width),
            )
            for n in (1, 2)
        )
        self.box_3 = linear(
            4, "box_3", policy, kernel_initializer="zeros", bias_initializer=self._box_start
        )
        for layer in self._parts():
            layer.build(input_shape)

    def _parts(self) -> tuple[keras.layers.Dense, ...]:
        return self.classes, self.box_1, self.box_2, self.box_3

    def _box_start(self, shape: Any, dtype: Any = None) -> Tensor:
        size = NARROW if self.narrow else 0.0
        return ops.convert_to_tensor(np.array([0.0, 0.0, size, size], "float32"), dtype=dtype)

    def call(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, width) -> logits (B, Q, C) and changes of box logits (B, Q, 4), both float32."""
        hidden = ops.relu(self.box_2(ops.relu(self.box_1(queries))))
        return in_float32(self.classes(queries)), in_float32(self.box_3(hidden))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "narrow": self.narrow,
        }


def logit(probabilities: Tensor) -> Tensor:
    """The inverse of a sigmoid, of numbers clipped to 1e-5 from 0 and from 1."""
    inside = ops.clip(probabilities, 0.0, 1.0)
    return ops.log(ops.maximum(inside, 1e-5) / ops.maximum(1.0 - inside, 1e-5))


def moved(changes: Tensor, references: Tensor) -> Tensor:
    """Boxes from changes of reference points or boxes.

    Args:
        changes: (B, Q, 4) float32 logits.
        references: (B, Q, 2) x, y or (B, Q, 4) with width and height, in 0..1.

    Returns:
        (B, Q, 4) float32 centre x, centre y, width, height in 0..1.
    """
    start = logit(references)
    if references.shape[-1] == 2:
        start = ops.concatenate([start, ops.zeros_like(start)], axis=-1)
    return ops.sigmoid(changes + start)
