"""Rematerialisation: blocks are computed again in the backward pass, which saves memory."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_densepred.layers.stateless import Stateless


class Rematerialization:
    """Mixin, before a functional model: chains of layers keep only their input for the gradient.

    Such a chain, or run, is made of layers, each with one input and one reader, that only compute
    (`layers.stateless.Stateless`): in a CEDNet NeXt block the depthwise convolution, the norm, both
    matrix products with the GELU between them, and the layer scale. Layers that draw random
    numbers or keep statistics are never part of one, so nothing is drawn or counted twice.

    `keras.RematScope` (keras 3.15.1) does this for single layers, each of which still keeps its
    input: CEDNet takes as much memory with it as without.
    """

    _rematerialized = False

    def rematerialize(self, enabled: bool = True) -> None:
        """Turns rematerialisation on or off for this object; it is not saved with the model.

        Call it before the first training step, which may be compiled once and for all.

        Args:
            enabled: whether runs are computed again in the backward pass.
        """
        self._rematerialized = enabled

    def is_rematerialized(self) -> bool:
        """Whether runs are computed again in the backward pass."""
        return self._rematerialized

    # Where `call` of a functional model calls layer after layer (keras 3.15.1). There is no public
    # place in which layers could be called together.
    def _run_through_graph(
        self, inputs: Any, operation_fn: Callable = lambda operation: operation, call_fn: Any = None
    ) -> Any:
        symbolic = any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs))
        if symbolic or call_fn is not None or not self.is_rematerialized():
            return super()._run_through_graph(inputs, operation_fn, call_fn)  # type: ignore[misc]
        inside = _inside_of_runs(self)

        def call(prepared: tuple, *args, **kwargs):
            operation, function = prepared
            waiting = args[0] if args and isinstance(args[0], _Waiting) else None
            if id(operation) in inside:
                start, functions = (waiting.start, waiting.functions) if waiting else (args[0], ())
                return _Waiting(start, (*functions, function))
            if waiting:
                return keras.remat(_chain((*waiting.functions, function)))(waiting.start)
            return function(*args, **kwargs)

        return super()._run_through_graph(  # type: ignore[misc]
            inputs, lambda operation: (operation, operation_fn(operation)), call
        )


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """Stands for the result of a run that is called as a whole when its last layer is reached."""

    start: Any
    functions: tuple[Callable, ...]


def _chain(functions: tuple[Callable, ...]) -> Callable:
    def run(x):
        for function in functions:
            x = function(x)
        return x

    return run


def _inside_of_runs(model: Any) -> set[int]:
    """Ids of the layers that another one of their run follows."""
    readers = Counter(
        id(tensor)
        for operation in model.operations
        for node in operation._inbound_nodes
        for tensor in node.input_tensors
    )
    readers.update(id(tensor) for tensor in model.outputs)
    inside = set()
    for operation in model.operations:
        before = _only_input(operation)
        if before is None or readers[id(before)] != 1:
            continue
        producer = before._keras_history.operation
        if _only_input(producer) is not None:
            inside.add(id(producer))
    return inside


def _only_input(operation: Any) -> Any:
    """The one tensor that a layer which may be part of a run reads; None for other layers."""
    nodes = operation._inbound_nodes
    if not isinstance(operation, Stateless) or len(nodes) != 1:
        return None
    node = nodes[0]
    if len(node.input_tensors) != 1 or len(node.outputs) != 1 or node.arguments.kwargs:
        return None
    return node.input_tensors[0]
