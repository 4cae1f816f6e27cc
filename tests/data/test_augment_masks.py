"""Scaling and cropping keep labels on their pixels; colours change and labels do not."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.records import semantic_record

pytestmark = pytest.mark.backend_free


def blocks(height=90, width=120, side=15):
    """A picture of flat blocks, in which the gray value of a pixel is its label."""
    rows, columns = np.mgrid[:height, :width] // side
    labels = (10 + 5 * (rows * 8 + columns) % 240).astype(np.uint8)
    image = np.repeat(labels[..., None], 3, axis=2)
    return semantic_record(image, labels, 0, "blocks.png")


def rng(seed=0):
    return np.random.default_rng(seed)


def test_labels_lie_on_their_pixels_at_every_scale():
    random = rng()
    for _ in range(60):
        record = data.RandomScaleCrop((70, 80), (0.5, 2.0))(blocks(), random)
        assert record.size[0] <= 70 and record.size[1] <= 80
        # Away from the edges of blocks, where bilinear pixels are mixtures, both must agree.
        labels = record.semantic
        inner = np.ones_like(labels, bool)
        for axis in (0, 1):
            for shift in (-2, -1, 1, 2):
                inner &= np.roll(labels, shift, axis) == labels
        inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False
        assert inner.sum() > 30
        np.testing.assert_array_equal(record.image[inner][:, 0], labels[inner])


def test_without_scaling_pixels_are_copied():
    record = data.RandomScaleCrop((90, 120), (1.0, 1.0))(blocks(), rng())
    np.testing.assert_array_equal(record.image, blocks().image)
    cut = data.RandomScaleCrop((90, 30), (4.0, 4.0))(blocks(), rng())
    np.testing.assert_array_equal(cut.image[..., 0], cut.semantic)
    assert cut.size == (90, 30)


def test_halving_takes_the_nearest_label():
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    record = semantic_record(np.repeat(labels[..., None], 3, 2), labels, 0, "x.png")
    half = data.RandomScaleCrop(2, (1.0, 1.0))(record, rng())
    assert half.semantic.tolist() == [[5, 7], [13, 15]]


def test_scale_is_relative_to_the_frame_and_uniform():
    transform, random = data.RandomScaleCrop(60, (0.25, 0.75)), rng()
    widths = [transform(blocks(), random).size[1] for _ in range(300)]
    assert min(widths) >= 15 and max(widths) <= 45
    assert abs(np.mean(widths) - 30) < 1.5


def test_every_place_of_a_crop_occurs():
    transform, random = data.RandomScaleCrop((90, 60), (1.0, 1.0)), rng()
    wide = blocks(90, 120)
    wide = wide.replace(semantic=np.tile(np.arange(120, dtype=np.uint8), (90, 1)))
    lefts = {int(transform(wide, random).semantic[0, 0]) for _ in range(400)}
    assert transform(wide, random).size == (45, 60), "the frame bounds the long side"
    wide = data.RandomScaleCrop((90, 60), (2.0, 2.0))
    lefts = {int(wide(blocks(), random).semantic[0, 0]) for _ in range(200)}
    assert len(lefts) >= 4


@pytest.mark.parametrize("size, frame", [((1, 1), 7), ((3, 200), 5), ((200, 3), (9, 4))])
def test_odd_sizes(size, frame):
    record = semantic_record(np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8), 0, "x.png")
    random = rng()
    for _ in range(50):
        out = data.PadToSize(frame)(data.RandomScaleCrop(frame, (0.1, 3.0))(record, random), random)
        assert (out.semantic == 1).any()


def test_padding_is_ignored():
    record = data.RandomScaleCrop(100, (0.5, 0.5))(blocks(), rng())
    padded = data.PadToSize(100)(record, rng())
    assert padded.size == (100, 100)
    assert (padded.semantic[record.size[0] :] == data.IGNORE_LABEL).all()
    assert (padded.semantic[:, record.size[1] :] == data.IGNORE_LABEL).all()
    assert (padded.semantic != data.IGNORE_LABEL).sum() == np.prod(record.size)


def test_colours_change_and_nothing_else():
    record, random = blocks(), rng()
    before = record.image.copy()
    changed = [data.PhotometricDistortion()(record, random) for _ in range(40)]
    assert all(other.semantic is record.semantic for other in changed)
    np.testing.assert_array_equal(record.image, before)
    same = sum(np.array_equal(other.image, before) for other in changed)
    # Gray pictures have no hue and no saturation: unchanged where neither of the others is drawn.
    assert 4 <= same <= 20
    means = np.array([other.image.mean() for other in changed])
    assert means.min() < before.mean() - 15 and means.max() > before.mean() + 15


def test_each_colour_change_does_what_it_says():
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:] = (200, 100, 60)
    record = semantic_record(colour, np.zeros((4, 4), np.uint8), 0, "x.png")

    def spread(**only):
        settings = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **only}
        random = rng()
        transform = data.PhotometricDistortion(**settings)
        return np.array([transform(record, random).image[0, 0] for _ in range(60)], int)

    bright = spread(brightness=32.0)
    assert np.abs(np.diff(bright, axis=1) - np.diff(colour[0, 0].astype(int))).max() <= 3
    assert 20 < np.abs(bright[:, 1] - 100).max() <= 35, "2 more by way of HSV"
    contrast = spread(contrast=0.2)
    np.testing.assert_allclose(contrast[:, 0] / contrast[:, 1], 2.0, atol=0.06)
    assert contrast[:, 0].min() >= 160 and contrast[:, 0].max() <= 240
    saturation = spread(saturation=0.5)
    assert np.abs(saturation.max(axis=1) - 200).max() <= 2, "the value stays"
    assert np.ptp(saturation.min(axis=1)) > 30
    hue = spread(hue=18.0)
    assert np.abs(hue.max(axis=1) - 200).max() <= 2 and np.abs(hue.min(axis=1) - 60).max() <= 3
    assert np.ptp(hue[:, 1]) > 30


def test_the_recipe_gives_the_size_and_depends_on_the_generator_only():
    def run(seed):
        record, random = blocks(), rng(seed)
        for transform in data.segmentation_augmentation((64, 48)):
            record = transform(record, random)
        return record

    first, again, other = run(3), run(3), run(4)
    assert first.size == (64, 48)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.semantic, again.semantic)
    assert not np.array_equal(first.image, other.image)
    kinds = [type(step) for step in data.segmentation_augmentation(8, photometric=False)]
    assert data.PhotometricDistortion not in kinds


def test_what_cannot_be_augmented_is_named():
    with pytest.raises(ValueError, match="two rising positive numbers"):
        data.RandomScaleCrop(8, (2.0, 0.5))
    with pytest.raises(ValueError, match=r"train_000000\.jpg: RandomScaleCrop is for semantic"):
        data.RandomScaleCrop(8)(data.ShapesDataset(1, 32)[0], rng())
