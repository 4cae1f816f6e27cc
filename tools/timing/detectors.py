"""How many images a second detectors take one by one, decoding and suppression included.

Weights are random, and the confidence threshold is set so that about `CANDIDATES` boxes reach the
suppression: as many as a trained detector's, where random weights would give none.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred import backbones, models
from keras_densepred.export import export_onnx, quantize_onnx
from tools.timing import detections, measure, onnx_files

CANDIDATES = 300
NUM_CLASSES = 80
CALIBRATION_BATCHES = 4
RUNTIMES = {"onnxruntime": onnx_files.runner, "openvino": onnx_files.openvino_runner}


@dataclass(frozen=True)
class Detector:
    """A row of CSPNet's tables of detectors, or a size of our dense one.

    Attributes:
        preset: of the backbone.
        neck: as `YOLOv3Detector` takes it, or a name of `models.DENSE_SIZES`.
        image_size: side in pixels.
    """

    preset: str
    neck: str
    image_size: int


DETECTORS = {
    "peleenet_prn": Detector("peleenet", "prn", 416),
    "peleenet_prn_3l": Detector("peleenet", "prn_3l", 416),
    "csp_peleenet_prn": Detector("csp_peleenet", "prn", 416),
    "csp_peleenet_prn_3l": Detector("csp_peleenet", "prn_3l", 416),
    "csp_peleenet_cem": Detector("csp_peleenet", "cem", 416),
    "csp_peleenet_cem_sam": Detector("csp_peleenet", "cem_sam", 416),
    "csp_peleenet_gfm": Detector("csp_peleenet", "gfm", 416),
    "csp_peleenet_efm": Detector("csp_peleenet", "efm", 416),
    "csp_peleenet_efm_sam": Detector("csp_peleenet", "efm_sam", 416),
    "csp_peleenet_efm_sam_512": Detector("csp_peleenet", "efm_sam", 512),
    "csp_peleenet_efm_spp": Detector("csp_peleenet", "efm_spp", 416),
    "csp_peleenet_ref_efm_sam": Detector("csp_peleenet_ref", "efm_sam", 320),
    "csp_densenet_ref_efm_sam": Detector("csp_densenet_ref", "efm_sam", 320),
    "csp_peleenet_ref_prn_3l": Detector("csp_peleenet_ref", "prn_3l", 320),
    "csp_peleenet_ref_prn": Detector("csp_peleenet_ref", "prn", 320),
    "csp_densenet_ref_prn": Detector("csp_densenet_ref", "prn", 320),
    "csp_densenet_b_ref_prn": Detector("csp_densenet_b_ref", "prn", 320),
    "csp_resnext_50_panet_spp_320": Detector("csp_resnext_50", "panet_spp", 320),
    "csp_resnext_50_panet_spp_416": Detector("csp_resnext_50", "panet_spp", 416),
    "csp_resnext_50_panet_spp_512": Detector("csp_resnext_50", "panet_spp", 512),
    "csp_resnext_50_panet_spp_608": Detector("csp_resnext_50", "panet_spp", 608),
    **{
        f"dense_{size}": Detector(row.preset, size, 320) for size, row in models.DENSE_SIZES.items()
    },
}
"""Name to the detector: the rows of the paper that this package builds, and ours."""


def measure_detectors(names: list[str], rounds: int = 15) -> Iterator[dict[str, Any]]:
    """Times each detector as it is, folded, and its ONNX file in what is installed to run it.

    Args:
        names: of `DETECTORS`; none for all.
        rounds: timed calls of each candidate, by turns.

    Yields:
        A row for each detector and candidate: `"detector"`, `"image_size"`, `"candidate"`
        (`"plain"`, `"folded"`, `"onnx"`, `"onnx_int8"`), `"runtime"` (the backend, or
        `"onnxruntime"` or `"openvino"`), `"ms_median"`, `"ms_min"`,
        `"images_per_s"`, `"plain_over_this"` (how many times as fast), `"first_call_s"`,
        `"file_mb"`.

    Raises:
        ValueError: if there is no such detector.
    """
    unknown = sorted(set(names) - set(DETECTORS))
    if unknown:
        raise ValueError(
            f"There is no detector {', '.join(unknown)}; choose from {', '.join(DETECTORS)}."
        )
    for name in names or DETECTORS:
        yield from _measure(name, DETECTORS[name], rounds)
        keras.utils.clear_session()


def _measure(name: str, row: Detector, rounds: int) -> Iterator[dict[str, Any]]:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    shape = (1, row.image_size, row.image_size, 3)
    images = rng.uniform(size=shape).astype("float32")
    model = _build(row)
    _set_threshold(model, images)
    calls = {
        "plain": _keras_call(model, model.decode_predictions, images),
        "folded": _keras_call(
            models.fold_batch_norm(model).graph, model.decode_predictions, images
        ),
    }
    calls = {(kind, keras.config.backend()): call for kind, call in calls.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = _onnx_files(model, row.image_size, Path(folder), rng)
        sizes = {kind: path.stat().st_size / 1e6 for kind, path in files.items()}
        for runtime, make in RUNTIMES.items():
            try:
                runs = {(kind, runtime): make(path) for kind, path in files.items()}
            except ImportError as error:
                print(f"Without {runtime}: {error}", flush=True)
                continue
            calls |= {key: functools.partial(run, images) for key, run in runs.items()}
        timings = measure.alternate(calls, rounds, settle=1)
    plain = timings["plain", keras.config.backend()]
    for (kind, runtime), timing in timings.items():
        yield {
            "detector": name,
            "image_size": row.image_size,
            "candidate": kind,
            "runtime": runtime,
            "ms_median": timing.ms_median,
            "ms_min": timing.ms_min,
            "images_per_s": 1e3 / timing.ms_median,
            "plain_over_this": plain.ms_median / timing.ms_median,
            "first_call_s": timing.first_call_s,
            "file_mb": sizes.get(kind, ""),
        }


def _build(row: Detector) -> models.YOLOv3Detector | models.TaskAlignedDetector:
    if row.neck in models.DENSE_SIZES:
        return models.dense_detector(row.neck, NUM_CLASSES)
    return models.YOLOv3Detector(backbones.load_backbone(row.preset), NUM_CLASSES, row.neck)


def _set_threshold(
    model: models.YOLOv3Detector | models.TaskAlignedDetector, images: np.ndarray
) -> None:
    _, scores = model.boxes_and_scores(model(images, training=False), images)
    scores = np.sort(keras.ops.convert_to_numpy(scores), axis=None)
    model.prediction_decoder.confidence_threshold = float(scores[-CANDIDATES:][0])


def _keras_call(
    graph: keras.Model, decode: Callable[..., Any], images: np.ndarray
) -> Callable[[], None]:
    """Forward pass, decoding and suppression, compiled as `predict` compiles."""
    values = keras.ops.convert_to_tensor(images)
    if keras.config.backend() == "jax":
        # The weights are arguments, as in `predict`: constants would be folded while compiling.
        state = [[v.value for v in group] for group in _variables(graph)]

        def step(state: Any, values: Any) -> Any:
            return decode(graph.stateless_call(*state, values, training=False)[0], values)

        call = detections.compiled(step)
        return lambda: detections.wait_for(call(state, values))
    call = detections.compiled(lambda values: decode(graph(values, training=False), values))
    return lambda: detections.wait_for(call(values))


def _variables(graph: keras.Model) -> tuple[list, list]:
    return graph.trainable_variables, graph.non_trainable_variables


def _onnx_files(
    model: keras.Model, image_size: int, folder: Path, rng: np.random.Generator
) -> dict[str, Path]:
    """What can be written with what is installed; a missing package is told."""
    files = {}
    shape = (1, image_size, image_size, 3)
    images = (rng.uniform(size=shape).astype("float32") for _ in range(CALIBRATION_BATCHES))
    try:
        files["onnx"] = export_onnx(model, folder / "fp32.onnx", image_size)
        files["onnx_int8"] = quantize_onnx(files["onnx"], folder / "int8.onnx", images)
    except ImportError as error:
        print(f"Without {'8-bit integers' if files else 'ONNX'}: {error}", flush=True)
    return files
