"""Loops of ONNX graphs that carry what no round changes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from keras_densepred.export.tf2onnx_faults import drop_constants
from tools.timing.onnx_files import runner

pytestmark = pytest.mark.backend_free


def value(name, kind=TensorProto.FLOAT, shape=()):
    return helper.make_tensor_value_info(name, kind, shape)


def doubled_rounds():
    """Adds a step, carried and not changed, three times; so does a loop inside, twice a round."""

    def loop(rounds, prefix, start, step, inside):
        body = helper.make_graph(
            [
                helper.make_node("Identity", [f"{prefix}go"], [f"{prefix}goes"]),
                *inside,
                helper.make_node("Add", [f"{prefix}sum", f"{prefix}step"], [f"{prefix}more"]),
            ],
            f"{prefix}body",
            [
                value(f"{prefix}number", TensorProto.INT64),
                value(f"{prefix}go", TensorProto.BOOL),
                value(f"{prefix}step"),
                value(f"{prefix}start"),
            ],
            [
                value(f"{prefix}goes", TensorProto.BOOL),
                value(f"{prefix}step"),
                value(f"{prefix}more"),
            ],
        )
        inputs, outputs = [rounds, "", step, start], [f"{prefix}same", f"{prefix}end"]
        return helper.make_node("Loop", inputs, outputs, body=body)

    inner = loop("two", "b/", "a/start", "a/step", [identity("b/start", "b/sum")])
    outer = loop("three", "a/", "images", "step", [inner, identity("b/end", "a/sum")])
    after = helper.make_node("Add", ["a/same", "a/end"], ["result"])
    numbers = [("two", np.int64(2)), ("three", np.int64(3)), ("step", np.float32(5))]
    graph = helper.make_graph(
        [outer, after],
        "rounds",
        [value("images")],
        [value("result")],
        [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def identity(source, target):
    return helper.make_node("Identity", [source], [target])


def test_they_read_it_from_outside_and_give_the_same(tmp_path):
    proto = doubled_rounds()
    results = []
    for _ in range(2):
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, tmp_path / "loop.onnx")
        results.append(runner(tmp_path / "loop.onnx")(np.ones((), "float32"))["result"])
        drop_constants(proto.graph)
    assert results[0] == results[1] == 1 + 3 * (2 + 1) * 5 + 5
    (outer,) = (node for node in proto.graph.node if node.op_type == "Loop")
    assert list(outer.input) == ["three", "", "images"] and list(outer.output) == ["a/end"]
    (inner,) = (node for node in outer.attribute[0].g.node if node.op_type == "Loop")
    assert list(inner.input) == ["two", "", "a/start"]
