"""Non-maximum suppression at the end of an ONNX graph, by ONNX's own operator."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require


def add_suppression(
    proto: Any,
    scores_shape: tuple[int | None, int | None, int],
    *,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    candidates: int,
) -> None:
    """Turns boxes and scores into detections, class by class.

    ONNX's `NonMaxSuppression` is the greedy rule of `ops.nms`. It wants (B, C, N) scores; so that
    not all of them are moved, it gets the boxes with the `candidates` best single classes. What it
    keeps is marked in a table of these, of which the best are chosen: that works for any B and N.

    Args:
        proto: `onnx.ModelProto` with the outputs `"boxes"` (B, N, 4) and `"scores"` (B, N, C),
            which get the outputs `"boxes"` (B, M, 4) and `"confidence"` (B, M) float32, `"labels"`
            (B, M) and `"num_detections"` (B,) int64 instead.
        scores_shape: (B, N, C); None where a number is open.
        iou_threshold: overlap above which the lower candidate goes.
        score_threshold: least score of a candidate.
        max_detections: M, detections of an image.
        candidates: boxes of an image that take part.
    """
    onnx = require("onnx", "export")
    graph = proto.graph
    batch_size, num_boxes, num_classes = scores_shape
    build = _Builder(onnx, graph)
    for name in ("boxes", "scores"):
        build.rename(name, f"nms/all_{name}")
    boxes, scores = "nms/all_boxes", "nms/all_scores"
    if num_boxes is None:
        count = build("Slice", build("Shape", scores), [1], [2])
        count = build("Min", count, [candidates])
        places = 0  # that are sure to be there
    else:
        count = min(candidates, num_boxes)
        places = num_classes * count
        count = [count]
    best = build("ReduceMax", scores, [2], keepdims=0)
    _, index = build("TopK", best, count, outputs=2, axis=1)
    boxes, scores = (build.rows(values, index) for values in (boxes, scores))
    scores = build("Transpose", scores, perm=[0, 2, 1])
    # The operator drops a score that equals its threshold.
    least = np.nextafter(np.float32(score_threshold), np.float32(-1))
    kept = build(
        "NonMaxSuppression", boxes, scores, max_detections, iou_threshold, least
    )  # (kept, 3): image, class, box
    table = build("Expand", -1.0, build("Shape", scores))
    table = build("ScatterND", table, kept, build("GatherND", scores, kept))
    table = build("Reshape", table, [0, -1])
    if places < max_detections:
        table = build("Pad", table, [0, 0, 0, max_detections - places], -1.0)
    confidence, place = build("TopK", table, [max_detections], outputs=2, axis=1)
    found = build("GreaterOrEqual", confidence, 0.0)
    boxes = build.rows(boxes, build("Mod", place, count))
    del graph.output[:]
    to_float, to_integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    outputs = {
        "boxes": (to_float, [4], build("Unsqueeze", found, [2]), boxes, -1.0),
        "labels": (to_integer, [], found, build("Div", place, count), -1),
        "confidence": (to_float, [], found, confidence, -1.0),
    }
    batch = "batch" if batch_size is None else batch_size
    for name, (kind, more, where, values, missing) in outputs.items():
        build("Where", where, values, missing, output=name)
        build.output(name, kind, [batch, max_detections, *more])
    counted = build("Cast", found, to=to_integer)
    build("ReduceSum", counted, [1], keepdims=0, output="num_detections")
    build.output("num_detections", to_integer, [batch])


class _Builder:
    """Appends nodes to a graph: a call makes one and returns its first output's name."""

    def __init__(self, onnx: Any, graph: Any):
        self.onnx = onnx
        self.graph = graph
        self.made = 0

    def __call__(
        self, operator: str, *inputs: Any, outputs: int = 1, output: str = "", **attributes: Any
    ) -> Any:
        """Inputs are names, or values that become constants."""
        self.made += 1
        stem = f"nms/{self.made}_{operator}"
        names = [output] if output else [f"{stem}:{index}" for index in range(outputs)]
        inputs = tuple(x if isinstance(x, str) else self._constant(x) for x in inputs)
        self.graph.node.append(
            self.onnx.helper.make_node(operator, inputs, names, name=stem, **attributes)
        )
        return names[0] if len(names) == 1 else tuple(names)

    def _constant(self, value: Any) -> str:
        value = np.asarray(value)
        self.made += 1
        name = f"nms/{self.made}_value"
        kind = np.float32 if value.dtype.kind == "f" else np.int64
        self.graph.initializer.append(
            self.onnx.numpy_helper.from_array(value.astype(kind), name=name)
        )
        return name

    def rename(self, old: str, new: str) -> None:
        """Frees the name of an output for another tensor."""
        for node in self.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    def rows(self, values: str, index: str) -> str:
        """`values[b, index[b]]` for values (B, N, ...) and index (B, K): (B, K, ...)."""
        return self("GatherND", values, self("Unsqueeze", index, [2]), batch_dims=1)

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """Adds an output of the graph."""
        self.graph.output.append(self.onnx.helper.make_tensor_value_info(name, kind, shape))
