"""Fusion time: how much of a network has run before maps of different scales first meet.

CEDNet's argument (introduction) is that detectors which put a light fusion module on a heavy
classification network fuse late, after most of their parameters. The rule for counting
is ours (see `fusion_time`), made from CEDNET.md without the text of the paper.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras

from keras_densepred.analysis.multiply_adds import check_fixed_size
from keras_densepred.layers.upsampling import BroadcastLike, NearestUpsample


@dataclasses.dataclass(frozen=True)
class FusionTime:
    """When a network first fuses scales.

    Attributes:
        layer: name of the layer that does.
        parameters_before: of the layers whose results it needs, without its own.
        parameters: of the network.
    """

    layer: str
    parameters_before: int
    parameters: int

    @property
    def share(self) -> float:
        """`parameters_before` of `parameters`, 0..1."""
        return self.parameters_before / self.parameters


@dataclasses.dataclass(frozen=True)
class _Map:
    """A tensor of the graph: the coarsest stride on the way to it, and the layers it depends on."""

    coarsest: int
    layers: int  # a bit for each layer


def fusion_time(model: keras.Model) -> FusionTime | None:
    """The share of a network's parameters that lies before its first fusion of scales.

    A layer fuses scales where one of the maps it takes has been at a coarser stride than another:
    an addition of C4 and the up-sampled C5, a concatenation of both, or a layer that takes a whole
    pyramid. So what counts is that coarse information enters a finer map. Joins on the way down
    (each strided residual block has one, and BiCSNet's long-range connections) do not count: their
    maps meet at the coarsest stride that any of them has seen. Nor do global means, which are no
    maps. A layer that works at several scales inside says so by an attribute `fuses_scales`.

    Before the fusion lie all layers whose results it needs, 1x1 convolutions in front of it
    included; of several first fusions the one with fewest such parameters counts. Parameters are
    all weights without norms' moving statistics, frozen ones included.

    Args:
        model: a functional model of channels_last images of a fixed size, from about 128 px so that
            no level has a single position: a backbone, or a backbone with its FPN or neck. Heads
            would count as parameters.

    Returns:
        The fusion time; None for a network that fuses no scales.

    Raises:
        ValueError: if the input size is not fixed.
    """
    check_fixed_size(model)
    search = _Search(model.inputs[0].shape[1])
    search.visit(model, [_Map(1, 0) for _ in model.inputs])
    total = sum(search.parameters)
    if not search.fusions:
        return None
    before, layer = min(
        (sum(n for bit, n in enumerate(search.parameters) if layers >> bit & 1), name)
        for name, layers in search.fusions
    )
    return FusionTime(layer, before, total)


class _Search:
    """Walks through a graph and finds the layers that fuse scales."""

    def __init__(self, image_height: int):
        self.image_height = image_height
        self.parameters: list[int] = []  # of each layer, by its bit
        self.fusions: list[tuple[str, int]] = []  # names, and what lies before
        self._bits: dict[int, int] = {}

    def visit(self, model: keras.Model, inputs: Sequence[_Map]) -> list[_Map]:
        """Follows the maps through a model, models inside it included."""
        graph = _graph_of(model)
        maps = {id(x): made for x, made in zip(graph.inputs, inputs, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                taken = [maps[id(x)] for x in node.arguments.keras_tensors]
                if hasattr(_graph_of(node.operation), "_nodes_by_depth"):
                    made = self.visit(node.operation, taken)
                else:
                    made = self._call(node, taken)
                maps.update(zip(map(id, node.outputs), made, strict=True))
        return [maps[id(x)] for x in graph.outputs]

    def _call(self, node, taken: list[_Map]) -> list[_Map]:
        layer = node.operation
        if isinstance(layer, (NearestUpsample, BroadcastLike)):
            taken = taken[:1]  # of the other map only the size is read
        before = 0
        for x in taken:
            before |= x.layers
        if len({x.coarsest for x in taken}) > 1 or getattr(layer, "fuses_scales", False):
            self.fusions.append((layer.name, before))
        layers = before | 1 << self._bit(layer)
        coarsest = max(x.coarsest for x in taken)
        return [_Map(max(coarsest, self._stride(x.shape)), layers) for x in node.outputs]

    def _bit(self, layer) -> int:
        if id(layer) not in self._bits:
            self._bits[id(layer)] = len(self.parameters)
            self.parameters.append(
                sum(
                    math.prod(weight.shape)
                    for weight in getattr(layer, "weights", ())
                    if not weight.name.startswith("moving_")
                )
            )
        return self._bits[id(layer)]

    def _stride(self, shape: tuple[int, ...]) -> int:
        """Of a map, rounded to a power of two; 1 for what is no map."""
        height = shape[1] if len(shape) == 4 else None
        if height is None or shape[1:3] == (1, 1):
            return 1
        return 2 ** round(math.log2(self.image_height / height))


def _graph_of(layer):
    """The layer, or the functional model that a `Sequential` runs as."""
    # Keras 3.15.1 has no public way to this, nor to the calls of a graph.
    return getattr(layer, "_functional", None) or layer
