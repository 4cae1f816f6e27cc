"""The built-in classification task: deterministic, balanced, and not to be solved by colour."""

import cv2
import numpy as np
import pytest

from keras_densepred import data

pytestmark = pytest.mark.backend_free


def test_pictures_depend_on_seed_split_and_index():
    first, second = data.ShapesClassification(12, 48), data.ShapesClassification(500, 48)
    np.testing.assert_array_equal(first[7].image, second[7].image)
    assert first[7].image.shape == (48, 48, 3)
    others = data.ShapesClassification(12, 48, seed=1), data.ShapesClassification(12, 48, 0, "val")
    assert all(not np.array_equal(first[7].image, other[7].image) for other in others)
    with pytest.raises(IndexError):
        first[12]


def test_classes_are_balanced_and_counted():
    dataset = data.ShapesClassification(12, 32)
    assert [dataset[i].label for i in range(12)] == [0, 1, 2, 3, 4, 5] * 2
    assert set(dataset.summary().images_per_class.values()) == {2}
    assert len(dataset.class_names) == 6


def test_colour_alone_does_not_tell_the_class():
    """Nearest class mean of a histogram of hues: better than chance, far from the task."""

    def hues(record):
        hsv = cv2.cvtColor(record.image, cv2.COLOR_RGB2HSV).reshape(-1, 3)
        return np.bincount(hsv[:, 0] // 10, weights=(hsv[:, 1] > 90) * 1.0, minlength=18)

    train, val = (data.ShapesClassification(300, 48, 0, split) for split in ("train", "val"))
    features = np.array([hues(train[i]) for i in range(300)])
    features /= features.sum(1, keepdims=True) + 1
    means = np.array([features[label::6].mean(0) for label in range(6)])
    tested = np.array([hues(val[i]) for i in range(300)])
    tested /= tested.sum(1, keepdims=True) + 1
    found = ((tested[:, None] - means) ** 2).sum(2).argmin(1)
    assert 0.2 < np.mean(found == np.arange(300) % 6) < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images"),
        ({"num_images": 1, "image_size": 16}, "image_size"),
        ({"num_images": 1, "seed": -1}, "seed"),
        ({"num_images": 1, "split": "test"}, "split"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.ShapesClassification(**arguments)
