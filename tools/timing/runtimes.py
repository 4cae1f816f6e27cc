"""Our networks as ONNX files, in the runtimes that people serve them with."""

import dataclasses
import tempfile
from pathlib import Path

from keras_densepred.export import export_onnx, quantize_onnx
from tools.timing import candidates, onnx_files

_RUNNERS = {"onnxruntime": onnx_files.runner, "openvino": onnx_files.openvino_runner}
_INT8 = "_int8"
NAMES = tuple(f"{runtime}{kind}" for runtime in _RUNNERS for kind in ("", _INT8))
OF_ANY_PRECISION = frozenset({"openvino"})  # what stays float32 in ONNX Runtime and beside integers


def network_in(name: str, task: candidates.Task) -> candidates.Call:
    """A forward pass of our network, weights in float32 or 8-bit integers.

    Args:
        name: of `NAMES`.
        task: its precision is that of the computation, where the runtime chooses it (OpenVINO).

    Raises:
        ValueError: if the backend's networks cannot be exported.
        ImportError: if the runtime or the converter is not installed.
    """
    model = candidates.keras_model(dataclasses.replace(task, precision="float32"))
    images = task.images()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(model, path, task.image_size, batch_size=task.batch)
        if name.endswith(_INT8):
            path = quantize_onnx(path, Path(folder) / "int8.onnx", [images])
        runtime = name.removesuffix(_INT8)
        options = {"precision": task.precision} if runtime == "openvino" else {}
        run = _RUNNERS[runtime](path, **options)
    return lambda: run(images)
