"""Files of other runtimes: what they hold, and what of them is refused."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred import export
from keras_densepred.export import saved_model
from keras_densepred.layers import DeformableConv2D
from keras_densepred.layers.conv import Conv
from keras_densepred.models import DeepLabV3
from tests.export import zoo
from tests.export.runtimes import (
    FORMATS,
    SUPPORTED,
    assert_gives_what_predict_gives,
    run_litert,
    run_saved_model,
    write,
)
from tests.export.yolo import BACKEND, IMAGES, SIZE, TOLERANCE
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


@pytest.mark.parametrize("format", SUPPORTED)
@pytest.mark.parametrize("make", [segmenter, deformable])
def test_a_file_is_replaced(make, format, tmp_path):
    model = make()
    for _ in range(2 if format == "saved_model" else 1):
        path = write(model, format, tmp_path, SIZE, 2)
        assert_gives_what_predict_gives(model, format, path, IMAGES)


@pytest.mark.slow_on("jax", "tensorflow")
def test_without_suppression_all_boxes_come(tmp_path):
    format = SUPPORTED[-1]
    function, run, suffix = FORMATS[format]
    made = zoo.model("yolo")
    path = function(made, tmp_path / f"model{suffix}", SIZE, batch_size=2, suppress=False)
    boxes, scores = made.boxes_and_scores(made(IMAGES), keras.ops.convert_to_tensor(IMAGES))
    found = run(path, IMAGES)
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
            error = np.abs(run_litert(path, IMAGES)["outputs"] - expected).max()
            assert error <= share * np.abs(expected).max(), weights
        assert sizes["int8"] < sizes["float16"] < sizes["float32"]
        with pytest.raises(ValueError, match="`weights` must be one of"):
            export.export_litert(made, path, SIZE, weights="int4")


if BACKEND == "jax":

    @pytest.mark.parametrize("name", ["yolo", "cednet"])
    def test_tensorflow_still_cannot_read_top_k_and_erf_of_jax(name, tmp_path, monkeypatch):
        """Else `runtime.devices.writing_saved_model` can go."""
        import tensorflow as tf

        monkeypatch.setattr(saved_model, "writing_saved_model", contextlib.nullcontext)
        path = write(zoo.model(name), "saved_model", tmp_path, SIZE, 2)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"vhlo\.composite"):
            run_saved_model(path, IMAGES)


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
    with pytest.raises(ValueError, match="one number and size of images"):
        export.export_litert(None, tmp_path / "x.tflite", None)
