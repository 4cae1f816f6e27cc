"""Evaluation batches: every image once, at which size, and what bad images do."""

import numpy as np
import pytest

from keras_densepred import data
from tests.data.pictures import Pictures, evaluate, run_script

pytestmark = pytest.mark.backend_free


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
            "image_sizes": ((4, 2), "int32"),
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
    # Without the padding, of the row that fills a batch, too.
    image_sizes = [b["image_sizes"].tolist() for b in batches]
    assert image_sizes == [[[80, 107], [44, 133]], [[80, 80]] * 2, [[107, 80], [133, 30]]]
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


def test_crowd_regions_are_left_out():
    dataset = Pictures([(32, 32)] * 4, crowd=True)
    assert all((batch["labels"] == -1).all() for batch in evaluate(dataset, image_size=32))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: evaluate(Pictures([(9, 9)])), "`image_size`, or both"),
        (lambda: evaluate(Pictures([(9, 9)]), image_size=9, short_side=9), "`image_size`, or both"),
        (lambda: evaluate(Pictures([(9, 9)]), short_side=9, long_side=8), "`short_side` 9"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCRIPT = """
    import numpy as np
    from keras_densepred import data

    NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

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
        evaluation()
        print("done")
"""


@pytest.mark.slow
def test_evaluation_with_worker_processes(tmp_path):
    assert run_script(tmp_path, SCRIPT) == ["done"]
