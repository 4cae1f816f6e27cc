"""Batches of images and masks: reproducible, divided among processes, every image evaluated."""

import numpy as np
import pytest

from keras_densepred import data
from tests.data.masks import Masked
from tests.data.pictures import NORMAL, assert_same, run_script, take

pytestmark = pytest.mark.backend_free


def train(dataset, batch_size=4, image_size=24, seed=0, **arguments):
    arguments = {**NORMAL, **arguments}
    return data.train_mask_batches(
        dataset, batch_size=batch_size, image_size=image_size, seed=seed, **arguments
    )


def evaluate(dataset, batch_size=4, **arguments):
    return data.eval_mask_batches(dataset, batch_size=batch_size, **{**NORMAL, **arguments})


def test_a_training_batch():
    with train(data.ShapesSegmentation(6, 32)) as stream:
        batch = next(stream)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "images": ((4, 24, 24, 3), "float32"),
        "image_sizes": ((4, 2), "int32"),
        "semantic": ((4, 24, 24), "int32"),
    }
    for labels, (height, width) in zip(batch["semantic"], batch["image_sizes"], strict=True):
        assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()
    assert set(np.unique(batch["semantic"])) <= {0, 1, 2, 3, 4, 5, 6, 255}
    # Padding is the mean colour, 0 after normalising, and ignored.
    assert np.abs(batch["images"][batch["semantic"] == 255]).max(initial=0) < 0.02


def test_masks_stay_with_their_images():
    dataset = Masked([(20, 30)] * 8)
    augment = [data.RandomScaleCrop(24), data.RandomFlip()]
    with train(dataset, augment=augment, mean=None, std=None) as stream:
        for batch in take(stream, 4):
            assert batch["images"].dtype == np.uint8
            for image, mask in zip(batch["images"], batch["semantic"], strict=True):
                (index,) = set(np.unique(mask)) - {255}
                assert (image[mask == index] == index).all()


def test_a_batch_depends_on_seed_and_number_only():
    dataset = data.ShapesSegmentation(6, 32)
    with train(dataset) as stream:
        expected = take(stream, 4)
        state = stream.get_state()
    with train(dataset) as stream:
        assert_same([stream.batch(2)], [expected[2]])
        stream.set_state({**state, "next_batch": 1})
        assert_same(take(stream, 3), expected[1:])
    with train(dataset, seed=1) as stream:
        assert not np.array_equal(next(stream)["semantic"], expected[0]["semantic"])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_a_batch(count):
    dataset = data.ShapesSegmentation(6, 32)
    whole = train(dataset)
    shares = [train(dataset, shard=(index, count)) for index in range(count)]
    for number in (0, 3):
        parts = [share.batch(number) for share in shares]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert_same([joined], [whole.batch(number)])


def test_a_bad_image_is_named_or_skipped():
    dataset = Masked([(8, 8)] * 4, bad={1})
    with pytest.raises(data.ImageError, match=r"picture_1\.png"):
        take(train(dataset, image_size=8, augment=[]), 2)
    with train(dataset, image_size=8, augment=[], on_bad_image="skip") as stream:
        masks = np.concatenate([batch["semantic"] for batch in take(stream, 2)])
        assert set(np.unique(masks)) == {0, 2, 3, 255}
        assert stream.skipped_images == {"picture_1.png is broken.": 2}


def test_evaluation_at_the_frame_keeps_masks_at_their_own_size():
    sizes = [(20, 40), (60, 30), (10, 10)]
    batches = evaluate(Masked(sizes), batch_size=2, image_size=40)
    first, last = batches
    assert {key: (value.shape, value.dtype.name) for key, value in first.items()} == {
        "images": ((2, 40, 40, 3), "float32"),
        "semantic": ((2, 60, 40), "int32"),
        "semantic_sizes": ((2, 2), "int32"),
        "image_sizes": ((2, 2), "int32"),
        "indices": ((2,), "int64"),
        "valid": ((2,), "bool"),
    }
    assert first["semantic_sizes"].tolist() == [[20, 40], [60, 30]]
    assert first["image_sizes"].tolist() == [[20, 40], [40, 20]]
    assert last["image_sizes"][0].tolist() == [40, 40], "small images are enlarged"
    assert last["valid"].tolist() == [True, False] and (last["semantic"][1] == 255).all()
    assert (first["semantic"][1, :60, :30].ravel()[1:] == 1).all()
    assert (first["semantic"][1, :, 30:] == 255).all()
    assert (first["images"][0, 20:] == 0).all() and (first["images"][0, :20] != 0).all()


