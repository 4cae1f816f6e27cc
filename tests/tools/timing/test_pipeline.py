"""The measurement of the input pipeline gives sound rows; how fast is not a test's business."""

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from tools.timing import pipeline
from tools.timing.class_pipeline import measure_class_pipeline
from tools.timing.pipeline import measure_pipeline, write_photos

pytestmark = pytest.mark.backend_free

KEYS = {
    "what",
    "image_size",
    "batch",
    "images_per_s_median",
    "images_per_s_best",
    "ratio_to_decode",
    "ratio_to_decode_lsj",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pipeline, "_REST", 0.01)


def check(rows, batch, name="pipeline", least=("decode", "decode_lsj")):
    kinds = ("", "_float32", "_worker", "_float32_worker")
    assert [row["what"] for row in rows] == [*least, *(name + kind for kind in kinds)]
    assert [row["batch"] for row in rows] == [1, 1, *[batch] * 4]
    for row in rows:
        assert row.keys() == KEYS and row["image_size"] == 64
        numbers = [row[key] for key in sorted(KEYS - {"what"})]
        assert np.isfinite(numbers).all() and min(numbers) > 0
        assert row["images_per_s_best"] >= row["images_per_s_median"]
    assert rows[0]["ratio_to_decode"] == rows[1]["ratio_to_decode_lsj"] == 1.0


def without_workers(arguments):
    """Workers import all of Keras first; that their batches are these, the data's tests prove."""
    return {**arguments, "workers": 0}


@pytest.mark.parametrize(
    "change", [without_workers, pytest.param(dict, marks=pytest.mark.slow)], ids=("here", "workers")
)
def test_rows_on_pictures_of_its_own(monkeypatch, change):
    train_batches = data.train_batches
    monkeypatch.setattr(
        data, "train_batches", lambda *a, **options: train_batches(*a, **change(options))
    )
    threads = cv2.getNumThreads()
    check(measure_pipeline(image_size=64, batch_size=2, repeats=2, images=3), batch=2)
    assert cv2.getNumThreads() == threads


@pytest.mark.slow
def test_rows_on_a_data_set_given(tmp_path):
    for split in ("train", "val"):
        data.ShapesDataset(2, 64, split=split).write_coco(tmp_path)
    rows = measure_pipeline(64, batch_size=4, repeats=1, images=4, data_dir=tmp_path)
    check(rows, batch=4)


@pytest.mark.slow
def test_rows_of_classifiers():
    rows = measure_class_pipeline(image_size=64, batch_size=2, repeats=1, images=3)
    check(rows, 2, "classes", ("classes_decode", "classes_decode_crop"))


def test_its_pictures_weigh_what_photos_of_coco_weigh(tmp_path):
    write_photos(tmp_path, 3)
    paths = list((tmp_path / "images" / "train").iterdir())
    assert len(paths) == 3
    assert 140_000 < np.mean([path.stat().st_size for path in paths]) < 180_000
    with Image.open(paths[0]) as image:
        assert image.size == (640, 480)


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        measure_pipeline(repeats=0)
