"""A record checks its promises and keeps its per-object fields together."""

import numpy as np
import pytest

from keras_densepred.data import Record

pytestmark = pytest.mark.backend_free


def make_record(**changes):
    fields = {
        "image": np.zeros((6, 8, 3), np.uint8),
        "boxes": np.array([[0, 0, 2, 2], [1, 1, 4, 5], [3, 0, 8, 6]], np.float32),
        "labels": np.array([2, 0, 1], np.int32),
        "crowd": np.array([False, True, False]),
        "image_id": 7,
        "file_name": "a.jpg",
        "masks": np.arange(3 * 6 * 8).reshape(3, 6, 8) % 5 == 0,
        "semantic": np.full((6, 8), 255, np.uint8),
    }
    return Record(**(fields | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", np.zeros((6, 8, 3), np.float32)),
        ("image", np.zeros((6, 8), np.uint8)),
        ("boxes", np.zeros((3, 4), np.float64)),
        ("boxes", np.zeros((2, 4), np.float32)),
        ("boxes", np.zeros((0,), np.float32)),
        ("labels", np.zeros((3,), np.int64)),
        ("crowd", np.zeros((3,), np.uint8)),
        ("masks", np.zeros((3, 8, 6), bool)),
        ("masks", np.zeros((2, 6, 8), bool)),
        ("semantic", np.zeros((6, 8, 1), np.uint8)),
    ],
)
def test_wrong_shape_or_dtype_names_field_and_file(field, value):
    with pytest.raises(ValueError, match=rf"a\.jpg.*`{field}`"):
        make_record(**{field: value})


@pytest.mark.parametrize("keep", [np.array([True, False, True]), np.array([0, 2])])
def test_select_filters_every_per_object_field(keep):
    record = make_record()
    kept = record.select(keep)
    np.testing.assert_array_equal(kept.boxes, record.boxes[[0, 2]])
    np.testing.assert_array_equal(kept.labels, [2, 1])
    np.testing.assert_array_equal(kept.crowd, [False, False])
    np.testing.assert_array_equal(kept.masks, record.masks[[0, 2]])
    assert kept.image is record.image
    assert kept.image_id == 7


def test_select_none_leaves_empty_arrays_of_the_promised_shape():
    kept = make_record(masks=None).select(np.zeros(3, bool))
    assert kept.boxes.shape == (0, 4)
    assert kept.masks is None
    assert kept.size == (6, 8)


def test_replace_checks_again():
    record = make_record()
    assert record.replace(file_name="b.jpg").file_name == "b.jpg"
    with pytest.raises(ValueError, match="`crowd`"):
        record.replace(crowd=np.zeros(1, bool))
