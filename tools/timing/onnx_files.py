"""ONNX files in their runtimes, and beside each other: times, and how their outputs differ."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from keras_densepred._optional import require
from tools.timing import measure

CONFIDENT = 0.25  # score of a detection that is looked for in the other file's
SAME_BOX = 0.5  # intersection over union
_OPENVINO = {"float32": "f32", "bfloat16": "bf16"}  # precisions as it calls them


def runner(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from images (B, H, W, 3) to the file's outputs by name, on the CPU.

    Raises:
        ImportError: if onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "export")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


class Predictor:
    """A detector's file as what `metrics.evaluate_detector` takes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._run = runner(path)

    def predict_on_batch(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What the file gives for images (B, H, W, 3)."""
        return self._run(np.asarray(images, "float32"))


def openvino_runner(
    path: Path, precision: str = "float32"
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """As `runner`, by OpenVINO, which computes the products of a quantized file in integers.

    Args:
        path: the file.
        precision: `"float32"`, or `"bfloat16"` where the CPU has it; of what is not in integers.

    Raises:
        ImportError: if openvino is not installed.
    """
    openvino = require("openvino", "export")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _OPENVINO[precision]}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    request = compiled.create_infer_request()
    names = [output.any_name for output in compiled.outputs]
    return lambda images: dict(zip(names, request.infer({0: images}).values(), strict=True))


def compare(path: Path, other: Path, images: Sequence[np.ndarray], rounds: int = 15) -> list[str]:
    """Lines on how a second file's outputs and times differ from the first one's.

    Args:
        path: the reference.
        other: the file compared with it.
        images: batches (1, H, W, 3) float32.
        rounds: timed calls of each.
    """
    first, second = runner(path), runner(other)
    pairs = [(first(image), second(image)) for image in images]
    lines = []
    if "num_detections" in pairs[0][0]:
        found = sum((agreement(*pair) for pair in pairs), np.zeros(2))
        lines.append(
            f"{found[0]:.0f} of {found[1]:.0f} detections of confidence {CONFIDENT} or more are in "
            f"both (same class, IoU {SAME_BOX}), on {len(images)} images"
        )
    else:
        for name in pairs[0][0]:
            error = np.mean([np.abs(a[name] - b[name]).mean() for a, b in pairs])
            scale = np.mean([np.abs(a[name]).mean() for a, _ in pairs])
            lines.append(f"{name}: mean difference {error:.3g}, mean value {scale:.3g}")
    calls = {str(path): lambda: first(images[0]), str(other): lambda: second(images[0])}
    for name, timing in measure.alternate(calls, rounds).items():
        lines.append(f"{name}: {timing.ms_median:.1f} ms, {1e3 / timing.ms_median:.1f} images/s")
    return lines


def agreement(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> np.ndarray:
    """(2,) how many of the first's confident detections the second has, and how many there are."""
    kept = first["confidence"][0] >= CONFIDENT
    boxes, labels = first["boxes"][0][kept], first["labels"][0][kept]
    valid = second["confidence"][0] >= 0
    others, other_labels = second["boxes"][0][valid], second["labels"][0][valid]
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, others)]
    same = shared >= SAME_BOX * (areas[0][:, None] + areas[1][None] - shared)
    same &= labels[:, None] == other_labels[None]
    return np.array([same.any(1).sum(), len(boxes)], float)
