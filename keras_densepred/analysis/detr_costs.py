"""What Deformable DETR costs, as its papers count: with mmcv's counter.

Besides what `mmcv_costs` says, it does not see the projections and products of the attention
between queries, what deformable attention samples, and position embeddings.
"""

import math
from typing import Any

import keras

from keras_densepred.analysis import mmcv_costs
from keras_densepred.analysis.multiply_adds import graph_nodes
from keras_densepred.models.detr.model import DeformableDETR
from keras_densepred.models.detr.transformer import DetectionTransformer


class TransformerCost(keras.layers.Layer):
    """Stands for the transformer, whose weights it holds, on the levels of a pyramid."""

    def __init__(self, transformer: DetectionTransformer):
        super().__init__(name="transformer_cost")
        self.transformer = transformer
        self.built = True

    def call(self, levels: list[Any]) -> Any:
        return levels[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        self.tokens = sum(math.prod(shape[1:-1]) for shape in input_shape)
        return input_shape[0]

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Of linear layers, without those of the attention between queries."""
        return sum(count * _kernels(layer) for layer, count in self._calls())

    def elements(self) -> int:
        """Of ReLUs once, of norms twice."""
        total = 0
        for layer, count in self._calls():
            if isinstance(layer, keras.layers.LayerNormalization):
                total += 2 * count * layer.gamma.shape[0]
            elif layer.name in ("expand", "box_1", "box_2", "position_1"):
                total += count * layer.units
        return total

    def _calls(self) -> list[tuple[keras.layers.Layer, int]]:
        """Layers that are counted, and on how many tokens or queries each is called in all."""
        net, tokens = self.transformer, self.tokens
        queries = net.num_queries
        calls: list[tuple[keras.layers.Layer, int]] = []
        for layer in net.encoder.encoder_layers:
            calls += [(inner, tokens) for inner in layer._flatten_layers()]
        for layer in net.decoder:
            hidden = set(layer.self_attention._flatten_layers())
            calls += [
                (inner, tokens if inner is layer.cross_attention.value_proj else queries)
                for inner in layer._flatten_layers()
                if inner not in hidden
            ]
        predicting = [net.heads[min(n, net.decoder_heads - 1)] for n in range(net.decoder_layers)]
        calls += [(part, queries) for head in predicting for part in head._flatten_layers()]
        if net.query_selection == "learned":
            return [*calls, (net.reference_points, queries)]
        calls += [(part, tokens) for part in net.heads[-1]._flatten_layers()]
        calls += [(part, tokens) for part in net.proposals._flatten_layers()]
        if net.query_selection == "mixed":
            positions = (net.position_1, net.position_2)
            return calls + [(part, queries * net.decoder_layers) for part in positions]
        return [*calls, (net.pos_trans, queries), (net.pos_trans_norm, queries)]


def _kernels(layer: keras.layers.Layer) -> int:
    return math.prod(layer.kernel.shape) if isinstance(layer, keras.layers.Dense) else 0


def countable(detector: DeformableDETR) -> keras.Model:
    """A functional model with the parameters and the arithmetic of a detector.

    Args:
        detector: on a backbone with a fixed image size.

    Returns:
        The model; it serves for counting only.
    """
    levels = list(detector.backbone.output.values())
    cost = TransformerCost(detector.transformer)
    return keras.Model(detector.backbone.input, cost(levels))


def count_as_mmcv(detector: DeformableDETR) -> int:
    """All that mmcv's counter counts of one image, see the module.

    Args:
        detector: on a backbone of CEDNet's or ConvNeXt's blocks with a fixed image size.

    Raises:
        ValueError: if the image size is not fixed.
    """
    model = countable(detector)
    transformers = (node.operation for node in graph_nodes(model))
    return mmcv_costs.count_as_mmcv(model) + sum(
        layer.elements() for layer in transformers if isinstance(layer, TransformerCost)
    )
