"""SavedModel, LiteRT, torch.export and OpenVINO: their runtimes give what Keras gives."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred import export
from keras_densepred.export import saved_model
from keras_densepred.layers import DeformableConv2D
from keras_densepred.layers.conv import Conv
from keras_densepred.models import DeepLabV3, DeformableDETR, Mask2Former, RetinaNetKerasHub
from tests.export.dense import dense
from tests.export.detr import detr
from tests.export.mask2former import mask2former, mask2former_centres
from tests.export.yolo import BACKEND, IMAGES, SIZE, TOLERANCE, yolo
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights


def segmenter(width=8):
    model = DeepLabV3(ToyPyramid(ready=False), 3, width=width, atrous_rates=None)
    set_deterministic_weights(model)
    return model


def deformable():
    """Modulated, with a stride, two groups of offsets of about a cell, and samples outside."""
    inputs = keras.Input((None, None, 3))
    x = Conv(8, 3, 4)(inputs)
    layer = DeformableConv2D(4, strides=2, offset_groups=2, modulated=True)
    model = keras.Model(inputs, layer(x))
    set_deterministic_weights(model)
    return model


def retinanet():
    model = RetinaNetKerasHub(ToyPyramid(), 3, head_width=8, head_depth=1)
    set_deterministic_weights(model)
    bias = model.classification_head.prediction.bias
    bias.assign(np.random.default_rng(1).normal(0, 1, bias.shape))
    return model


def run_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # its graph lives as long as it
    return {name: np.asarray(value) for name, value in loaded.serve(tf.constant(IMAGES)).items()}


def run_litert(path):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(path))
    return interpreter.get_signature_runner("serving_default")(images=IMAGES)


def run_torch(path):
    import torch

    outputs = torch.export.load(path).module()(torch.tensor(IMAGES))
    return {name: value.detach().numpy() for name, value in outputs.items()}


def run_openvino(path):
    import openvino

    network = openvino.Core().read_model(path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    results = openvino.compile_model(network, "CPU", settings)(IMAGES)
    # By the file's names: compiled, an output may have those of operations before it as well.
    return {name: results[name] for output in network.outputs for name in output.names}


# Of each backend: the function, its runtime, and the path's suffix.
FORMATS = {
    "saved_model": (export.export_saved_model, run_saved_model, ""),
    "litert": (export.export_litert, run_litert, ".tflite"),
    "torch": (export.export_torch, run_torch, ".pt2"),
    "openvino": (export.export_openvino, run_openvino, ".xml"),
}
SUPPORTED = {
    "jax": ("saved_model",),
    "tensorflow": ("saved_model", "litert", "openvino"),
    "torch": ("torch", "openvino"),
}[BACKEND]
MODELS = {"yolo": yolo, "retinanet": retinanet, "segmenter": segmenter, "deformable": deformable}
MODELS |= {"dense": dense, "detr": detr, "mask2former": mask2former, "centres": mask2former_centres}


@pytest.fixture(scope="module")
def model(request):
    """A model and what it predicts."""
    made = MODELS[request.param]()
    expected = made.predict(IMAGES, verbose=0)
    if not isinstance(expected, dict):
        return made, {"outputs": expected}
    assert expected["num_detections"].min() > 3
    return made, expected


@pytest.mark.parametrize("format", SUPPORTED)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("yolo", marks=pytest.mark.slow_on("torch")),
        "segmenter",
        "deformable",
        pytest.param("retinanet", marks=pytest.mark.slow_on("jax", "tensorflow")),
        pytest.param("dense", marks=pytest.mark.slow),
        pytest.param("detr", marks=pytest.mark.slow),
        pytest.param("mask2former", marks=pytest.mark.slow),
        pytest.param("centres", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_a_runtime_gives_what_predict_gives(model, format, tmp_path):
    function, run, suffix = FORMATS[format]
    made, expected = model
    if format == "litert" and isinstance(made, (DeformableDETR, Mask2Former)):
        # Else README can name them among what it runs.
        with pytest.raises(ValueError, match=r"cannot express this .*write it as onnx"):
            function(made, tmp_path / f"model{suffix}", SIZE, batch_size=2)
        assert not list(tmp_path.iterdir())
        return
    if format == "openvino" and getattr(made, "query_selection", None) == "centres":
        with pytest.raises(ValueError, match=r"finds other masks than .*: write it as onnx"):
            function(made, tmp_path / f"model{suffix}", SIZE, batch_size=2)
        assert not list(tmp_path.iterdir())
        return
    path = function(made, tmp_path / f"model{suffix}", SIZE, batch_size=2)
    for _ in range(2 if format == "saved_model" else 1):
        found = run(path)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)
        names = {p.name for p in tmp_path.iterdir()}
        assert names == {path.name} | ({"model.bin"} if format == "openvino" else set())
        if format == "saved_model":  # an old directory is replaced
            function(made, path, SIZE, batch_size=2)


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("model", ["yolo"], indirect=True)
@pytest.mark.parametrize("format", SUPPORTED[-1:])
def test_without_suppression_all_boxes_come(model, format, tmp_path):
    function, run, suffix = FORMATS[format]
    made, _ = model
    path = function(made, tmp_path / f"model{suffix}", SIZE, batch_size=2, suppress=False)
    boxes, scores = made.boxes_and_scores(made(IMAGES), keras.ops.convert_to_tensor(IMAGES))
    found = run(path)
    assert set(found) == {"boxes", "scores"}
    np.testing.assert_allclose(found["boxes"], keras.ops.convert_to_numpy(boxes), **TOLERANCE)
    np.testing.assert_allclose(found["scores"], keras.ops.convert_to_numpy(scores), **TOLERANCE)


if BACKEND == "tensorflow":

    def test_small_weights_are_smaller_and_nearly_the_same(tmp_path):
        made = segmenter(width=64)  # wide enough for weights to be most of the file
        expected = made.predict(IMAGES, verbose=0)
        sizes = {}
        for weights, share in (("float32", 1e-4), ("float16", 2e-3), ("int8", 5e-2)):
            path = tmp_path / f"{weights}.tflite"
            export.export_litert(made, path, SIZE, batch_size=2, weights=weights)
            sizes[weights] = path.stat().st_size
            error = np.abs(run_litert(path)["outputs"] - expected).max()
            assert error <= share * np.abs(expected).max(), weights
        assert sizes["int8"] < sizes["float16"] < sizes["float32"]
        with pytest.raises(ValueError, match="`weights` must be one of"):
            export.export_litert(made, path, SIZE, weights="int4")


if BACKEND == "jax":

    @pytest.mark.parametrize("model", ["yolo"], indirect=True)
    def test_tensorflow_still_cannot_read_the_top_k_of_jax(model, tmp_path, monkeypatch):
        """Else `ops.nms.without_top_k` can go."""
        import tensorflow as tf

        monkeypatch.setattr(saved_model, "without_top_k", contextlib.nullcontext)
        path = export.export_saved_model(model[0], tmp_path / "model", SIZE, batch_size=2)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"vhlo\.composite"):
            run_saved_model(path)


if BACKEND == "torch":

    def test_keras_loop_is_still_not_exported():
        """Else `ops.loops` can go."""
        import torch

        class Counting(torch.nn.Module):
            def forward(self, start):
                return keras.ops.while_loop(lambda n: n < 3, lambda n: (n + 1,), (start,))

        with pytest.raises(torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
            torch.export.export(Counting(), (torch.tensor(0),), strict=False)


@pytest.mark.parametrize("format", sorted(FORMATS.keys() - set(SUPPORTED)))
def test_what_a_backend_cannot_write_is_one_sentence(format, tmp_path, monkeypatch):
    function, _, suffix = FORMATS[format]
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    with pytest.raises((ValueError, ImportError), match=r"KERAS_BACKEND=(torch|tensorflow)"):
        function(segmenter(), tmp_path / f"model{suffix}", SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
def test_paths_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match="is no SavedModel"):
        export.export_saved_model(None, tmp_path, 32)
    with pytest.raises(ValueError, match=r"\.xml and \.bin"):
        export.export_openvino(None, tmp_path / "model.onnx", 32)
    with pytest.raises(ValueError, match="give positive integers"):
        export.export_litert(None, tmp_path / "x.tflite", 32, batch_size=0)
