"""Anchors from a data set's boxes."""

import numpy as np
import pytest

from keras_densepred.data import ShapesDataset
from keras_densepred.data.readers.anchor_shapes import box_shapes, cluster_anchors

pytestmark = pytest.mark.backend_free


def test_clear_clusters_are_found():
    rng = np.random.default_rng(0)
    centres = np.array([[10, 30], [60, 20], [50, 90], [200, 210]])
    shapes = np.concatenate([c * rng.uniform(0.95, 1.05, (50, 2)) for c in centres])
    anchors, overlap = cluster_anchors(shapes, 4)
    ascending = centres[np.argsort(centres.prod(1))]
    np.testing.assert_allclose(anchors, ascending, rtol=0.02)
    assert overlap > 0.94


def test_same_seed_same_anchors_and_more_anchors_overlap_more():
    shapes = np.random.default_rng(0).lognormal(3, 1, (400, 2))
    assert cluster_anchors(shapes, 6, seed=3) == cluster_anchors(shapes, 6, seed=3)
    overlaps = [cluster_anchors(shapes, number)[1] for number in (1, 3, 9)]
    assert overlaps == sorted(overlaps) and overlaps[-1] > 0.5


def test_mean_overlap_is_that_of_the_best_anchor():
    anchors, overlap = cluster_anchors(np.array([[10.0, 10.0], [20.0, 40.0]]), 1)
    (width, height), expected = anchors[0], 0.0
    for w, h in ((10, 10), (20, 40)):
        both = min(w, width) * min(h, height)
        expected += both / (w * h + width * height - both) / 2
    assert (width, height) == (15, 25)
    assert overlap == pytest.approx(expected)


def test_every_anchor_is_of_some_box_when_there_are_as_many():
    shapes = np.array([[8.0, 8.0], [16.0, 4.0], [30.0, 60.0]])
    anchors, overlap = cluster_anchors(np.repeat(shapes, 5, axis=0), 3)
    assert anchors == ((8, 8), (16, 4), (30, 60))
    assert overlap == 1.0


@pytest.mark.parametrize("number", [0, 3])
def test_number_has_to_fit_the_boxes(number):
    with pytest.raises(ValueError, match="2 different box shapes"):
        cluster_anchors(np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), number)


class TwoImages:
    def ground_truth(self):
        return {
            "images": [
                {"id": 1, "height": 100, "width": 200},
                {"id": 2, "height": 50, "width": 25},
            ],
            "annotations": [
                {"image_id": 1, "bbox": [0, 0, 20, 10]},
                {"image_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1},
                {"image_id": 2, "bbox": [3, 4, 5, 10], "iscrowd": 0},
            ],
        }


def test_shapes_are_those_at_the_image_size_without_crowd():
    np.testing.assert_allclose(box_shapes(TwoImages(), 100), [[10, 5], [10, 20]])
    assert len(box_shapes(ShapesDataset(4, 64), 64)) > 0


def test_data_without_objects():
    class Empty:
        def ground_truth(self):
            return {"images": [], "annotations": []}

    with pytest.raises(ValueError, match="no objects"):
        box_shapes(Empty(), 100)
