"""The pictures of a classifier's mistakes: drawn for few and many classes, whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from keras_densepred import training

pytestmark = pytest.mark.backend_free


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [2, 40])
def test_confusion(tmp_path, count):
    path = tmp_path / "out" / "confusion.png"
    names = [f"class ${number}_$ with a name that goes on" for number in range(count)]
    confusion = np.eye(count, dtype=int) * 9
    training.draw_confusion(confusion, names, path)
    clean = pixels(path)
    confusion[0, 1] = 5
    training.draw_confusion(confusion, names, path)
    assert not np.array_equal(pixels(path), clean)
    assert [entry.name for entry in path.parent.iterdir()] == ["confusion.png"]


def test_a_class_without_images_is_drawn(tmp_path):
    training.draw_confusion(np.zeros((3, 3), int), ["a", "b", "c"], tmp_path / "none.png")
    assert pixels(tmp_path / "none.png").shape[1] > 300


def test_a_matrix_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 2 classes, and is of shape \(3, 3\)"):
        training.draw_confusion(np.zeros((3, 3)), ["a", "b"], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def colours(path):
    """How many pixels are about dark green and about firebrick red."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return [int((np.abs(pixels - ink).max(2) < 40).sum()) for ink in ((0, 100, 0), (178, 34, 34))]


def test_classified_images_are_green_where_right_and_red_where_wrong(tmp_path):
    path = tmp_path / "samples.png"
    images = [np.full((20, 30 + n, 3), 250, np.uint8) for n in range(5)]
    logits = np.eye(3)[[0, 1, 2, 0, 1]] * 4
    training.draw_classified(images, [0, 1, 2, 0, 1], logits, ["a", "b", "c"], path)
    green, red = colours(path)
    assert green > 50 and red == 0
    training.draw_classified(images, [1, 2, 0, 1, 2], logits, ["a", "b", "c"], path)
    green, red = colours(path)
    assert green == 0 and red > 50


def test_curves_show_accuracy(tmp_path):
    rows = [
        {"epoch": n, "loss": 2.0 - n / 2, "val_top1": n / 3, "ema_val_top1": n / 4} for n in (1, 2)
    ]
    training.plot_curves(rows, tmp_path / "both.png")
    training.plot_curves([{"epoch": 1, "loss": 1.0}], tmp_path / "loss.png")
    both, loss = (pixels(tmp_path / name).shape[1] for name in ("both.png", "loss.png"))
    assert both > 1.5 * loss
