"""Training batches: what is in them, that they depend on seed and number only, bad images."""

import json
import re

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.boxes import cut_by_boxes
from tests.data.pictures import (
    NORMAL,
    Pictures,
    assert_same,
    indices_in,
    run_script,
    take,
    train,
)

pytestmark = pytest.mark.backend_free


def test_a_training_batch():
    with train(Pictures([(32, 32)] * 6), batch_size=6) as stream:
        batch = next(stream)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "images": ((6, 32, 32, 3), "float32"),
        "image_sizes": ((6, 2), "int32"),
        "boxes": ((6, 3, 4), "float32"),
        "labels": ((6, 3), "int32"),
    }
    assert sorted(indices_in(batch)) == list(range(6)), "an epoch has every image once"
    for row, index in enumerate(indices_in(batch)):
        expected = (index - np.array(NORMAL["mean"])) / NORMAL["std"]
        np.testing.assert_allclose(batch["images"][row, 5, 7], expected, rtol=1e-6)
        count = index % 4
        assert (batch["labels"][row] == [*range(count), *[-1] * (3 - count)]).all()
        assert (batch["boxes"][row, count:] == -1).all()
        assert (batch["boxes"][row, :count, 2] == np.arange(count) + 8).all()


def test_epochs_have_every_image_once_in_changing_order():
    with train(Pictures([(32, 32)] * 10), batch_size=5) as stream:
        batches = [indices_in(batch) for batch in take(stream, 8)]
    seen = [first + second for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert all(sorted(epoch) == list(range(10)) for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == 4


def test_one_image_is_enough():
    with train(Pictures([(32, 32)]), augment=data.coco_augmentation(32)) as stream:
        assert next(stream)["images"].shape == (4, 32, 32, 3)


def test_batches_depend_on_seed_and_number_only():
    dataset = data.ShapesDataset(30, 64)
    recipe = data.coco_augmentation(96)
    with train(dataset, image_size=96, augment=recipe) as stream:
        straight = take(stream, 7)
    with train(dataset, image_size=96, augment=recipe) as stream:
        take(stream, 3)
        saved = json.loads(json.dumps(stream.get_state()))
        ahead = take(stream, 3)
        stream.set_state(saved)
        assert_same(take(stream, 4), straight[3:])
        assert_same(ahead, straight[3:6])
    with train(dataset, image_size=96, augment=recipe) as stream:
        stream.set_state(saved)
        assert_same(take(stream, 4), straight[3:])
    with train(dataset, image_size=96, augment=recipe, seed=1) as stream:
        assert not np.array_equal(next(stream)["images"], straight[0]["images"])


def test_a_closed_stream_goes_on():
    dataset = data.ShapesDataset(9, 64)
    with train(dataset, image_size=64) as stream:
        straight = take(stream, 4)
    with train(dataset, image_size=64) as stream:
        first = take(stream, 2)
        stream.close()
        assert_same(first + take(stream, 2), straight)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed = 0, and this stream has seed = 1"),
        ({"batch_size": 8}, "batch_size"),
        ({"dataset": Pictures([(32, 32)] * 11)}, "num_images"),
    ],
)
def test_a_position_of_another_run_is_refused(change, message):
    settings = {"dataset": Pictures([(32, 32)] * 10)}
    state = train(**settings).get_state()
    with pytest.raises(ValueError, match=message):
        train(**{**settings, **change}).set_state(state)


def test_images_are_resized_to_fit_by_default_and_padded_with_zeros():
    dataset = Pictures([(20, 40)] * 4)
    with train(dataset, image_size=80) as stream:
        batch = next(stream)
    assert (batch["images"][:, :40] != 0).all() and (batch["images"][:, 40:] == 0).all()
    np.testing.assert_array_equal(batch["boxes"][batch["labels"] == 0][0], (0, 0, 16, 8))


def test_an_augmentation_that_gives_too_large_images_is_named():
    with (
        train(Pictures([(20, 40)] * 4), augment=[data.RandomFlip()]) as stream,
        pytest.raises(ValueError, match=r"picture_\d\.png.*20x40.*32x32.*FixedSizeCrop"),
    ):
        next(stream)


