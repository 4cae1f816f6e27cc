"""The transformer of Deformable DETR, from the maps of a pyramid to boxes and classes of queries.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (ICLR 2021),
as MMDetection 2.28 builds it; queries of kind "mixed" and boxes that look forward twice from Zhang
et al., "DINO: DETR with Improved DeNoising Anchor Boxes" (ICLR 2023), sections 3.4 and 3.5.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.deformable_attention import DeformableEncoder
from keras_densepred.layers.initializers import FixedNormal
from keras_densepred.layers.sine_position import sine_embedding
from keras_densepred.layers.token_attention import linear, token_norm
from keras_densepred.layers.token_maps import TokenLayout, in_float32
from keras_densepred.models.detr.decoder import DeformableDecoderLayer, QueryHead, moved
from keras_densepred.models.detr.proposals import EncoderProposals, linear_of

Tensor = Any

SELECTIONS = ("learned", "two_stage", "mixed")


@keras.saving.register_keras_serializable(package="keras_densepred")
class DetectionTransformer(keras.layers.Layer):
    """Encoder, queries, decoder and heads; arguments as those of `DeformableDETR`.

    Args:
        num_classes: C.
        num_levels: L, of the pyramid.
        num_queries: Q.
        num_heads: of every attention.
        num_points: of each head on each level.
        encoder_layers: of the encoder.
        decoder_layers: of the decoder.
        feed_forward_width: features inside the feed-forward networks.
        dropout: in all layers.
        box_refine: whether each layer of the decoder moves the boxes of the one before.
        query_selection: `"learned"`, `"two_stage"` or `"mixed"`.
    """

    def __init__(
        self,
        num_classes: int,
        num_levels: int = 4,
        num_queries: int = 300,
        num_heads: int = 8,
        num_points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed_forward_width: int = 1024,
        dropout: float = 0.1,
        box_refine: bool = False,
        query_selection: str = "learned",
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_classes = num_classes
        self.num_levels = num_levels
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.num_points = num_points
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.feed_forward_width = feed_forward_width
        self.rate = dropout
        self.query_selection = query_selection
        is_mixed = query_selection == "mixed"
        self.box_refine = box_refine or is_mixed
        policy = self.dtype_policy
        settings = (num_heads, num_levels, num_points, feed_forward_width, dropout)
        self.encoder = DeformableEncoder(encoder_layers, *settings, name="encoder", dtype=policy)
        self.decoder = [
            DeformableDecoderLayer(*settings, name=f"decoder_{n}", dtype=policy)
            for n in range(decoder_layers)
        ]
        # One for each layer whose boxes differ in what they are measured from, and the encoder's.
        own_heads = self.box_refine and not is_mixed
        count = decoder_layers if own_heads else 1
        self.decoder_heads = count
        if query_selection != "learned" and self.box_refine:
            count += 1
        self.heads = [
            QueryHead(
                num_classes,
                narrow=query_selection == "learned" and n == 0,
                name=f"head_{n}",
                dtype=policy,
            )
            for n in range(count)
        ]
        if query_selection != "learned":
            self.proposals = EncoderProposals(is_mixed, name="proposals", dtype=policy)

    def build(self, input_shape: Any) -> None:
        """Of a map, (B, H, W, width), or of all."""
        first = input_shape[0] if isinstance(input_shape, list) else input_shape
        tokens = (None, None, first[-1])
        width, policy = tokens[-1], self.dtype_policy
        layers: list[keras.layers.Layer] = [self.encoder, *self.decoder, *self.heads]
        for layer in layers:
            layer.build(tokens)
        if self.query_selection == "learned":
            self.query_embedding = self._embedding("query_embedding", 2 * width)
            self.reference_points = linear(2, "reference_points", policy)
            self.reference_points.build(tokens)
            return
        self.proposals.build(tokens)
        wide = (None, None, 2 * width)
        if self.query_selection == "two_stage":
            self.pos_trans = linear_of(wide, 2 * width, "pos_trans", policy)
            self.pos_trans_norm = token_norm("pos_trans_norm", policy)
            self.pos_trans_norm.build(wide)
        else:
            self.query_content = self._embedding("query_content", width)
            self.position_1 = linear_of(wide, width, "position_1", policy)
            self.position_2 = linear_of(tokens, width, "position_2", policy)

    def _embedding(self, name: str, width: int) -> keras.Variable:
        return self.add_weight(
            name=name, shape=(self.num_queries, width), initializer=FixedNormal(1.0)
        )

    def call(
        self,
        maps: list[Tensor],
        image_sizes: Tensor | None = None,
        canvas: tuple[Any, Any] | None = None,
        training: bool | None = False,
    ) -> dict[str, Tensor]:
        """Predicts.

        Args:
            maps: L times (B, H_l, W_l, width), finest first.
            image_sizes: (B, 2) int32, height and width in pixels of what is image, in the top left
                of the canvas; None for all of it.
            canvas: height and width of the padded images; needed with `image_sizes`.
            training: whether numbers are dropped.

        Returns:
            `"logits"` (B, layers, Q, C) and `"boxes"` (B, layers, Q, 4), of every layer of the
            decoder: centre x, centre y, width, height in 0..1 of what is image. With queries of
            the encoder also its own, of every token: `"encoder_logits"` (B, N, C) and
            `"encoder_boxes"` (B, N, 4). All float32.
        """
        layout = TokenLayout.of(maps, image_sizes, canvas)
        memory = self.encoder(maps, layout=layout, training=training)
        outputs: dict[str, Tensor] = {}
        if self.query_selection == "learned":
            queries, positions, references = self._learned(memory)
        else:
            logits, boxes, chosen = self.proposals(
                memory, layout=layout, head=self.heads[-1], num_queries=self.num_queries
            )
            outputs = {"encoder_logits": logits, "encoder_boxes": boxes}
            references = ops.sigmoid(chosen)
            queries, positions = self._of_boxes(references, ops.shape(memory)[0])
        logits, boxes = [], []
        measured_from = references
        for number, layer in enumerate(self.decoder):
            if self.query_selection == "mixed":
                positions = self._positions_of(references)
            queries = layer(
                queries,
                positions,
                memory,
                layout.on_levels(references),
                layout=layout,
                training=training,
            )
            classes, changes = self.heads[min(number, self.decoder_heads - 1)](queries)
            logits.append(classes)
            boxes.append(moved(changes, measured_from))
            if self.box_refine:
                refined = moved(changes, references)
                references = ops.stop_gradient(refined)
                # DINO looks forward twice: the next layer's loss moves this layer's box, too.
                measured_from = refined if self.query_selection == "mixed" else references
        return {"logits": ops.stack(logits, axis=1), "boxes": ops.stack(boxes, axis=1), **outputs}

    def _learned(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Content and position (B, Q, width), and reference points (B, Q, 2) float32."""
        width, batch = memory.shape[-1], ops.shape(memory)[0]
        embedding = ops.convert_to_tensor(self.query_embedding)[None]
        embedding = ops.cast(embedding, self.compute_dtype)
        points = ops.sigmoid(in_float32(self.reference_points(embedding[..., :width])))
        embedding = _of_all_images(embedding, batch)
        return embedding[..., width:], embedding[..., :width], _of_all_images(points, batch)

    def _of_boxes(self, boxes: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Content and position (B, Q, width) of queries that start at boxes."""
        if self.query_selection == "mixed":
            content = ops.convert_to_tensor(self.query_content)[None, : boxes.shape[1]]
            return _of_all_images(ops.cast(content, self.compute_dtype), batch), None
        embedding = self._sine_of(boxes, (0, 1, 2, 3))
        embedding = self.pos_trans_norm(self.pos_trans(embedding))
        width = embedding.shape[-1] // 2
        return embedding[..., width:], embedding[..., :width]

    def _positions_of(self, boxes: Tensor) -> Tensor:
        embedding = self._sine_of(boxes, (1, 0, 2, 3))
        return self.position_2(ops.relu(self.position_1(embedding)))

    def _sine_of(self, boxes: Tensor, order: tuple[int, ...]) -> Tensor:
        """(B, Q, 2 width): sines and cosines of the four numbers of a box, in this order."""
        features = self.decoder[0].self_attention.query_proj.units // 2
        parts = [sine_embedding(boxes[..., i] * (2.0 * math.pi), features) for i in order]
        return ops.cast(ops.concatenate(parts, axis=-1), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_levels": self.num_levels,
            "num_queries": self.num_queries,
            "num_heads": self.num_heads,
            "num_points": self.num_points,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "feed_forward_width": self.feed_forward_width,
            "dropout": self.rate,
            "box_refine": self.box_refine,
            "query_selection": self.query_selection,
        }


def _of_all_images(values: Tensor, batch: Any) -> Tensor:
    """(1, N, ...) -> (B, N, ...), by which exported programs know what B is."""
    return ops.broadcast_to(values, (batch, *values.shape[1:]))
