"""Boxes that the encoder proposes, of which queries are made."""

from typing import Any

import keras
from keras import ops

from keras_densepred.layers.initializers import FanInUniform
from keras_densepred.layers.token_attention import linear, token_norm
from keras_densepred.layers.token_maps import TokenLayout
from keras_densepred.models.detr.decoder import QueryHead, logit
from keras_densepred.ops.rows import gather_rows, highest

Tensor = Any

SIDE = 0.05  # of a proposal on the finest level, in images; it doubles from level to level
MARGIN = 0.01  # proposals whose centre or side is closer to 0 or 1 are none
FAR = 100.0  # logit of what is none: its sigmoid is 1 and has no gradient, like infinity's


@keras.saving.register_keras_serializable(package="keras_densepred")
class EncoderProposals(keras.layers.Layer):
    """One box for each token of the encoder; the best are where queries start.

    "Deformable DETR", section 4.2 ("two-stage") and appendix A.4.

    Args:
        by_class: whether the best are those of the highest score of any class (DINO); else the
            first class stands for all objects.
    """

    def __init__(self, by_class: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.by_class = by_class

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.enc_output = linear_of(input_shape, input_shape[-1], "enc_output", self.dtype_policy)
        self.enc_output_norm = token_norm("enc_output_norm", self.dtype_policy)
        self.enc_output_norm.build(input_shape)

    def call(
        self, memory: Tensor, layout: TokenLayout, head: QueryHead, num_queries: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Proposes.

        Args:
            memory: (B, N, width) tokens of the encoder.
            layout: of the tokens.
            head: what tells class and box of a token.
            num_queries: Q; with fewer tokens, their number.

        Returns:
            Of all tokens: logits (B, N, C) and boxes (B, N, 4) centre x, centre y, width, height
            in 0..1. Of the best Q, without gradient: logits of their boxes (B, Q, 4). All float32.
        """
        start, used = self._start(layout)
        memory = ops.where(used[..., None], memory, ops.zeros((), memory.dtype))
        logits, changes = head(self.enc_output_norm(self.enc_output(memory)))
        box_logits = changes + start
        score = ops.max(logits, axis=-1) if self.by_class else logits[..., 0]
        count = score.shape[1]
        count = num_queries if count is None else min(num_queries, count)
        _, best = highest(ops.stop_gradient(score), count)
        chosen = gather_rows(box_logits, best)
        return logits, ops.sigmoid(box_logits), ops.stop_gradient(chosen)

    def _start(self, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Logits (B, N, 4) of the boxes where nothing is changed; whether they are any (B, N)."""
        centres = layout.centres
        sides = ops.concatenate(
            [
                ops.full((height * width,), SIDE * 2.0**level, "float32")
                for level, (height, width) in enumerate(layout.shapes)
            ]
        )
        sizes = ops.broadcast_to(sides[None, :, None], ops.shape(centres))
        boxes = ops.concatenate([centres, sizes], axis=-1)
        used = ops.all(ops.logical_and(boxes > MARGIN, boxes < 1.0 - MARGIN), axis=-1)
        if layout.valid is not None:
            used = ops.logical_and(used, layout.valid)
        return ops.where(used[..., None], logit(boxes), FAR), used

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "by_class": self.by_class}


def linear_of(
    input_shape: tuple[Any, ...], units: int, name: str, dtype: Any
) -> keras.layers.Dense:
    """A built linear layer, started as those outside of the attention."""
    layer = linear(units, name, dtype, bias_initializer=FanInUniform(input_shape[-1]))
    layer.build(input_shape)
    return layer
