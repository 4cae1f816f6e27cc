"""Queries that look at the part of the image where they last saw their object."""

from typing import Any

import keras
from keras import ops

from keras_densepred.layers.initializers import FanInUniform, FixedNormal
from keras_densepred.layers.sine_position import sine_positions
from keras_densepred.layers.token_attention import (
    FeedForward,
    TokenAttention,
    linear,
    token_norm,
)
from keras_densepred.layers.token_maps import as_tokens, in_float32
from keras_densepred.models.mask2former.centres import CentreQueries, ellipses, on_map
from keras_densepred.models.mask2former.pixel_decoder import LEVELS
from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.resize import resize_bilinear

Tensor = Any


def mask_logits(embeddings: Tensor, features: Tensor, places: Tensor | None = None) -> Tensor:
    """Products of each embedding with each position, and what the place of each adds.

    Args:
        embeddings: (B, N, width) float32.
        features: (B, h, w, width) float32.
        places: (B, N, 4) float32 of `centres.ellipses`; None: nothing is added.

    Returns:
        (B, N, h, w) float32.
    """
    _, height, width = ops.shape(features)[:3]
    rows = ops.reshape(features, (-1, height * width, features.shape[-1]))
    logits = ops.matmul(embeddings, ops.swapaxes(rows, 1, 2))
    logits = ops.reshape(logits, (-1, ops.shape(embeddings)[1], height, width))
    return logits if places is None else logits + on_map(places, (height, width))


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaskedDecoderLayer(keras.layers.Layer):
    """Masked attention to a map, self-attention, a feed-forward network; norms after each.

    "Masked-attention Mask Transformer", section 3.2.

    Args:
        num_heads: of both attentions.
        hidden: features inside the feed-forward network.
    """

    def __init__(self, num_heads: int = 8, hidden: int = 2048, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden = hidden
        policy = self.dtype_policy
        self.cross_attention, self.self_attention = (
            TokenAttention(num_heads, xavier="normal", name=name, dtype=policy)
            for name in ("cross_attention", "self_attention")
        )
        self.feed_forward = FeedForward(hidden, xavier="normal", name="feed_forward", dtype=policy)
        self.cross_attention_norm = token_norm("cross_attention_norm", policy)
        self.self_attention_norm = token_norm("self_attention_norm", policy)
        self.feed_forward_norm = token_norm("feed_forward_norm", policy)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        for layer in (
            self.cross_attention,
            self.cross_attention_norm,
            self.self_attention,
            self.self_attention_norm,
            self.feed_forward,
            self.feed_forward_norm,
        ):
            layer.build(input_shape)

    def call(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C).

        Args:
            queries: what they hold.
            positions: (1, Q, C), added where queries look.
            keys: (B, K, C) tokens of a map with their positions.
            values: (B, K, C) without.
            allowed: (B, Q, K) bool, where a query may look.
        """
        found = self.cross_attention(queries + positions, keys, values, allowed)
        queries = self.cross_attention_norm(queries + found)
        placed = queries + positions
        found = self.self_attention(placed, placed, queries)
        queries = self.self_attention_norm(queries + found)
        return self.feed_forward_norm(queries + self.feed_forward(queries))

    def compute_output_shape(self, queries_shape: tuple, *others: Any) -> tuple:
        return queries_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads, "hidden": self.hidden}


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaskDecoder(keras.layers.Layer):
    """Queries, the layers that refine them, and what they predict before and after each layer.

    Input: what `PixelDecoder` gives. Output, all float32:

    * `"class_logits"` (B, L, Q, C + 1), no object last, for the L = `num_layers` + 1 predictions;
    * `"mask_embeddings"` (B, L, Q, width);
    * `"mask_features"` (B, h, w, width): `mask_logits` of the two are the masks, which are not
      computed here but for the parts that the attention needs;
    * with `query_selection="centres"` also `"mask_places"` (B, L, Q, 4), which belong to them, and
      `"centre_logits"` (B, h, w).

    Args:
        num_classes: C.
        num_queries: Q; from centres, of maps with fewer positions, their number.
        num_layers: of the decoder.
        num_heads: of every attention.
        hidden: features inside the feed-forward networks.
        query_selection: `"learned"` or `"centres"`.
    """

    def __init__(
        self,
        num_classes: int,
        num_queries: int = 100,
        num_layers: int = 9,
        num_heads: int = 8,
        hidden: int = 2048,
        query_selection: str = "learned",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden = hidden
        self.query_selection = query_selection
        policy = self.dtype_policy
        self.decoder_layers = [
            MaskedDecoderLayer(num_heads, hidden, name=f"layer_{n}", dtype=policy)
            for n in range(num_layers)
        ]
        self.post_norm = token_norm("post_norm", policy)

    def build(self, input_shape: list[tuple[Any, ...]]) -> None:
        width = input_shape[0][-1]
        tokens = (None, None, width)
        embeddings = {"level_embed": LEVELS}
        if self.query_selection == "learned":
            names = ("query_feat", "query_embed")
            embeddings = {**dict.fromkeys(names, self.num_queries), **embeddings}
        for name, rows in embeddings.items():
            weight = self.add_weight(name=name, shape=(rows, width), initializer=FixedNormal(1.0))
            setattr(self, name, weight)

        def head(units: int, name: str) -> keras.layers.Dense:
            layer = linear(
                units,
                name,
                self.dtype_policy,
                kernel_initializer=FanInUniform(),
                bias_initializer=FanInUniform(width),
            )
            layer.build(tokens)
            return layer

        self.classes = head(self.num_classes + 1, "classes")
        self.mask_1, self.mask_2, self.mask_3 = (head(width, f"mask_{n}") for n in (1, 2, 3))
        if self.query_selection == "centres":
            self.centres = CentreQueries(self.num_queries, name="centres", dtype=self.dtype_policy)
            self.centres.build((None, None, None, width))
            self.places = linear(4, "places", self.dtype_policy, kernel_initializer="zeros")
            self.places.build(tokens)
        for layer in self.decoder_layers:
            layer.build(tokens)
        self.post_norm.build(tokens)

    def compute_output_spec(self, inputs: list[Any]) -> dict[str, Any]:
        """Told, for PyTorch would run the layer to learn it."""
        batch, *size, width = inputs[0].shape
        queries = self.num_queries
        if self.query_selection == "centres" and None not in size:
            queries = min(queries, size[0] * size[1])
        predictions = (batch, self.num_layers + 1, queries)
        shapes = {
            "class_logits": (*predictions, self.num_classes + 1),
            "mask_embeddings": (*predictions, width),
            "mask_features": (batch, *size, width),
        }
        if self.query_selection == "centres":
            shapes |= {"mask_places": (*predictions, 4), "centre_logits": (batch, *size)}
        return {key: keras.KerasTensor(shape, dtype="float32") for key, shape in shapes.items()}

    def call(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        features, *maps = inputs
        keys, values, reduced = [], [], []
        for level, x in enumerate(maps):
            shape = tuple(ops.shape(x)[1:3])
            positions = sine_positions(shape, None, x.shape[-1], 0.0)
            tokens = as_tokens([x]) + self.level_embed[level]
            values.append(tokens)
            keys.append(tokens + ops.cast(as_tokens([positions]), tokens.dtype))
            # Resizing and the product with embeddings are linear: what is resized here is width
            # channels once, in place of the masks of all queries for each layer.
            reduced.append(in_float32(ops.stop_gradient(resize_bilinear(features, shape))))
        outputs = {"mask_features": in_float32(features)}
        size = tuple(ops.shape(features)[1:3])
        if self.query_selection == "centres":
            outputs["centre_logits"], queries, positions, starts = self.centres(features)
        else:
            queries = ops.broadcast_to(
                ops.cast(self.query_feat, self.compute_dtype)[None],
                (ops.shape(features)[0], self.num_queries, features.shape[-1]),
            )
            positions = ops.cast(self.query_embed, self.compute_dtype)[None]
        logits: list[Tensor] = []
        embeddings: list[Tensor] = []
        places: list[Tensor] = []
        for number in range(self.num_layers + 1):
            if number:
                level = (number - 1) % LEVELS
                queries = self.decoder_layers[number - 1](
                    queries,
                    positions,
                    keys[level],
                    values[level],
                    _allowed(embeddings[-1], reduced[level], places[-1] if places else None),
                )
            normed = self.post_norm(queries)
            logits.append(in_float32(self.classes(normed)))
            hidden = ops.relu(self.mask_2(ops.relu(self.mask_1(normed))))
            embeddings.append(in_float32(self.mask_3(hidden)))
            if self.query_selection == "centres":
                places.append(ellipses(in_float32(self.places(hidden)), starts, size))
        outputs["class_logits"] = ops.stack(logits, axis=1)
        outputs["mask_embeddings"] = ops.stack(embeddings, axis=1)
        if places:
            outputs["mask_places"] = ops.stack(places, axis=1)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_queries": self.num_queries,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden": self.hidden,
            "query_selection": self.query_selection,
        }


def _allowed(embeddings: Tensor, features: Tensor, places: Tensor | None) -> Tensor:
    """Where each query may look: at its mask, or everywhere if that is empty (section 3.2.1).

    A query with a place, whose object can be smaller than a position, looks at its likeliest one.

    Args:
        embeddings: (B, Q, width) float32.
        features: (B, h, w, width) float32, of the size of the map that is looked at.
        places: (B, Q, 4) float32, or None.

    Returns:
        (B, Q, h * w) bool.
    """
    height, width = ops.shape(features)[1:3]
    if places is not None:
        places = ops.stop_gradient(places)
    masks = mask_logits(ops.stop_gradient(embeddings), features, places)
    masks = ops.reshape(masks, (-1, ops.shape(masks)[1], height * width))
    inside = masks >= 0.0
    if places is not None:
        numbers = ops.arange(ops.shape(masks)[-1], dtype="int32")
        likeliest = argmax(masks, axis=-1)
        return ops.logical_or(inside, numbers == likeliest[..., None])
    return ops.logical_or(inside, ops.logical_not(ops.any(inside, axis=-1, keepdims=True)))
