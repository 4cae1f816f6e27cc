"""`tools/export.py` as a user runs it."""

import keras
import numpy as np
import pytest

from keras_densepred import data, training
from keras_densepred.models import YOLOv3Detector
from tests.models.conftest import ToyPyramid
from tools import export
from tools.timing.onnx_files import runner


def test_a_saved_detector_in_floats_and_integers(tmp_path, capsys, monkeypatch):
    if keras.config.backend() == "jax":
        monkeypatch.setitem(export.FORMATS, "onnx", refuse)
    model = YOLOv3Detector(ToyPyramid(ready=False), 3, "prn")
    model.save(tmp_path / "toy.keras")
    zero, byte = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    training.Preprocessing("detection", zero, byte, 64, stretch=True).write(tmp_path)
    split = data.ShapesDataset(3, 64, 0, "val")
    monkeypatch.setattr(data, "open_detection", lambda folder: (split, split))
    output = tmp_path / "out" / "toy.onnx"
    command = [str(tmp_path / "toy.keras"), "--output", str(output)]
    code = export.main([*command, "--int8", "ANY"])
    shown = capsys.readouterr()
    if keras.config.backend() == "jax":
        assert code == 1 and shown.err == "error: no converter\n"
        return
    assert code == 0 and "images/s" in shown.out
    small = output.with_suffix(".int8.onnx")
    assert sorted(p.name for p in output.parent.iterdir()) == [small.name, output.name]
    for path in (output, small):
        assert runner(path)(np.zeros((1, 64, 64, 3), "float32"))["boxes"].shape == (1, 100, 4)


def refuse(*_, **__):
    raise ImportError("no converter")


@pytest.mark.backend_free
@pytest.mark.parametrize("model", ["nowhere.keras", "no_such_preset"])
def test_faults_are_one_sentence(model, tmp_path, capsys):
    command = [model, "--image-size", "64", "--output", str(tmp_path / "x.onnx")]
    assert export.main(command) == 1
    error = capsys.readouterr().err
    assert model in error and error.count("\n") == 1
