"""`tools/gradient_maps.py` as a user runs it."""

import csv

import keras
import numpy as np
import pytest

from keras_densepred.data import ShapesDataset
from keras_densepred.files import MARKER
from keras_densepred.models import FasterRCNN, MaskRCNN, RetinaNetKerasHub, YOLOv3Detector
from keras_densepred.training import Preprocessing
from tests.models.conftest import ToyPyramid
from tools import gradient_maps

SMALL = dict(head_fcs=1, head_width=8, num_proposals=8, samples=8, max_detections=5)
DETECTORS = {
    "retinanet": lambda: RetinaNetKerasHub(ToyPyramid(), num_classes=6, head_depth=1),
    "yolo": lambda: YOLOv3Detector(ToyPyramid(ready=False), 6, "prn"),
    "faster": lambda: FasterRCNN(ToyPyramid(), 6, **SMALL),
    "mask": lambda: MaskRCNN(ToyPyramid(), 6, mask_convs=1, **SMALL),
}
FILES = [MARKER, "gradient_maps.png", "important_area.csv", "important_area.png", "quality.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    for split in ("train", "val"):
        ShapesDataset(3, 64, 0, split).write_coco(root)
    return root


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "pair",
    [("retinanet", "yolo"), pytest.param(("faster", "mask"), marks=pytest.mark.slow)],
)
def test_two_saved_detectors_on_a_coco_folder(pair, folder, tmp_path, capsys):
    for name in pair:
        model = DETECTORS[name]()
        model.compile(keras.optimizers.SGD())
        model.save(tmp_path / f"{name}.keras")
    Preprocessing("detection", (0, 0, 0), (255, 255, 255), 96).write(tmp_path)
    output = tmp_path / "out"
    paths = [str(tmp_path / f"{name}.keras") for name in pair]
    flags = ["--image-size", "64", "--output", str(output), "--rows", "2"]
    assert gradient_maps.main([*paths, "--data-dir", str(folder), *flags]) == 0
    assert f"{pair[1]}: mean detection quality 0.0" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == FILES
    for name in ("gradient_maps.png", "important_area.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    with (output / "important_area.csv").open() as file:
        heading, *lines = csv.reader(file)
    assert heading == ["threshold", *pair]
    areas = np.array(lines, float)
    assert areas.shape == (100, 3) and (np.diff(areas[:, 1:], axis=0) <= 0).all()
    assert (areas[0, 1:] > 0.5).all() and (areas[-1, 1:] > 0).all()
    with (output / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(float(row[f"{pair[0]} quality"]) <= 1 for row in rows)
    assert float(rows[0][f"{pair[0]} area 0.1"]) >= float(rows[0][f"{pair[0]} area 0.5"])


@pytest.mark.backend_free
def test_faults_are_one_sentence(folder, tmp_path, capsys):
    detector = tmp_path / "a" / "model.keras"
    detector.parent.mkdir()
    RetinaNetKerasHub(ToyPyramid(), num_classes=2, head_depth=0).save(detector)
    other = tmp_path / "b" / "model.keras"
    other.parent.mkdir()
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"no zip")
    unprepared = tmp_path / "c" / "model.keras"
    unprepared.parent.mkdir()
    RetinaNetKerasHub(ToyPyramid(), num_classes=6, head_depth=0).save(unprepared)
    flags = ["--data-dir", str(folder), "--image-size", "64", "--output", str(tmp_path / "out")]
    for paths, message in (
        ([str(broken), str(detector)], "broken.keras is no saved Keras model, or a damaged one"),
        (["none.keras", str(detector)], "no saved .keras model at none.keras"),
        ([str(detector), str(other)], "b/model.keras holds a Sequential: give a detector"),
        ([str(detector), str(detector)], "detects 2 classes and the data set has 6"),
        ([str(unprepared), str(unprepared)], "no preprocessing.json beside"),
    ):
        assert gradient_maps.main([*paths, *flags]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert gradient_maps._names([detector, other]) == ["a", "b"]
