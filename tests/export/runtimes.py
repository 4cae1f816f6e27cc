"""The formats that each backend writes, and their runtimes."""

import numpy as np

from keras_densepred import export
from tests.export.yolo import BACKEND, TOLERANCE
from tools.timing import litert_files, onnx_files


def run_onnx(path, images):
    return onnx_files.runner(path)(images)


def run_saved_model(path, images):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # its graph lives as long as it
    return {name: np.asarray(value) for name, value in loaded.serve(tf.constant(images)).items()}


def run_litert(path, images):
    return litert_files.runner(path)(images)


def run_torch(path, images):
    import torch

    outputs = torch.export.load(path).module()(torch.tensor(images))
    return {name: value.detach().numpy() for name, value in outputs.items()}


def run_openvino(path, images):
    import openvino

    network = openvino.Core().read_model(path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    results = openvino.compile_model(network, "CPU", settings)(images)
    # By the file's names: compiled, an output may have those of operations before it as well.
    return {name: results[name] for output in network.outputs for name in output.names}


# The function, its runtime, and the path's suffix.
FORMATS = {
    "onnx": (export.export_onnx, run_onnx, ".onnx"),
    "saved_model": (export.export_saved_model, run_saved_model, ""),
    "litert": (export.export_litert, run_litert, ".tflite"),
    "torch": (export.export_torch, run_torch, ".pt2"),
    "openvino": (export.export_openvino, run_openvino, ".xml"),
}
SUPPORTED = {
    "jax": ("saved_model",),
    "tensorflow": ("onnx", "saved_model", "litert", "openvino"),
    "torch": ("onnx", "torch", "openvino"),
}[BACKEND]


def write(model, format, folder, image_size, batch_size):
    """A file of the model; only that is left in the folder."""
    function, _, suffix = FORMATS[format]
    path = function(model, folder / f"model{suffix}", image_size, batch_size=batch_size)
    names = {path.name} | ({"model.bin"} if format == "openvino" else set())
    assert {file.name for file in folder.iterdir()} == names
    return path


def assert_gives_what_predict_gives(model, format, path, images, expected=None):
    """Compares a file's outputs with what `predict` gives, by their names."""
    _, run, _ = FORMATS[format]
    if expected is None:
        expected = predicted(model, images)
    found = run(path, images)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)


def predicted(model, images):
    """What `predict` gives, under the names that it has in files."""
    found = model.predict(images, verbose=0)
    return found if isinstance(found, dict) else {"outputs": found}
