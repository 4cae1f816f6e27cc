"""The sheet of truth and predictions is written whole, with the classes that are on it."""

import numpy as np
import pytest
from PIL import Image

from keras_densepred import training

pytestmark = pytest.mark.backend_free


def test_truth_and_prediction_beside_each_other(tmp_path):
    images = [np.full((20, 40, 3), 128, np.uint8), np.full((30, 10, 3), 128, np.uint8)]
    truth = [np.ones((20, 40), np.uint8), np.full((30, 10), 255, np.uint8)]
    found = [np.full((20, 40), 2, np.int64), np.full((30, 10), 0, np.int64)]
    names = ("background", "cat", "dog")
    path = tmp_path / "sheet.png"
    training.draw_segmentations(images, truth, found, names, path, side=100)
    assert [item.name for item in tmp_path.iterdir()] == ["sheet.png"]
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)

    from keras_densepred.data.drawing.semantic import label_colour

    for label in (1, 2):
        tint = 0.6 * np.array(label_colour(label, names)) + 0.4 * 128
        # 100 x 50 pixels on the sheet, beside what the legend has.
        near = (np.abs(sheet - tint) <= 2).all(axis=2)
        assert 4500 < near.sum() < 5800
    left, right = ((np.abs(sheet - c) <= 2).all(2).nonzero()[1] for c in _tints(names))
    assert np.median(left) < np.median(right)


def _tints(names):
    from keras_densepred.data.drawing.semantic import label_colour

    return [0.6 * np.array(label_colour(label, names)) + 0.4 * 128 for label in (1, 2)]


def test_one_image_for_each_truth(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError):
        training.draw_segmentations([image], [mask], [], ("a",), tmp_path / "sheet.png")
