"""Attention between tokens and what follows it in the transformers of DETR and Mask2Former."""

from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv import Pointwise
from keras_densepred.layers.initializers import FanInUniform, XavierNormal, XavierUniform
from keras_densepred.layers.norm import LayerNorm
from keras_densepred.layers.residual import ReplicaSeedGenerator
from keras_densepred.layers.token_maps import in_float32

Tensor = Any

EPSILON = 1e-5  # of the layer norms: PyTorch's default
_XAVIER = {"uniform": XavierUniform, "normal": XavierNormal}


def linear(units: int, name: str, dtype: Any, xavier: str = "uniform", **kwargs: Any) -> Pointwise:
    """A linear layer as transformers start it.

    Args:
        units: features of the result.
        name: of the layer.
        dtype: dtype policy.
        xavier: `"uniform"` (DETR) or `"normal"` (Mask2Former).
        **kwargs: further arguments of `keras.layers.Dense`.
    """
    kwargs.setdefault("kernel_initializer", _XAVIER[xavier]())
    return Pointwise(units, name=name, dtype=dtype, **kwargs)


def token_norm(name: str, dtype: Any) -> LayerNorm:
    """The layer norm that follows each part of a transformer's layer."""
    return LayerNorm(EPSILON, name=name, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_densepred")
class TokenDropout(keras.layers.Layer):
    """Dropout that draws other numbers on every replica.

    Args:
        rate: probability in [0, 1) that a number becomes 0.
    """

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"`rate` (`dropout`) is {rate}; give a number from 0 to below 1.")
        self.rate = rate
        self.seed_generator = ReplicaSeedGenerator() if rate else None
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = False) -> Tensor:
        """Any shape; the same where it is not `training`."""
        if not training or not self.rate:
            return inputs
        return keras.random.dropout(inputs, self.rate, seed=self.seed_generator)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="keras_densepred")
class TokenAttention(keras.layers.Layer):
    """Multi-head attention ("Attention Is All You Need", section 3.2).

    Query, key and value start as one (C, 3C) matrix of PyTorch's `MultiheadAttention` would.

    Args:
        num_heads: must divide the channels.
        dropout: of the attention's probabilities and of the result.
        xavier: see `linear`.

    Raises:
        ValueError: if the channels are no multiple of `num_heads`.
    """

    def __init__(
        self, num_heads: int = 8, dropout: float = 0.0, xavier: str = "uniform", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.rate = dropout
        self.xavier = xavier
        self.dropout = TokenDropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[Any, ...]) -> None:
        channels = input_shape[-1]
        check_heads(channels, self.num_heads)
        for name in ("query", "key", "value", "output"):
            copies = 1 if name == "output" else 3
            layer = linear(
                channels,
                f"{name}_proj",
                self.dtype_policy,
                kernel_initializer=_XAVIER[self.xavier](copies=copies),
            )
            layer.build(input_shape)
            setattr(self, f"{name}_proj", layer)

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None = None,
        training: bool | None = False,
    ) -> Tensor:
        """Attends.

        Args:
            query: (B, Q, C), position included.
            key: (B, K, C), position included.
            value: (B, K, C).
            allowed: (B, Q, K) bool, what a query may look at, something at least; None for all.
            training: whether numbers are dropped.

        Returns:
            (B, Q, C).
        """
        channels = query.shape[-1]
        size = channels // self.num_heads

        def heads(x: Tensor) -> Tensor:
            x = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads, size))
            return ops.transpose(x, (0, 2, 1, 3))

        q, k, v = (
            heads(layer(x))
            for layer, x in (
                (self.query_proj, query),
                (self.key_proj, key),
                (self.value_proj, value),
            )
        )
        logits = in_float32(ops.matmul(q * size**-0.5, ops.swapaxes(k, -1, -2)))
        if allowed is not None:
            logits = ops.where(allowed[:, None], logits, -1e9)
        shares = ops.cast(ops.softmax(logits, axis=-1), v.dtype)
        mixed = ops.matmul(self.dropout(shares, training=training), v)
        mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, ops.shape(query)[1], channels))
        return self.dropout(self.output_proj(mixed), training=training)

    def compute_output_shape(self, query_shape: tuple, *others: Any) -> tuple:
        return query_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.rate,
            "xavier": self.xavier,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class FeedForward(keras.layers.Layer):
    """Two linear layers with a ReLU between, on each token.

    Args:
        hidden: features between the two.
        dropout: after each of the two.
        xavier: see `linear`.
    """

    def __init__(
        self, hidden: int = 1024, dropout: float = 0.0, xavier: str = "uniform", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.rate = dropout
        self.xavier = xavier
        self.dropout = TokenDropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[Any, ...]) -> None:
        channels = input_shape[-1]

        def layer(units: int, name: str, fan_in: int) -> Pointwise:
            start = FanInUniform(fan_in)
            return linear(units, name, self.dtype_policy, self.xavier, bias_initializer=start)

        self.expand = layer(self.hidden, "expand", channels)
        self.expand.build(input_shape)
        self.reduce = layer(channels, "reduce", self.hidden)
        self.reduce.build((*input_shape[:-1], self.hidden))

    def call(self, tokens: Tensor, training: bool | None = False) -> Tensor:
        """(B, N, C) -> (B, N, C), without what is added to it."""
        hidden = self.dropout(ops.relu(self.expand(tokens)), training=training)
        return self.dropout(self.reduce(hidden), training=training)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden": self.hidden,
            "dropout": self.rate,
            "xavier": self.xavier,
        }


def check_heads(channels: int, num_heads: int) -> None:
    """Raises ValueError unless the channels divide into the heads."""
    if num_heads < 1 or channels % num_heads:
        raise ValueError(
            f"{channels} channels do not divide into `num_heads` {num_heads}: choose a divisor."
        )
