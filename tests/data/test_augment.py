"""Every transform moves boxes, masks and labels with the pixels, and CEDNet's rules hold."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.augment.objects import resize
from keras_densepred.data.boxes import box_iou, mask_boxes

pytestmark = pytest.mark.backend_free


def rectangles(boxes, size=(64, 96), labels=None, colors=None, crowd=None, ground=0):
    """A picture of filled rectangles, each with its box, mask and semantic label."""
    count = len(boxes)
    boxes = np.asarray(boxes, np.float32).reshape(count, 4)
    labels = np.arange(count, dtype=np.int32) if labels is None else np.asarray(labels, np.int32)
    colors = 50 + 20 * np.arange(count) if colors is None else colors
    image = np.full((*size, 3), ground, np.uint8)
    masks = np.zeros((count, *size), bool)
    semantic = np.zeros(size, np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        masks[i, y1:y2, x1:x2] = True
        image[masks[i]] = colors[i]
        semantic[masks[i]] = labels[i] + 1
    crowd = np.zeros(count, bool) if crowd is None else np.asarray(crowd)
    return data.Record(image, boxes, labels, crowd, 1, "made.png", masks, semantic)


def rng(seed=0):
    return np.random.default_rng(seed)


def assert_consistent(record, tolerance=1.0):
    """Boxes lie around masks, masks on the bright pixels, semantic labels on the masks."""
    height, width = record.size
    assert (record.boxes >= 0).all() and (record.boxes <= (width, height) * 2).all()
    assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
    for box, label, mask in zip(record.boxes, record.labels, record.masks, strict=True):
        np.testing.assert_allclose(mask_boxes(mask[None])[0], box, atol=tolerance)
        assert np.mean(record.image[mask] > 0) > 0.5
        assert np.mean(record.semantic[mask] == label + 1) > 0.9


SCENE = rectangles([(10, 8, 40, 30), (50, 20, 90, 60), (0, 40, 12, 64)])


def test_resize_moves_everything():
    resized = resize(SCENE, 128, 48)
    assert resized.size == (128, 48)
    np.testing.assert_allclose(resized.boxes[0], (5, 16, 20, 60))
    assert_consistent(resized)


def test_resize_to_fit_keeps_the_aspect_ratio():
    assert data.ResizeToFit(192)(SCENE, rng()).size == (128, 192)
    assert data.ResizeToFit((32, 192))(SCENE, rng()).size == (32, 48)
    assert data.ResizeToFit((64, 96))(SCENE, rng()) is SCENE


def test_large_scale_jitter_is_uniform_in_its_range_and_keeps_the_aspect_ratio():
    jitter = data.LargeScaleJitter(96, (0.5, 2.0))
    generator = rng()
    sizes = np.array([jitter(SCENE, generator).size for _ in range(300)])
    factors = sizes[:, 1] / 96
    assert 0.5 <= factors.min() < 0.53 and 1.97 < factors.max() <= 2.0
    assert abs(np.mean(factors) - 1.25) < 0.08
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 64 / 96, atol=0.02)
    assert_consistent(jitter(SCENE, rng(1)), tolerance=1.5)


def test_jitter_fits_the_tighter_side():
    record = data.LargeScaleJitter((32, 96), (1.0, 1.0))(SCENE, rng())
    assert record.size == (32, 48)


def test_jitter_refuses_an_empty_range():
    with pytest.raises(ValueError, match="scale_range"):
        data.LargeScaleJitter(96, (2.0, 1.0))


def test_crop_cuts_boxes_and_drops_what_is_outside():
    generator = rng()
    seen = set()
    for _ in range(80):
        cut = data.FixedSizeCrop(32)(SCENE, generator)
        assert cut.size == (32, 32)
        assert_consistent(cut, tolerance=0)
        seen.add(len(cut.labels))
    assert {0, 1, 2} <= seen, "some crops hold no object, some several"


def test_crop_reaches_all_corners_and_leaves_small_images():
    assert data.FixedSizeCrop(100)(SCENE, rng()).size == (64, 96)
    tops = set()
    generator = rng()
    image = np.arange(4, dtype=np.uint8)[:, None, None].repeat(5, 1).repeat(3, 2)
    record = data.Record(
        image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), 1, "x"
    )
    for _ in range(50):
        tops.add(int(data.FixedSizeCrop((2, 9))(record, generator).image[0, 0, 0]))
    assert tops == {0, 1, 2}


def test_tiny_boxes_are_dropped():
    boxes = SCENE.boxes.copy()
    boxes[1] = (5, 5, 5.005, 20)
    kept = data.DropTinyBoxes()(SCENE.replace(boxes=boxes), rng())
    np.testing.assert_array_equal(kept.labels, [0, 2])
    assert len(data.DropTinyBoxes(25)(SCENE, rng()).labels) == 1


def test_flip_mirrors_everything_half_of_the_time():
    flipped = data.RandomFlip(1.0)(SCENE, rng())
    np.testing.assert_array_equal(flipped.boxes[0], (56, 8, 86, 30))
    np.testing.assert_array_equal(flipped.image, SCENE.image[:, ::-1])
    assert_consistent(flipped, tolerance=0)
    generator = rng()
    changed = [data.RandomFlip()(SCENE, generator) is not SCENE for _ in range(200)]
    assert 70 < sum(changed) < 130


def test_pad_adds_the_mean_colour_on_the_right_and_below():
    padded = data.PadToSize((80, 100))(SCENE, rng())
    assert padded.size == (80, 100)
    assert (padded.image[64:] == data.augment.objects.PAD_COLOR).all()
    assert (padded.image[:, 96:] == data.augment.objects.PAD_COLOR).all()
    assert (padded.semantic[64:] == data.IGNORE_LABEL).all()
    np.testing.assert_array_equal(padded.image[:64, :96], SCENE.image)
    np.testing.assert_array_equal(padded.boxes, SCENE.boxes)
    assert_consistent(padded, tolerance=0)
    with pytest.raises(ValueError, match=r"made\.png.*64x96.*32x32"):
        data.PadToSize(32)(SCENE, rng())


def test_iou():
    first = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    second = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [3, 3, 3, 3]], np.float32)
    np.testing.assert_allclose(box_iou(first, second), [[1 / 3, 1, 0], [0, 0, 0]], rtol=1e-6)
    assert box_iou(first, np.zeros((0, 4), np.float32)).shape == (2, 0)


GROUND = rectangles([(0, 0, 20, 20)], colors=[200])
PARTNER = rectangles(
    [(1, 1, 21, 21), (60, 10, 80, 30), (60, 40, 80, 50)], labels=[5, 6, 7], colors=[90, 91, 92]
)


def test_rectangle_paste_leaves_out_what_overlaps_and_adds_boxes_without_context():
    paste = data.RectangleCopyPaste(context=4)
    counts = set()
    generator = rng()
    for _ in range(60):
        mixed = paste(GROUND, PARTNER, generator)
        np.testing.assert_array_equal(mixed.boxes[0], GROUND.boxes[0])
        assert 5 not in mixed.labels, "it overlaps a box by more than 0.2"
        counts.add(tuple(mixed.labels))
        for box, label in zip(mixed.boxes[1:], mixed.labels[1:], strict=True):
            np.testing.assert_array_equal(box, PARTNER.boxes[label - 5])
            assert (mixed.image[mixed.masks[list(mixed.labels).index(label)]] == 85 + label).all()
    # Two draws with replacement out of two: one of them alone, or both, never one twice.
    assert counts == {(0, 6), (0, 7), (0, 6, 7)}


def test_rectangle_paste_copies_the_context_too():
    ground = rectangles([(0, 0, 5, 5)], ground=30)
    partner = rectangles([(40, 20, 60, 40)], ground=250)
    context = set()
    generator = rng()
    for _ in range(200):
        mixed = data.RectangleCopyPaste()(ground, partner, generator)
        pasted = np.nonzero((mixed.image[..., 0] == 250) | (mixed.image[..., 0] == 50))
        rows = pasted[0][pasted[1] > 20]
        context.add(20 - rows.min())
    assert context == set(range(16))


def test_rectangle_paste_draws_seven_at_most():
    boxes = [(x, y, x + 6, y + 6) for x in range(0, 90, 10) for y in range(0, 60, 10)]
    partner = rectangles(boxes, labels=np.zeros(len(boxes)), colors=np.full(len(boxes), 99))
    ground = rectangles([])
    generator = rng()
    counts = {len(data.RectangleCopyPaste()(ground, partner, generator).labels) for _ in range(60)}
    assert max(counts) == 7 and min(counts) >= 4


def test_rectangle_paste_keeps_covered_boxes():
    ground = rectangles([(30, 30, 34, 34)])
    partner = rectangles([(20, 20, 60, 60)], labels=[3])
    mixed = data.RectangleCopyPaste()(ground, partner, rng())  # IoU 0.01, fully covered
    np.testing.assert_array_equal(mixed.labels, [0, 3])
    assert mixed.masks[0].sum() == 16


@pytest.mark.parametrize("paste", [data.RectangleCopyPaste(), data.MaskCopyPaste()])
def test_crowd_regions_are_not_pasted_and_nothing_to_paste_is_fine(paste):
    crowd = rectangles([(60, 10, 80, 30)], crowd=[True])
    assert paste(GROUND, crowd, rng()) is GROUND
    assert paste(GROUND, rectangles([]), rng()) is GROUND


@pytest.mark.parametrize("paste", [data.RectangleCopyPaste(), data.MaskCopyPaste()])
def test_the_records_given_stay_as_they_are(paste):
    before = (
        [a.image.copy() for a in (GROUND, PARTNER)],
        [a.masks.copy() for a in (GROUND, PARTNER)],
    )
    for seed in range(5):
        paste(GROUND, PARTNER, rng(seed))
    for record, image, mask in zip((GROUND, PARTNER), *before, strict=True):
        np.testing.assert_array_equal(record.image, image)
        np.testing.assert_array_equal(record.masks, mask)


@pytest.mark.parametrize("paste", [data.RectangleCopyPaste(), data.MaskCopyPaste()])
def test_paste_needs_images_of_one_size(paste):
    with pytest.raises(ValueError, match="PadToSize"):
        paste(GROUND, data.PadToSize(100)(PARTNER, rng()), rng())


def test_mask_paste_cuts_what_it_covers():
    ground = rectangles([(10, 10, 50, 30), (62, 12, 70, 20), (0, 50, 9, 60)])
    partner = rectangles([(40, 0, 90, 40)], labels=[8], colors=[77])
    mixed = data.MaskCopyPaste()(ground, partner, rng())
    np.testing.assert_array_equal(mixed.labels, [0, 2, 8])  # the second is fully covered
    np.testing.assert_array_equal(mixed.boxes[0], (10, 10, 40, 30))
    np.testing.assert_array_equal(mixed.boxes[1], (0, 50, 9, 60))
    np.testing.assert_array_equal(mixed.boxes[2], (40, 0, 90, 40))
    assert (mixed.image[mixed.masks[2]] == 77).all()
    assert mixed.masks.sum(0).max() == 1
    assert (mixed.semantic[mixed.masks[2]] == 9).all()
    assert_consistent(mixed, tolerance=0)


def test_mask_paste_follows_the_outline_and_takes_random_subsets():
    partner = PARTNER.replace(masks=PARTNER.masks.copy())
    partner.masks[1, 10:20] = False  # only the lower half of the second object
    subsets = set()
    generator = rng()
    for _ in range(100):
        mixed = data.MaskCopyPaste()(rectangles([], ground=7), partner, generator)
        subsets.add(tuple(mixed.labels))
        if 6 in mixed.labels:
            assert (mixed.image[10:20, 60:80] == 7).all()
    assert len(subsets) == 7


def test_mask_paste_keeps_boxes_of_untouched_objects_exactly():
    ground = rectangles([(0, 50, 9, 60)])
    ground = ground.replace(boxes=ground.boxes + np.float32(0.25))
    mixed = data.MaskCopyPaste()(ground, PARTNER, rng())
    np.testing.assert_array_equal(mixed.boxes[0], ground.boxes[0])


def test_mask_paste_needs_masks():
    with pytest.raises(ValueError, match="with_masks=True"):
        data.MaskCopyPaste()(GROUND.replace(masks=None), PARTNER.replace(masks=None), rng())


def test_the_papers_recipe_gives_full_images_with_sound_boxes():
    dataset = data.ShapesDataset(20, 96, with_masks=True, with_semantic=True)
    *steps, paste = data.coco_augmentation(128)
    assert paste == data.RectangleCopyPaste(probability=0.5, max_pasted=7, max_iou=0.2, context=15)
    assert steps[0] == data.LargeScaleJitter(128, (0.1, 2.0))
    assert not isinstance(data.coco_augmentation(128, copy_paste=False)[-1], data.CopyPaste)
    generator = rng()
    for index in range(0, 20, 2):
        pair = [dataset[index], dataset[index + 1]]
        for step in steps:
            pair = [step(record, generator) for record in pair]
        mixed = paste(*pair, generator)
        assert mixed.size == (128, 128)
        assert (mixed.boxes >= 0).all() and (mixed.boxes <= 128).all()
        assert (mixed.boxes[:, 2:] - mixed.boxes[:, :2] >= 0.01).all()
