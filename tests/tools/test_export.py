"""`tools/export.py` as a user runs it."""

import re

import keras
import numpy as np
import pytest

import keras_densepred
from keras_densepred import data, saved, training
from keras_densepred.export.graph import Exported
from keras_densepred.models import FasterRCNN, YOLOv3Detector
from keras_densepred.saved.classes import Classes
from tests.models.conftest import ToyPyramid
from tools import export
from tools.timing.onnx_files import runner


def test_a_saved_detector_in_floats_and_integers(tmp_path, capsys, monkeypatch):
    if keras.config.backend() == "jax":
        monkeypatch.setattr(keras_densepred.export, "export_onnx", refuse)
    split = data.ShapesDataset(3, 64, 0, "val")
    model = YOLOv3Detector(ToyPyramid(ready=False), len(split.class_names), "prn")
    model.save(tmp_path / "toy.keras")
    zero, byte = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    training.Preprocessing("detection", zero, byte, 64, stretch=True).write(tmp_path)
    names = tuple(split.class_names)
    saved.write_classes(tmp_path / "classes.json", Classes(split.category_ids, names))
    monkeypatch.setattr(data, "open_detection", lambda folder: (split, split))
    output = tmp_path / "out" / "toy.onnx"
    command = [str(tmp_path / "toy.keras"), "--output", str(output)]
    code = export.main([*command, "--int8", "ANY"])
    shown = capsys.readouterr()
    if keras.config.backend() == "jax":
        assert code == 1 and shown.err == "error: no converter\n"
        return
    assert code == 0 and "images/s" in shown.out
    shown = re.findall(r"(\S+): AP [\d.-]+, AP50 [\d.-]+ on 3 validation images", shown.out)
    small = output.with_suffix(".int8.onnx")
    assert shown == [str(output), str(small)]
    assert sorted(p.name for p in output.parent.iterdir()) == [small.name, output.name]
    other = Classes(split.category_ids, (*names[:-1], "emu"))
    saved.write_classes(tmp_path / "classes.json", other)
    assert export.main([*command, "--int8", "ANY", "--overwrite"]) == 0
    shown = capsys.readouterr().out
    assert "ANY has other classes" in shown and "AP50" not in shown
    for path in (output, small):
        assert runner(path)(np.zeros((1, 64, 64, 3), "float32"))["boxes"].shape == (1, 100, 4)


def saved_toy(folder):
    model = YOLOv3Detector(ToyPyramid(ready=False), 3, "prn")
    model.save(folder / "toy.keras")
    return folder / "toy.keras"


@pytest.mark.skipif(keras.config.backend() == "jax", reason="needs jax2onnx")
@pytest.mark.slow
def test_any_number_of_images(tmp_path):
    output = tmp_path / "any.onnx"
    command = [str(saved_toy(tmp_path)), "--image-size", "64", "--output", str(output)]
    assert export.main([*command, "--dynamic-batch"]) == 0
    run = runner(output)
    for number in (1, 3):
        images = np.zeros((number, 64, 64, 3), "float32")
        assert run(images)["boxes"].shape == (number, 100, 4)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "flags,fault",
    [
        (["--format", "litert", "--dynamic-batch"], "are for --format onnx, openvino"),
        (["--with-preprocessing", "--dynamic-size"], "it takes one photograph, of any size"),
    ],
)
def test_what_is_open_is_asked_of_formats_that_can(tmp_path, capsys, flags, fault):
    command = [str(saved_toy(tmp_path)), "--image-size", "64", "--output", str(tmp_path / "x")]
    assert export.main([*command, *flags]) == 1
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.backend_free
def test_two_stages_are_not_for_8_bits(tmp_path, capsys):
    model = FasterRCNN(ToyPyramid(), 3, head_width=8)
    model.save(tmp_path / "toy.keras")
    output = tmp_path / "toy.onnx"
    command = [str(tmp_path / "toy.keras"), "--image-size", "64", "--output", str(output)]
    assert export.main([*command, "--int8", "ANY"]) == 1
    assert "detectors of one stage: a FasterRCNN computes boxes" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.backend_free
def test_pictures_that_are_not_there_are_told_before_a_file_is_written(tmp_path, capsys):
    output = tmp_path / "toy.onnx"
    command = [str(saved_toy(tmp_path)), "--image-size", "64", "--output", str(output)]
    assert export.main([*command, "--int8", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err and not output.exists()
    (tmp_path / "unlabelled").mkdir()
    assert export.main([*command, "--int8", str(tmp_path / "unlabelled")]) == 1
    assert "pictures with annotations, by which it measures" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.backend_free
def test_a_users_folder_stays_as_it_is(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("my only copy")
    for more in ([], ["--overwrite"]):
        for kind in ("onnx", "saved_model", "openvino"):
            arguments = ["cednet_next_pico", "--image-size", "64", "--output", str(mine), *more]
            assert export.main([*arguments, "--format", kind]) == 1
            assert "mine" in capsys.readouterr().err
    assert [file.name for file in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.backend_free
def test_neither_the_model_nor_a_file_is_written_over(tmp_path, capsys):
    model = saved_toy(tmp_path)
    content = model.read_bytes()
    assert export.main([str(model), "--image-size", "64", "--output", str(model)]) == 1
    assert "which is read" in capsys.readouterr().err
    assert model.read_bytes() == content
    other = tmp_path / "other.onnx"
    other.write_text("of somebody else")
    assert export.main([str(model), "--image-size", "64", "--output", str(other)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert other.read_text() == "of somebody else"


@pytest.mark.backend_free
@pytest.mark.parametrize("side", ["0", "50"])
def test_a_size_that_the_model_cannot_take_is_refused(tmp_path, capsys, side):
    model = saved_toy(tmp_path)
    output = tmp_path / "toy.onnx"
    assert export.main([str(model), "--image-size", side, "--output", str(output)]) == 1
    assert f"--image-size {side} does not fit" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("inside", ["classifier", ""])
def test_a_classifiers_preset_is_exported_with_its_classes(tmp_path, inside):
    model = keras_densepred.CEDNetImageClassifier(
        keras_densepred.CEDNetBackbone(
            p2_width=8, p2_depth=1, widths=(8, 12, 16), depths=(1, 1, 1), num_stages=2
        ),
        num_classes=3,
    )
    model.save_to_preset(str(tmp_path / "classifier"))
    loaded = export.load(str(tmp_path / inside))
    assert type(loaded) is type(model) and loaded.num_classes == 3
    exported = Exported(loaded)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    (logits,) = exported(images)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (logits, model(images))), atol=1e-4)


def refuse(*_, **__):
    raise ImportError("no converter")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name, flags", [("x.keras", ()), ("x.onnx", ("--format", "litert")), ("x.tflite", ())]
)
def test_a_name_of_another_format_is_refused(tmp_path, capsys, name, flags):
    command = ["bicsnet_lite0", "--image-size", "64", "--output", str(tmp_path / name), *flags]
    assert export.main(command) == 1
    assert "or another name" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.backend_free
@pytest.mark.parametrize("model", ["nowhere.keras", "no_such_preset"])
def test_faults_are_one_sentence(model, tmp_path, capsys):
    command = [model, "--image-size", "64", "--output", str(tmp_path / "x.onnx")]
    assert export.main(command) == 1
    error = capsys.readouterr().err
    assert model in error and error.count("\n") == 1