def test_crowd_regions_are_left_out():
    dataset = Pictures([(32, 32)] * 4, crowd=True)
    with train(dataset) as stream:
        assert (next(stream)["labels"] == -1).all()


def test_the_largest_boxes_are_kept_and_the_others_counted():
    with train(Pictures([(32, 32)] * 4), max_boxes=2) as stream:
        batch = next(stream)
        assert stream.dropped_boxes == 1
        assert stream.max_boxes == 2
    row = indices_in(batch).index(3)
    np.testing.assert_array_equal(batch["labels"][row], [1, 2])  # the third is 8x6, the first 8x4


def test_room_for_pasted_objects():
    dataset = Pictures([(32, 32)] * 4)
    assert train(dataset).max_boxes == 3
    assert train(dataset, augment=data.coco_augmentation(32)).max_boxes == 6
    shapes = data.ShapesDataset(10_000_000)  # not drawn for this
    # Rectangle copy-paste adds seven at most.
    assert train(shapes, augment=data.coco_augmentation(32)).max_boxes == shapes.max_objects + 7


def test_copy_paste_takes_another_image_through_the_steps_before_it():
    dataset = data.ShapesDataset(12, 64)
    steps = data.coco_augmentation(64, scale_range=(1.0, 1.0), copy_paste=False)
    always = [*steps, data.RectangleCopyPaste(probability=1.0)]
    never = [*steps, data.RectangleCopyPaste(probability=0.0)]
    counts = []
    for recipe in (steps, never, always):
        with train(dataset, batch_size=12, image_size=64, augment=recipe) as stream:
            counts.append((next(stream)["labels"] >= 0).sum())
    assert counts[0] == counts[1] < counts[2] - 12


def test_images_have_the_size_in_training_that_they_have_in_tests():
    """With the padding taken for image, DETR learned boxes in shares of another height."""
    dataset = Pictures([(24, 32)] * 4)
    steps = data.coco_augmentation(64, scale_range=(1.0, 1.0), copy_paste=False)
    with train(dataset, batch_size=4, image_size=64, augment=steps) as stream:
        learned = next(stream)
    tested = next(iter(data.eval_batches(dataset, batch_size=4, image_size=64, **NORMAL)))
    assert learned["images"].shape == tested["images"].shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(tested["image_sizes"], [(48, 64)] * 4)
    np.testing.assert_array_equal(learned["image_sizes"], tested["image_sizes"])


def test_a_bad_image_stops_training_and_is_named():
    with (
        train(Pictures([(32, 32)] * 8, bad={5}), batch_size=8) as stream,
        pytest.raises(data.ImageError) as caught,
    ):
        next(stream)
    assert str(caught.value) == "picture_5.png is broken."


def test_a_bad_image_is_skipped_and_counted_on_request():
    dataset = Pictures([(32, 32)] * 8, bad={5, 6})
    with train(dataset, batch_size=8, on_bad_image="skip") as stream:
        for _ in range(3):
            assert sorted(indices_in(next(stream))) == [0, 1, 2, 3, 4, 7, 7, 7]
        # Looking for a replacement of the fifth meets the sixth.
        expected = {"picture_5.png is broken.": 3, "picture_6.png is broken.": 6}
        assert stream.skipped_images == expected
        state = json.loads(json.dumps(stream.get_state()))
    with train(dataset, batch_size=8, on_bad_image="skip") as stream:
        stream.set_state(state)
        assert stream.skipped_images == expected


