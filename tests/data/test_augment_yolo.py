"""Darknet's augmentation: boxes stay on their objects, colours change, four images make one."""

import numpy as np
import pytest

from keras_densepred import data

pytestmark = pytest.mark.backend_free


def picture(height=60, width=80, boxes=((10, 20, 40, 50),), color=(200, 40, 40), image_id=0):
    """Black with a coloured rectangle in each box."""
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = color
    return data.Record(
        image=image,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.full(len(boxes), image_id, np.int32),
        crowd=np.zeros(len(boxes), bool),
        image_id=image_id,
        file_name=f"{image_id}.png",
    )


def seen_box(image, minimum=100):
    rows, columns = np.nonzero(image[..., 0].astype(int) - image[..., 1] > minimum)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_stay_on_their_objects():
    generator = np.random.default_rng(0)
    seen_grey = 0
    for _ in range(50):
        record = data.JitterWindow((64, 96), 0.3)(picture(), generator)
        assert record.image.shape == (64, 96, 3)
        seen_grey += bool(np.any((record.image == 127).all(-1)))
        if len(record.boxes):
            np.testing.assert_allclose(record.boxes[0], seen_box(record.image), atol=2)
    assert 10 < seen_grey <= 50


def test_without_jitter_the_image_is_stretched():
    record = data.JitterWindow(30, 0.0)(picture(), np.random.default_rng(0))
    np.testing.assert_allclose(record.boxes, [[10 * 30 / 80, 10, 15, 25]])


def test_objects_outside_of_the_window_are_dropped():
    corner = picture(boxes=[(0, 0, 2, 2)])
    generator = np.random.default_rng(0)
    counts = {len(data.JitterWindow(32, 0.3)(corner, generator).boxes) for _ in range(30)}
    assert counts == {0, 1}


def test_masks_are_refused():
    with_masks = picture().replace(masks=np.zeros((1, 60, 80), bool))
    with pytest.raises(ValueError, match=r"0\.png: JitterWindow takes boxes only"):
        data.JitterWindow(32)(with_masks, np.random.default_rng(0))


def test_colours_change_within_their_bounds():
    record = picture(boxes=[(0, 0, 80, 60)], color=(120, 60, 60))
    generator = np.random.default_rng(0)
    pixels = np.array(
        [data.JitterColors(0, 1, 1.5)(record, generator).image[0, 0] for _ in range(80)], int
    )
    assert 75 <= pixels[:, 0].min() < 90 and 165 < pixels[:, 0].max() <= 182
    np.testing.assert_allclose(pixels[:, 1] / pixels[:, 0], 0.5, atol=0.03)
    pixels = np.array(
        [data.JitterColors(0, 1.5, 1)(record, generator).image[0, 0] for _ in range(80)], int
    )
    assert np.abs(pixels[:, 0] - 120).max() <= 2 and np.ptp(pixels[:, 1]) > 30
    pixels = np.array(
        [data.JitterColors(0.1, 1, 1)(record, generator).image[0, 0] for _ in range(80)], int
    )
    assert np.abs(pixels.max(1) - 120).max() <= 2 and np.ptp(pixels[:, 1]) > 10
    same = data.JitterColors(0, 1, 1)(record, generator)
    np.testing.assert_allclose(same.image, record.image, atol=2)


def test_mosaic_shows_a_window_of_each_image():
    colors = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10))
    records = [
        picture(40, 40, [(0, 0, 40, 40)], color, number) for number, color in enumerate(colors)
    ]
    generator = np.random.default_rng(0)
    for _ in range(20):
        mosaic = data.Mosaic()(*records, generator)
        assert mosaic.labels.tolist() == [0, 1, 2, 3]
        for box, label in zip(mosaic.boxes.astype(int), mosaic.labels, strict=True):
            x1, y1, x2, y2 = box
            assert (mosaic.image[y1:y2, x1:x2] == colors[label]).all()
            assert min(x2 - x1, y2 - y1) >= 0.2 * 40 - 1
        assert (mosaic.boxes[:, 2:] - mosaic.boxes[:, :2]).prod(1).sum() == 1600
    with pytest.raises(ValueError, match="Mosaic needs images of one size"):
        data.Mosaic()(*records[:3], picture(), generator)


def test_mosaic_in_the_pipeline_has_room_for_all_boxes():
    dataset = data.ShapesDataset(4, 64, 0, "train")
    most = max(len(dataset[index].boxes) for index in range(4))
    with data.train_batches(
        dataset,
        batch_size=2,
        image_size=64,
        seed=0,
        mean=None,
        std=None,
        augment=[*data.yolo_augmentation(64), data.Mosaic(probability=1.0)],
    ) as stream:
        batch = next(stream)
        assert batch["boxes"].shape[1] >= 4 * most
        assert (batch["labels"] >= 0).sum() > 0
        again = stream.batch(0)
    np.testing.assert_array_equal(batch["images"], again["images"])


def test_sizes_stay_for_some_steps_and_depend_on_the_step_alone():
    sizes = data.RandomSizes((320, 352, 384), seed=3, every=10)
    drawn = [sizes.at(step) for step in range(200)]
    assert set(drawn) == {320, 352, 384}
    assert all(len(set(drawn[start : start + 10])) == 1 for start in range(0, 200, 10))
    assert drawn == [data.RandomSizes((320, 352, 384), seed=3, every=10).at(s) for s in range(200)]
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
    assert data.resize_images(images, 64).shape == (2, 64, 64, 3)
    assert data.resize_images(images, 32) is images


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: data.JitterWindow(32, 0.5), "`jitter` must be in 0..0.4"),
        (lambda: data.JitterColors(0.6), "`hue` must be in 0..0.5"),
        (lambda: data.JitterColors(saturation=0.9), "at least 1"),
        (lambda: data.Mosaic(margin=0.0), "`margin` must be"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_evaluation_can_stretch():
    dataset = data.ShapesDataset(2, 64, 0, "val")
    options = dict(batch_size=2, mean=(0, 0, 0), std=(255, 255, 255))
    batch = next(iter(data.eval_batches(dataset, image_size=(32, 96), stretch=True, **options)))
    np.testing.assert_allclose(batch["scales"], [[0.5, 1.5]] * 2)
    with pytest.raises(ValueError, match="`stretch` needs an `image_size`"):
        data.eval_batches(dataset, short_side=32, long_side=64, stretch=True, **options)
