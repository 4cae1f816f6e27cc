"""MMSegmentation's augmentation: limits, varied crops, the order of the colours."""

import cv2
import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.augment.scene_parsing import size_under_limits

pytestmark = pytest.mark.backend_free


def record(height, width, semantic=None):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if semantic is None:
        semantic = rng.integers(0, 3, (height, width)).astype(np.uint8)
    return data.Record(
        image=image,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        image_id=0,
        file_name="picture.png",
        semantic=semantic,
    )


@pytest.mark.parametrize(
    "size, expected",
    [
        ((683, 512), (683, 512)),
        ((256, 256), (512, 512)),
        ((300, 400), (512, 683)),  # 682.67
        ((100, 1000), (205, 2048)),  # the longer side's limit decides; 204.8
        ((1000, 100), (2048, 205)),
    ],
)
def test_sizes_under_512_and_2048(size, expected):
    assert size_under_limits(size, 512, 2048) == expected


def test_the_limits_are_cut_to_integers():
    resize = data.RandomLimitedResize(101, scale_range=(0.75, 0.75))
    found = resize(record(40, 60), np.random.default_rng(0))
    assert found.size == (75, 113)  # int(75.75); 112.5 rounds up
    assert found.semantic.shape == found.size and set(np.unique(found.semantic)) <= {0, 1, 2}


def test_crops_are_drawn_anew_until_no_class_fills_them():
    semantic = np.zeros((64, 64), np.uint8)
    semantic[:, 56:] = 1
    semantic[:, 60:] = 255
    crop = data.VariedCrop(16)
    varied = [
        np.bincount(crop(record(64, 64, semantic), np.random.default_rng(s)).semantic.ravel())
        for s in range(40)
    ]
    alone = data.VariedCrop(16, tries=0)
    plain = [
        np.bincount(alone(record(64, 64, semantic), np.random.default_rng(s)).semantic.ravel())
        for s in range(40)
    ]

    def good(counts):
        classes = np.append(counts, np.zeros(2, int))[:2]
        return classes.min() > 0 and classes.max() < 0.75 * classes.sum()

    assert sum(map(good, varied)) > 4 * sum(map(good, plain)) and sum(map(good, varied)) > 20


def test_a_crop_of_one_class_is_taken_in_the_end():
    semantic = np.full((20, 9), 4, np.uint8)
    found = data.VariedCrop(16)(record(20, 9, semantic), np.random.default_rng(0))
    assert found.size == (16, 9) and (found.semantic == 4).all()


def test_an_image_and_its_labels_are_cut_alike():
    one = record(30, 30)
    one = one.replace(semantic=one.image[..., 0] % 3)
    found = data.VariedCrop(16)(one, np.random.default_rng(3))
    np.testing.assert_array_equal(found.semantic, found.image[..., 0] % 3)


class Coins:
    """Draws that are told: five coins, brightness, contrast, saturation, hue."""

    def __init__(self, coins, brightness, contrast, saturation, hue):
        self.coins = np.where(coins, 0.0, 1.0)
        self.values = iter((brightness, contrast, saturation))
        self.hue = hue

    def random(self, count):
        assert count == 5
        return self.coins

    def uniform(self, low, high):
        value = next(self.values)
        assert low <= value <= high
        return value

    def integers(self, low, high):
        assert (low, high) == (-18, 18)
        return self.hue


def truncated(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def expected_colours(image, coins, brightness, contrast, saturation, hue):
    """Step by step with the arithmetic as it is published."""
    brighter, contrasted, saturated, hued, first = coins
    x = image
    if brighter:
        x = truncated(x.astype(np.float32) + brightness)
    if contrasted and first:
        x = truncated(x.astype(np.float32) * contrast)
    if saturated:
        hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = truncated(hsv[..., 1].astype(np.float32) * saturation)
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hued:
        hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrasted and not first:
        x = truncated(x.astype(np.float32) * contrast)
    return x


@pytest.mark.parametrize(
    "coins",
    [
        (1, 1, 1, 1, 1),
        (1, 1, 1, 1, 0),
        (0, 1, 0, 1, 0),
        (1, 0, 1, 0, 1),
        (0, 0, 0, 0, 1),
    ],
)
def test_colours_change_step_by_step(coins):
    one = record(24, 20)
    draws = (-20.5, 1.25, 0.75, -7)
    found = data.OrderedDistortion()(one, Coins(np.array(coins, bool), *draws)).image
    expected = expected_colours(one.image, coins, *draws)
    np.testing.assert_array_equal(found, expected)
    assert (found == one.image).all() == (not any(coins[:4]))


def test_the_list_of_the_paper():
    steps = data.scene_parsing_augmentation(32)
    names = ["RandomLimitedResize", "VariedCrop", "RandomFlip", "OrderedDistortion", "PadToSize"]
    assert [type(step).__name__ for step in steps] == names
    rng = np.random.default_rng(0)
    one = record(20, 50)
    for step in steps:
        one = step(one, rng)
    assert one.size == (32, 32)
    padded = data.scene_parsing_augmentation(32, scale_range=(0.5, 0.5), photometric=False)
    one = record(20, 50)
    for step in padded:
        one = step(one, rng)
    assert (one.semantic[17:] == 255).all() and (one.image[17:] == (124, 116, 104)).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: data.RandomLimitedResize(8, scale_range=(2.0, 1.0)), "`scale_range`"),
        (lambda: data.RandomLimitedResize(0), "Limits must be positive"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_records_of_objects_are_refused():
    plain = record(8, 8).replace(semantic=None)
    for step in (data.RandomLimitedResize(8), data.VariedCrop(8)):
        with pytest.raises(ValueError, match="is for semantic labels"):
            step(plain, np.random.default_rng(0))
