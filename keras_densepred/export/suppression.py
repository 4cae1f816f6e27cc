"""Non-maximum suppression at the end of an ONNX graph, by ONNX's own operator."""

from typing import Any

import numpy as np

from keras_densepred._optional import require


def add_suppression(
    proto: Any,
    scores_shape: tuple[int, ...],
    *,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    candidates: int,
) -> None:
    """Turns boxes and scores into detections, class by class.

    ONNX's `NonMaxSuppression` is the greedy rule of `ops.nms`. It wants (B, C, N) scores; so that
    not all of them are moved, it gets the boxes with the `candidates` best single classes.

    Args:
        proto: `onnx.ModelProto` with the outputs `"boxes"` (B, N, 4) and `"scores"` (B, N, C),
            which get the outputs `"boxes"` (B, M, 4) and `"confidence"` (B, M) float32, `"labels"`
            (B, M) and `"num_detections"` (B,) int64 instead.
        scores_shape: (B, N, C).
        iou_threshold: overlap above which the lower candidate goes.
        score_threshold: least score of a candidate.
        max_detections: M, detections of an image.
        candidates: boxes of an image that take part.
    """
    onnx = require("onnx", "export")
    graph = proto.graph
    batch_size, num_boxes, _ = scores_shape
    build = _Builder(onnx, graph)
    for name in ("boxes", "scores"):
        build.rename(name, f"nms/all_{name}")
    parts = [
        _one_image(
            build,
            image,
            min(candidates, num_boxes),
            # The operator drops a score that equals its threshold.
            np.nextafter(np.float32(score_threshold), np.float32(-1)),
            iou_threshold,
            max_detections,
        )
        for image in range(batch_size)
    ]
    del graph.output[:]
    kinds = {"boxes": (onnx.TensorProto.FLOAT, [batch_size, max_detections, 4])}
    kinds["labels"] = (onnx.TensorProto.INT64, [batch_size, max_detections])
    kinds["confidence"] = (onnx.TensorProto.FLOAT, [batch_size, max_detections])
    kinds["num_detections"] = (onnx.TensorProto.INT64, [batch_size])
    for (name, (kind, shape)), tensors in zip(kinds.items(), zip(*parts, strict=True), strict=True):
        build("Concat", *tensors, axis=0, output=name)
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))


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


def _one_image(
    build: _Builder,
    image: int,
    candidates: int,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[str, str, str, str]:
    """(1, M, 4) boxes, (1, M) labels, (1, M) confidence, (1,) count of one image."""
    boxes = build("Gather", "nms/all_boxes", [image], axis=0)
    scores = build("Gather", "nms/all_scores", [image], axis=0)
    best = build("ReduceMax", scores, [2], keepdims=0)
    _, index = build("TopK", best, [candidates], outputs=2, axis=1)
    index = build("Reshape", index, [-1])
    boxes = build("Gather", boxes, index, axis=1)
    scores = build("Transpose", build("Gather", scores, index, axis=1), perm=[0, 2, 1])
    kept = build(
        "NonMaxSuppression", boxes, scores, max_detections, iou_threshold, score_threshold
    )  # (kept, 3): image, class, box
    confidence = build("GatherND", scores, kept)
    count = build("Min", build("Shape", confidence), [max_detections])
    confidence, order = build("TopK", confidence, count, outputs=2, axis=0)
    kept = build("Gather", kept, order, axis=0)
    labels = build("Gather", kept, 1, axis=1)
    boxes = build("Gather", build("Squeeze", boxes, [0]), build("Gather", kept, 2, axis=1), axis=0)
    missing = build("Sub", [max_detections], count)
    # Pads of (M, 4): begins of both axes, then ends.
    boxes = build("Pad", boxes, build("Concat", [0, 0], missing, [0], axis=0), -1.0)
    end = build("Concat", [0], missing, axis=0)
    labels = build("Pad", labels, end, -1)
    confidence = build("Pad", confidence, end, -1.0)
    return (
        build("Unsqueeze", boxes, [0]),
        build("Unsqueeze", labels, [0]),
        build("Unsqueeze", confidence, [0]),
        count,
    )
