"""Batches: what is in them, that they depend on seed and number only, and what bad images do."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from keras_densepred import data

pytestmark = pytest.mark.backend_free

NORMAL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


class Pictures:
    """Pictures of one colour, that of their index, each with `index % 4` objects; some broken."""

    category_ids = (1, 2, 3)

    def __init__(self, sizes, bad=(), crowd=False):
        self.sizes = sizes
        self.bad = bad
        self.crowd = crowd
        self.image_ids = tuple(range(100, 100 + len(sizes)))

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index in self.bad:
            raise data.ImageError(f"picture_{index}.png is broken.")
        height, width = self.sizes[index]
        count = index % 4
        corners = np.arange(count, dtype=np.float32)[:, None]
        return data.Record(
            image=np.full((height, width, 3), index, np.uint8),
            boxes=np.concatenate([corners, corners, corners + 8, corners + 4 + corners], axis=1),
            labels=np.arange(count, dtype=np.int32),
            crowd=np.full(count, self.crowd),
            image_id=100 + index,
            file_name=f"picture_{index}.png",
        )

    def ground_truth(self):
        images = [
            {"id": 100 + i, "height": height, "width": width}
            for i, (height, width) in enumerate(self.sizes)
        ]
        annotations = [
            {"image_id": 100 + i, "iscrowd": int(self.crowd)}
            for i in range(len(self))
            for _ in range(i % 4)
        ]
        return {"images": images, "annotations": annotations}


def train(dataset, batch_size=4, image_size=32, seed=0, **arguments):
    return data.train_batches(
        dataset, batch_size=batch_size, image_size=image_size, seed=seed, **NORMAL, **arguments
    )


def evaluate(dataset, batch_size=4, **arguments):
    return data.eval_batches(dataset, batch_size=batch_size, **NORMAL, **arguments)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def indices_in(batch):
    """Which `Pictures` a batch holds, from their colours."""
    red = batch["images"][:, 0, 0, 0] * NORMAL["std"][0] + NORMAL["mean"][0]
    return np.round(red).astype(int).tolist()


def test_a_training_batch():
    with train(Pictures([(32, 32)] * 6), batch_size=6) as stream:
        batch = next(stream)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "images": ((6, 32, 32, 3), "float32"),
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
    assert all((batch["labels"] == -1).all() for batch in evaluate(dataset, image_size=32))


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
    assert train(shapes, augment=data.coco_augmentation(32)).max_boxes == 2 * shapes.max_objects


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


def test_evaluation_has_every_image_once_and_fills_the_last_batch():
    dataset = Pictures([(32, 32)] * 6)
    batches = evaluate(dataset, image_size=64)
    assert len(batches) == 2
    for _ in range(2):  # every pass is the same
        first, last = batches
        assert first["image_ids"].tolist() == [100, 101, 102, 103]
        assert last["image_ids"].tolist() == [104, 105, 105, 105]
        assert last["valid"].tolist() == [True, True, False, False]
        assert (last["scales"] == 2).all()
        assert {key: (value.shape, value.dtype.name) for key, value in last.items()} == {
            "images": ((4, 64, 64, 3), "float32"),
            "boxes": ((4, 3, 4), "float32"),
            "labels": ((4, 3), "int32"),
            "image_ids": ((4,), "int64"),
            "scales": ((4, 2), "float32"),
            "valid": ((4,), "bool"),
        }


def test_evaluation_at_the_papers_sizes():
    """Shorter side 80, longer at most 133, multiples of 32: wide images first, then tall ones."""
    sizes = [(48, 64), (64, 48), (30, 90), (100, 100), (90, 20)]
    batches = list(
        evaluate(Pictures(sizes), batch_size=2, short_side=80, long_side=133, pad_multiple=32)
    )
    assert [b["images"].shape[1:3] for b in batches] == [(96, 160), (96, 160), (160, 96)]
    assert [b["image_ids"].tolist() for b in batches] == [[100, 102], [103, 103], [101, 104]]
    assert [b["valid"].tolist() for b in batches] == [[True, True], [True, False], [True, True]]
    resized = {}
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            image = batch["images"][row, ..., 0] != 0
            extent = image.any(1).sum(), image.any(0).sum()
            resized[int(batch["image_ids"][row])] = extent
            size = np.array(sizes[batch["image_ids"][row] - 100])
            np.testing.assert_allclose(batch["scales"][row] * size, extent, rtol=1e-6)
    assert resized == {
        100: (80, 107),
        101: (107, 80),
        102: (44, 133),
        103: (80, 80),
        104: (133, 30),
    }


def test_evaluation_boxes_are_in_network_pixels():
    batch = next(iter(evaluate(Pictures([(20, 40)] * 2), batch_size=2, image_size=(40, 80))))
    np.testing.assert_array_equal(batch["boxes"][1, 0], (0, 0, 16, 8))


def test_evaluation_copes_with_a_picture_that_lies_otherwise_than_listed():
    dataset = Pictures([(64, 32)])
    dataset.ground_truth = lambda: {
        "images": [{"id": 100, "height": 32, "width": 64}],
        "annotations": [],
    }
    (batch,) = evaluate(dataset, batch_size=1, short_side=80, long_side=133, pad_multiple=32)
    assert batch["images"].shape == (1, 96, 160, 3)
    np.testing.assert_allclose(batch["scales"], 96 / 64)


def test_a_bad_image_in_evaluation():
    dataset = Pictures([(32, 32)] * 4, bad={1})
    with pytest.raises(data.ImageError, match=r"picture_1\.png"):
        list(evaluate(dataset, image_size=32))
    batches = evaluate(dataset, image_size=32, on_bad_image="skip")
    (batch,) = batches
    assert batch["valid"].tolist() == [True, False, True, True]
    assert batches.skipped_images == {"picture_1.png is broken.": 1}


def test_an_unfinished_pass_does_not_disturb_the_next():
    batches = evaluate(data.ShapesDataset(10, 64), image_size=64)
    next(iter(batches))
    assert sum(batch["valid"].sum() for batch in batches) == 10


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: train(Pictures([])), "no images"),
        (lambda: train(Pictures([(9, 9)]), batch_size=0), "`batch_size`"),
        (lambda: train(Pictures([(9, 9)]), seed=-1), "`seed`"),
        (lambda: train(Pictures([(9, 9)]), image_size=(0, 9)), "0x9"),
        (lambda: train(Pictures([(9, 9)]), workers=-1), "`workers`"),
        (lambda: train(Pictures([(9, 9)]), on_bad_image="ignore"), "`on_bad_image`"),
        (lambda: evaluate(Pictures([(9, 9)])), "`image_size`, or both"),
        (lambda: evaluate(Pictures([(9, 9)]), image_size=9, short_side=9), "`image_size`, or both"),
        (lambda: evaluate(Pictures([(9, 9)]), short_side=9, long_side=8), "`short_side` 9"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCRIPT = """
    import json
    import os
    import sys
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

    def evaluation():
        dataset = data.ShapesDataset(9, 64)
        batches = data.eval_batches(dataset, batch_size=4, image_size=64, workers=1, **NORMAL)
        for _ in range(2):  # the worker process stays
            ids = [b["image_ids"][b["valid"]] for b in batches]
            assert np.concatenate(ids).tolist() == list(range(1, 10)), ids
        next(iter(batches))  # an unfinished pass
        assert sum(b["valid"].sum() for b in batches) == 9
        batches.close()

    if __name__ == "__main__":
        globals()[sys.argv[1]]()
        print("done")
"""


def run_script(tmp_path, part):
    """Runs a part of SCRIPT as users run theirs: spawned workers cannot import a test module."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = str(Path(data.__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, str(script), part],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_worker_processes_give_the_same_batches_in_a_plain_script(tmp_path):
    error, done = run_script(tmp_path, "training")
    assert re.match(r"8 images in a row could not be read.*number_\d\.png is broken", error)
    assert done == "done"


@pytest.mark.slow
def test_evaluation_with_worker_processes(tmp_path):
    assert run_script(tmp_path, "evaluation") == ["done"]
