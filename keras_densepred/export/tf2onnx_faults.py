"""Faults of tf2onnx (1.17) that are mended here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


@contextlib.contextmanager
def shapes_of_squares() -> Iterator[None]:
    """Within it tf2onnx knows the shape of a square that it moves before a transposition.

    It moves the square and keeps the transposed shape. Where a map is one cell high it then takes
    the next transposition for a reshape: files with layer norms on such maps did not load.
    """
    if keras.config.backend() != "tensorflow":
        yield
        return
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    move = getattr(TransposeOptimizer, "_mul_handler", None)
    if move is None:  # another version, which may have no such fault
        yield
        return

    def moved(self: Any, transposition: Any, product: Any) -> bool:
        is_moved = move(self, transposition, product)
        if is_moved and len(set(product.input)) == 1:
            self._g.set_shape(product.output[0], self._g.get_shape(product.input[0]))
        return bool(is_moved)

    TransposeOptimizer._mul_handler = moved
    try:
        yield
    finally:
        TransposeOptimizer._mul_handler = move


def drop_constants(graph: Any) -> None:
    """What a loop carries from round to round without a change, its body then reads from outside.

    tf2onnx carries everything that a body reads. OpenVINO (2026.4.1) does not read such loops.

    Args:
        graph: `onnx.GraphProto`, changed in place.
    """
    for node in graph.node:
        bodies = [a.g for a in node.attribute if a.name == "body"]
        if node.op_type != "Loop" or not bodies:
            continue
        (body,) = bodies
        carried = range(len(node.input) - 2)  # inputs are trip count, condition, what is carried
        same = [i for i in carried if body.input[i + 2].name == body.output[i + 1].name]
        inside = {body.input[i + 2].name: node.input[i + 2] for i in same}
        after = {node.output[i]: node.input[i + 2] for i in same}
        for i in reversed(same):
            del node.input[i + 2], node.output[i], body.input[i + 2], body.output[i + 1]
        _rename(body, inside)
        _rename(graph, after)
        drop_constants(body)


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Reads other tensors, by their names, in a graph and those inside of it."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
    for output in graph.output:
        output.name = names.get(output.name, output.name)
