"""An exported file explains itself: README's script runs it as `predict` does."""

import contextlib
import importlib
import io
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_densepred.export
from keras_densepred import saved
from keras_densepred.models import YOLOv3Detector
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights
from tools import export
from tools.timing import litert_files

README = Path(__file__).parents[2] / "README.md"
NAMES = ("cat", "dög", "bird")
SHAPES = [(90, 150), (64, 64), (31, 47)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose detector finds something in noise."""
    keras.utils.set_random_seed(0)
    model = YOLOv3Detector(ToyPyramid(ready=False), 3, "prn")
    set_deterministic_weights(model)
    for level in model.masks:
        bias = model.get_layer(f"yolo_{level.lower()}_prediction").bias
        bias.assign(np.random.default_rng(1).normal(0, 2, bias.shape))
    folder = tmp_path_factory.mktemp("run")
    (folder / "preset").mkdir()
    model.save(folder / "preset" / "detector.keras")
    mean, std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    saved.Preprocessing("detection", mean, std, 64).write(folder / "preset")
    classes = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(NAMES)]
    (folder / "preset" / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        small = Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def exported(run, folder, *flags):
    path = folder / "detector.onnx"
    assert export.main([str(run), "--output", str(path), *flags]) == 0
    return path


def assert_described(path):
    told = keras_densepred.export.read_description(path)
    assert json.loads(told["class_names"]) == list(NAMES)
    assert json.loads(told["category_ids"]) == [10, 20, 30] and told["task"] == "detection"
    assert told["keras_densepred"] == keras_densepred.__version__


def script():
    """README's Python that reads the file's own description."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if "custom_metadata_map" in block)
    assert len(found.splitlines()) <= 22
    return found


@pytest.mark.skipif(keras.config.backend() == "jax", reason="needs jax2onnx")
@pytest.mark.slow_on("tensorflow")
def test_readmes_script_and_a_graph_with_preprocessing_find_what_predict_finds(
    run, photos, tmp_path, monkeypatch
):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert_described(exported(run, tmp_path))
    (tmp_path / "whole").mkdir()
    whole = exported(run, tmp_path / "whole", "--with-preprocessing")
    session = onnxruntime.InferenceSession(str(whole))
    model = saved.load(run)
    monkeypatch.chdir(tmp_path)
    for number in range(len(SHAPES)):
        content = (photos / f"{number}.png").read_bytes()
        (tmp_path / "photo.jpg").write_bytes(content)  # a PNG, which no decoder changes
        expected = model.predict("photo.jpg", score=0.3)
        assert len(expected) > 2
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(script(), "README.md", "exec"), {})
        rows = [line.split() for line in printed.getvalue().splitlines()]
        assert [row[0] for row in rows] == expected.names
        values = np.array([row[1:] for row in rows], float)
        np.testing.assert_allclose(values[:, 0], expected.scores, atol=1.5e-3)
        np.testing.assert_allclose(values[:, 1:], expected.boxes, atol=0.5)

        boxes, labels, scores = session.run(
            ["boxes", "labels", "confidence"], {"photo": expected.image}
        )
        # OpenCV rounds a pixel now and then to the other side, and the order of equals changes.
        for box, label, score in zip(expected.boxes, expected.labels, expected.scores, strict=True):
            near = np.abs(boxes[0] - box).max(axis=1) < 0.5
            near &= (np.abs(scores[0] - score) < 1e-3) & (labels[0] == label)
            assert near.any()
        assert (boxes[0][labels[0] < 0] == -1).all()


@pytest.mark.skipif(keras.config.backend() == "jax", reason="needs jax2onnx")
@pytest.mark.slow_on("tensorflow")
def test_openvino_says_it_too(run, tmp_path):
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "detector.xml"
    assert export.main([str(run), "--format", "openvino", "--output", str(path)]) == 0
    model = openvino.Core().read_model(path)
    told = model.get_rt_info(["keras_densepred", "class_names"]).astype(str)
    assert json.loads(told) == list(NAMES)
    assert_described(path)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="Keras writes none from PyTorch")
@pytest.mark.slow
def test_a_saved_model_says_it_too(run, tmp_path):
    path = tmp_path / "model"
    assert export.main([str(run), "--format", "saved_model", "--output", str(path)]) == 0
    told = json.loads((path / "assets.extra" / "description.json").read_text("utf-8"))
    assert json.loads(told["category_ids"]) == [10, 20, 30]
    assert_described(path)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="LiteRT is TensorFlow's")
def test_a_litert_file_says_it_too_and_computes_the_same(run, tmp_path):
    path, plain = tmp_path / "detector.tflite", tmp_path / "plain.tflite"
    assert export.main([str(run), "--format", "litert", "--output", str(path)]) == 0
    assert_described(path)
    keras_densepred.export.export_litert(saved.load(run).model, plain, 64)
    with pytest.raises(ValueError, match=r"plain\.tflite does not say what its classes are"):
        keras_densepred.export.read_description(plain)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    ours, theirs = (litert_files.runner(file)(images) for file in (path, plain))
    assert ours["num_detections"] > 2
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    # As TensorFlow's converter places them, for processors that load 16 bytes at once.
    schema = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    content = path.read_bytes()
    model = schema.Model.GetRootAs(content)
    base = np.frombuffer(content, np.uint8).ctypes.data
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [b.DataAsNumpy().ctypes.data - base for b in buffers if b.DataLength()]
    assert len(starts) > 10 and not any(start % 16 for start in starts)


@pytest.mark.backend_free
def test_what_says_nothing_is_told_from_what_is_no_exported_file(tmp_path):
    read = keras_densepred.export.read_description
    with pytest.raises(ValueError, match="There is no exported file"):
        read(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="export the run's folder again"):
        read(tmp_path)
    pytest.importorskip("tensorflow")
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ValueError, match=r"notes\.txt is no LiteRT file"):
        read(tmp_path / "notes.txt")


@pytest.mark.backend_free
def test_a_description_is_text_of_what_a_user_must_know():
    told = keras_densepred.export.describe(
        task="detection",
        class_names=NAMES,
        category_ids=(1, 2, 3),
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        size=(64, 96),
        resize="fit",
    )
    assert all(isinstance(value, str) for value in told.values())
    assert json.loads(told["class_names"]) == list(NAMES) and told["channel_order"] == "RGB"
    rule = json.loads(told["size"])
    assert (rule["height"], rule["width"], rule["resize"]) == (64, 96, "fit") and "mean" in rule[
        "pad"
    ]
    assert "xyxy" in told["box_format"] and keras_densepred.__version__ == told["keras_densepred"]


@pytest.mark.backend_free
@pytest.mark.parametrize("flags", [["--format", "openvino"], ["--int8", "DATA"]])
def test_preprocessing_in_the_graph_is_onnxs(run, tmp_path, capsys, flags):
    command = [str(run), "--output", str(tmp_path / "x"), "--with-preprocessing", *flags]
    assert export.main(command) == 1
    assert "--with-preprocessing is for --format onnx" in capsys.readouterr().err
