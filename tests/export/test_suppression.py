"""The suppression that is written into ONNX files, run by ONNX Runtime, is the greedy rule."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from keras_densepred.export.suppression import add_suppression
from tests.boxes import assert_matches_reference, random_boxes
from tools.timing.onnx_files import agreement, compare, runner

pytestmark = pytest.mark.backend_free


def write(path, shape, **settings):
    """A file whose image is what the network would have made of it: boxes and scores."""
    batch, num, classes = shape
    values = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, num, 4 + classes])
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, num, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape),
    ]
    nodes = [helper.make_node("Split", ["images", "sizes"], ["boxes", "scores"], axis=2)]
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [4, classes])
    graph = helper.make_graph(nodes, "split", [values], outputs, [sizes])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    add_suppression(proto, shape, **settings)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("max_detections", [5, 60])
def test_equals_the_greedy_reference(tmp_path, max_detections):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 2, 50)
    scores = rng.permutation(2 * 50 * 3).reshape(2, 50, 3).astype("float32") / 300
    path = write(
        tmp_path / "nms.onnx",
        scores.shape,
        iou_threshold=0.45,
        score_threshold=float(np.float32(scores[0, 0, 0])),  # a score that equals it is one
        max_detections=max_detections,
        candidates=100,
    )
    found = runner(path)(np.concatenate([boxes, scores], -1).astype("float32"))
    assert found["boxes"].shape == (2, max_detections, 4)
    assert_matches_reference(
        boxes,
        scores,
        found,
        iou_threshold=0.45,
        score_threshold=scores[0, 0, 0],
        max_detections=max_detections,
    )


def test_an_image_without_objects(tmp_path):
    settings = {"iou_threshold": 0.5, "score_threshold": 0.5, "max_detections": 4, "candidates": 9}
    path = write(tmp_path / "nms.onnx", (1, 6, 2), **settings)
    found = runner(path)(np.zeros((1, 6, 6), "float32"))
    assert found["num_detections"] == 0 and (found["boxes"] == -1).all()
    assert agreement(found, found).tolist() == [0, 0]


def test_two_files_are_compared(tmp_path):
    settings = {"iou_threshold": 0.5, "max_detections": 4, "candidates": 9}
    paths = [
        write(tmp_path / f"{t}.onnx", (1, 2, 1), score_threshold=t, **settings) for t in (0.3, 0.8)
    ]
    image = np.array([[[0, 0, 9, 9, 0.9], [20, 20, 30, 30, 0.5]]], "float32")
    lines = compare(*paths, [image, image], rounds=1)
    assert lines[0].startswith("2 of 4 detections of confidence 0.25 or more are in both")
    assert all("images/s" in line for line in lines[1:]) and len(lines) == 3
