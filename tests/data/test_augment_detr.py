"""DETR's augmentation draws the sizes of DETR.md 1.13 and moves boxes and masks with the pixels."""

import collections

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.augment.detr import CROP, SHORT_SIDES

pytestmark = pytest.mark.backend_free


def picture(height, width, boxes):
    """White rectangles with their boxes and masks."""
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
        image[mask] = 255
    labels = np.arange(len(boxes), dtype=np.int32)
    crowd = np.zeros(len(boxes), bool)
    return data.Record(image, np.array(boxes, np.float32), labels, crowd, 1, "made.png", masks)


def apply(steps, record, rng):
    for step in steps:
        record = step(record, rng)
    return record


def test_short_sides_are_those_of_the_paper_and_long_sides_bounded():
    resize, seen = data.ResizeShortSide(SHORT_SIDES, 1333), collections.Counter()
    rng, record = np.random.default_rng(0), picture(60, 100, [(0, 0, 50, 30)])
    for _ in range(220):
        height, width = resize(record, rng).size
        seen[height] += 1
        assert width == int(100 * height / 60 + 0.5)
    # 800 would make the long side 1333.3.
    assert set(seen) == set(range(480, 800, 32)) | {800} and min(seen.values()) >= 8
    long = picture(20, 100, [(0, 0, 50, 10)])
    assert resize(long, rng).size == (267, 1333)


def test_crops_have_every_size_that_is_allowed():
    crop, rng = data.RandomSizeCrop(*CROP), np.random.default_rng(0)
    record = picture(500, 300, [(0, 0, 300, 500)])
    sizes = np.array([crop(record, rng).size for _ in range(200)])
    assert sizes[:, 0].min() < 390 and sizes[:, 0].max() > 494
    assert (sizes[:, 1] == 300).all()  # lower than the least: kept whole
    empty = data.RandomSizeCrop(4, 4)(picture(500, 300, [(0, 0, 2, 2)]), rng)
    assert empty.boxes.shape == (0, 4)


def test_every_second_picture_is_cropped():
    steps, rng = data.detr_augmentation(), np.random.default_rng(0)
    record = picture(600, 800, [(200, 150, 600, 450)])
    cropped = 0
    for _ in range(60):
        changed = apply(steps, record, rng)
        assert min(changed.size) <= 800 and max(changed.size) <= 1333
        # Whole, the object takes half of each side.
        shares = (changed.boxes[:, 2:] - changed.boxes[:, :2]) / np.array(changed.size[::-1])
        cropped += not np.allclose(shares, 0.5, atol=0.01)
    assert 20 <= cropped <= 40


def test_boxes_lie_around_their_masks_at_a_smaller_scale():
    steps, rng = data.detr_augmentation(133), np.random.default_rng(1)
    record = picture(60, 80, [(10, 8, 40, 30), (50, 20, 75, 58)])
    for _ in range(30):
        changed = apply(steps, record, rng)
        assert max(changed.size) <= 133
        for box, mask in zip(changed.boxes, changed.masks, strict=True):
            rows, columns = np.nonzero(mask)
            around = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(around, box, atol=2.5)


def test_users_own_steps_get_arrays_in_a_branch():
    class Darker(data.Transform):
        def __call__(self, record, rng):
            assert isinstance(record.image, np.ndarray)
            return record.replace(image=record.image // 2)

    branch = (data.ResizeToFit(32), Darker())
    dataset = data.ShapesDataset(4, 32, seed=0)
    with data.train_batches(
        dataset,
        batch_size=2,
        image_size=32,
        seed=0,
        mean=None,
        std=None,
        augment=[data.Alternatives((branch,))],
    ) as stream:
        images = next(iter(stream))["images"]
    assert images.max() <= 127


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: data.ResizeShortSide(()), "short_sides"),
        (lambda: data.RandomSizeCrop(5, 4), "smallest"),
        (lambda: data.Alternatives(((data.RectangleCopyPaste(),),)), "one image each"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_tell_image_from_padding():
    dataset = data.ShapesDataset(8, 64, seed=0)
    with data.train_batches(
        dataset,
        batch_size=8,
        image_size=96,
        seed=0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        augment=[data.ResizeShortSide((40, 56, 72, 88))],
    ) as stream:
        batch = next(iter(stream))
    assert len(set(batch["image_sizes"][:, 0].tolist())) > 1
    for image, (height, width) in zip(batch["images"], batch["image_sizes"], strict=True):
        assert (image[height:] == 0).all() and (image[:, width:] == 0).all()
        assert image[height - 1].any() and image[:, width - 1].any()
