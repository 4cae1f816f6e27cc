"""Training batches: what is in them, that they depend on seed and number only, bad images."""

import json
import re

import numpy as np
import pytest

from keras_densepred import data
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