def test_evaluation_at_own_size_has_two_frames():
    sizes = [(20, 40), (60, 30), (33, 35), (10, 10)]
    for _ in range(2):  # every pass is the same
        batches = list(evaluate(Masked(sizes), batch_size=2))
        assert [batch["images"].shape[1:3] for batch in batches] == [(64, 64), (64, 64), (64, 32)]
        assert [b["indices"][b["valid"]].tolist() for b in batches] == [[0, 2], [3], [1]]
        for batch in batches:
            np.testing.assert_array_equal(batch["semantic_sizes"], batch["image_sizes"])
    assert evaluate(Masked(sizes), pad_multiple=1).__iter__().__next__()["images"].shape[1:3] == (
        33,
        40,
    )
    shapes = next(iter(evaluate(data.ShapesSegmentation(2, (32, 48)))))
    assert shapes["images"].shape == (4, 32, 64, 3)


def test_a_bad_image_in_evaluation():
    dataset = Masked([(8, 8)] * 3, bad={1})
    for size in (None, 8):
        with pytest.raises(data.ImageError, match=r"picture_1\.png"):
            list(evaluate(dataset, image_size=size))
    batches = evaluate(dataset, image_size=8, on_bad_image="skip")
    assert next(iter(batches))["valid"].tolist() == [True, False, True, False]
    assert batches.skipped_images == {"picture_1.png is broken.": 1}
    batches = evaluate(dataset, on_bad_image="skip")
    assert sum(int(b["valid"].sum()) for b in batches) == 2


def test_processes_share_an_evaluation():
    dataset = Masked([(8, 8)] * 5)
    shares = [evaluate(dataset, batch_size=4, shard=(index, 2)) for index in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    seen = [b["indices"][b["valid"]].tolist() for share in shares for b in share]
    assert seen == [[0, 1], [4], [2, 3], []]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: next(train(data.ShapesDataset(4, 32))), "has no semantic labels"),
        (lambda: train(Masked([])), "no images"),
        (lambda: train(Masked([(8, 8)]), seed=-1), "`seed`"),
        (lambda: train(Masked([(8, 8)]), shard=(0, 3)), "does not divide"),
        (lambda: train(Masked([(8, 8)]), batch_size=0), "`batch_size`"),
        (lambda: next(train(Masked([(99, 9)] * 4), augment=[])), "larger than `image_size` 24x24"),
        (lambda: train(Masked([(8, 8)]), mean=None), "both `mean` and `std`"),
        (lambda: evaluate(Masked([(8, 8)]), pad_multiple=0), "`pad_multiple`"),
        (lambda: evaluate(Masked([(8, 8)]), shard=(2, 2)), "`shard`"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCRIPT = """
    import numpy as np
    from keras_densepred import data

    NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def batches(workers):
        dataset = data.ShapesSegmentation(9, 32)
        options = dict(batch_size=4, image_size=32, workers=workers, **NORMAL)
        with data.train_mask_batches(dataset, seed=0, **options) as stream:
            trained = [next(stream)["semantic"] for _ in range(3)]
        return trained + [batch["semantic"] for batch in data.eval_mask_batches(dataset, **options)]

    if __name__ == "__main__":
        for here, there in zip(batches(0), batches(1), strict=True):
            np.testing.assert_array_equal(here, there)
        print("same")
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(tmp_path):
    assert run_script(tmp_path, SCRIPT) == ["same"]