def test_a_data_set_of_bad_images_only_is_an_error():
    dataset = Pictures([(32, 32)] * 4, bad=range(4))
    with (
        train(dataset, on_bad_image="skip") as stream,
        pytest.raises(data.ImageError, match=r"4 images in a row.*picture_\d\.png is broken"),
    ):
        next(stream)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: train(Pictures([])), "no images"),
        (lambda: train(Pictures([(9, 9)]), batch_size=0), "`batch_size`"),
        (lambda: train(Pictures([(9, 9)]), seed=-1), "`seed`"),
        (lambda: train(Pictures([(9, 9)]), image_size=(0, 9)), "0x9"),
        (lambda: train(Pictures([(9, 9)]), workers=-1), "`workers`"),
        (lambda: train(Pictures([(9, 9)]), on_bad_image="ignore"), "`on_bad_image`"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCRIPT = """
    import json
    import os
    import numpy as np
    from keras_densepred import data

    NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    class SomeBroken(data.ShapesDataset):
        def __getitem__(self, index):
            if index == 3 or os.path.exists("all_broken"):
                raise data.ImageError(f"number_{index}.png is broken.")
            return super().__getitem__(index)

    def stream(workers):
        return data.train_batches(
            SomeBroken(8, 64), batch_size=4, image_size=64, seed=2, workers=workers,
            augment=data.coco_augmentation(64), on_bad_image="skip", **NORMAL
        )

    def training():
        with stream(workers=0) as alone:
            expected = [next(alone) for _ in range(5)]
            counted = alone.skipped_images
        with stream(workers=2) as workers:
            ours = [next(workers) for _ in range(2)]
            state = json.loads(json.dumps(workers.get_state()))
            ours += [next(workers) for _ in range(3)]
            assert workers.skipped_images == counted and counted, (workers.skipped_images, counted)
            open("all_broken", "w").close()
            try:
                for _ in range(8):  # some batches are ready before
                    next(workers)
            except data.ImageError as error:
                print(error)
        os.remove("all_broken")
        with stream(workers=0) as alone:
            alone.set_state(state)
            ours += [next(alone) for _ in range(3)]
        expected += expected[2:]
        for first, second in zip(ours, expected, strict=True):
            for key in second:
                np.testing.assert_array_equal(first[key], second[key])

    if __name__ == "__main__":
        training()
        print("done")
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_in_a_plain_script(tmp_path):
    error, done = run_script(tmp_path, SCRIPT)
    assert re.match(r"8 images in a row could not be read.*number_\d\.png is broken", error)
    assert done == "done"


def test_a_batch_asked_for_by_number_is_that_of_the_stream():
    dataset = data.ShapesDataset(9, 64)
    with train(dataset, image_size=64, augment=data.coco_augmentation(64)) as stream:
        first = take(stream, 3)
        assert_same([stream.batch(number) for number in (2, 0, 1)], [first[2], *first[:2]])
        third = stream.batch(3)
        assert_same(take(stream, 1), [third])


def bytes_of(dataset, **arguments):
    arguments = {"batch_size": 4, "image_size": 64, "seed": 0, **arguments}
    return data.train_batches(dataset, mean=None, std=None, **arguments)


def test_without_mean_and_std_images_stay_bytes():
    dataset = data.ShapesDataset(9, 64)
    recipe = data.coco_augmentation(96)
    with (
        bytes_of(dataset, image_size=96, augment=recipe) as stream,
        train(dataset, image_size=96, augment=recipe) as normalized,
    ):
        for ours, theirs in zip(take(stream, 3), take(normalized, 3), strict=True):
            assert ours["images"].dtype == np.uint8
            expected = (ours["images"] - np.float32(NORMAL["mean"])) / np.float32(NORMAL["std"])
            np.testing.assert_allclose(theirs["images"], expected, rtol=1e-5, atol=1e-6)
            for key in ("boxes", "labels"):
                np.testing.assert_array_equal(ours[key], theirs[key])


def test_bytes_are_padded_with_the_mean_colour():
    with bytes_of(Pictures([(20, 40)] * 4), image_size=80) as stream:
        images = next(stream)["images"]
    assert (images[:, :40] < 4).all()
    assert (images[:, 40:] == data.augment.objects.PAD_COLOR).all()


def test_mean_and_std_come_together():
    with pytest.raises(ValueError, match="both `mean` and `std`"):
        data.train_batches(
            Pictures([(9, 9)]), batch_size=1, image_size=9, seed=0, mean=(0.0,) * 3, std=None
        )


class Bars:
    """Gray pictures with two white bars, each with its box."""

    class_names = ("bar",)
    max_objects = 2
    image_ids = tuple(range(6))

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        boxes = np.array([[8 + index, 5, 25, 17], [40, 20 + index, 60, 44]], np.float32)
        image = np.full((48, 64, 3), 60, np.uint8)
        for x1, y1, x2, y2 in boxes.astype(int):
            image[y1:y2, x1:x2] = 255
        labels = np.zeros(2, np.int32)
        return data.Record(image, boxes, labels, labels != 0, index, f"{index}.png")


@pytest.mark.parametrize("paste", [0.0, 1.0])
def test_boxes_stay_on_their_objects_through_the_recipe(paste):
    steps = data.coco_augmentation(128, copy_paste=False)
    # Without context, which would bring in parts of other objects.
    paste = data.RectangleCopyPaste(probability=paste, context=0)
    recipe = [*steps, data.PadToSize(128), paste]
    white_inside = []
    with bytes_of(Bars(), batch_size=6, image_size=128, augment=recipe) as stream:
        batches = take(stream, 20)
    images = np.concatenate([batch["images"] for batch in batches])
    for image, boxes in zip(images, np.concatenate([b["boxes"] for b in batches]), strict=True):
        white = image[..., 0] > 190
        outside = white.copy()
        for box in boxes[boxes[:, 0] >= 0]:
            x1, y1 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
            x2, y2 = np.ceil(box[2:]).astype(int) + 1
            outside[y1:y2, x1:x2] = False
            # Edges are blurred by an enlargement and moved a little by a reduction.
            margin = (box[2:] - box[:2]) * 0.15 + 2
            left, top = np.ceil(box[:2] + margin).astype(int)
            right, bottom = np.floor(box[2:] - margin).astype(int)
            if right > left and bottom > top:
                white_inside.append(white[top:bottom, left:right].mean())
        assert not outside.any()
    assert len(white_inside) > 50
    # A pasted rectangle may bring a dark edge into an object that it covers in part.
    assert np.mean(white_inside) > 0.98 if paste else min(white_inside) == 1.0


def test_a_transform_of_ones_own_gets_an_array_and_may_be_anywhere():
    seen = []

    class Darker(data.RandomFlip):
        def __call__(self, record, rng):
            seen.append(type(record.image))
            return record.replace(image=record.image // 2)

    steps = data.coco_augmentation(64)
    for place in range(len(steps) + 1):
        recipe = [*steps[:place], Darker(), *steps[place:]]
        with bytes_of(data.ShapesDataset(6, 64), augment=recipe) as stream:
            stream.batch(0)
            darker = stream.batch(1)["images"]
        assert darker.max() <= 128
    assert set(seen) == {np.ndarray}


def test_masks_are_pasted_along_their_outline_in_the_pipeline():
    dataset = data.ShapesDataset(8, 64, with_masks=True)
    steps = data.coco_augmentation(64, scale_range=(1.0, 2.0), copy_paste=False)
    with (
        bytes_of(dataset, augment=[*steps, data.MaskCopyPaste(1.0)]) as stream,
        bytes_of(dataset, augment=steps) as alone,
    ):
        mixed, plain = next(stream), next(alone)
    assert (mixed["labels"] >= 0).sum() > (plain["labels"] >= 0).sum()
    assert (mixed["images"] != plain["images"]).any()


def test_masks_are_cut_out_by_their_boxes():
    dataset = data.ShapesDataset(4, 64, with_masks=True)
    with train(dataset, image_size=64, mask_size=8) as stream:
        batch = next(stream)
    assert batch["masks"].shape == (*batch["labels"].shape, 8, 8)
    assert batch["masks"].dtype == np.uint8 and batch["masks"].max() == 1
    used = batch["labels"] >= 0
    assert batch["masks"][used].any(axis=(1, 2)).all() and not batch["masks"][~used].any()
    message = "has no instance masks: open the data set with"
    with (
        train(data.ShapesDataset(4, 64), image_size=64, mask_size=8) as stream,
        pytest.raises(ValueError, match=message),
    ):
        next(stream)
    with pytest.raises(ValueError, match="`mask_size` must be positive"):
        train(dataset, mask_size=0)


def test_a_cut_mask_is_the_masks_part_in_its_box():
    mask = np.zeros((1, 6, 8), bool)
    mask[0, 2:4, 2:6] = True
    assert cut_by_boxes(mask, np.array([[2, 2, 6, 4]]), 4).all()
    assert np.array_equal(cut_by_boxes(mask, np.array([[0, 0, 8, 6]]), 8)[0, 3], mask[0, 2])
    assert cut_by_boxes(mask, np.array([[5.9, 3.9, 6, 4]]), 3).all()
