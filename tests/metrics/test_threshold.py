"""The threshold of the best F1."""

import pytest

from keras_densepred.metrics import best_threshold

TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 100}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 1, "category_id": 1, "bbox": [40, 40, 20, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [70, 0, 20, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [0, 60, 40, 40], "iscrowd": 1},
    ],
}

pytestmark = pytest.mark.backend_free


def found(score, box, category_id=1):
    return {"image_id": 1, "category_id": category_id, "bbox": box, "score": score}


def test_the_best_threshold_lies_between_right_and_wrong():
    detections = [
        found(0.9, [0, 0, 10, 10]),
        found(0.8, [41, 41, 19, 19]),
        found(0.6, [70, 1, 20, 20], 2),
        found(0.4, [0, 0, 10, 9]),  # the first object again
        found(0.2, [70, 0, 20, 20]),  # another class's
    ]
    assert best_threshold(TRUTH, detections) == (pytest.approx(0.5), 1.0)


def test_a_wrong_one_above_costs_and_one_in_a_crowd_does_not():
    detections = [
        found(0.9, [0, 0, 10, 10]),
        found(0.8, [20, 80, 5, 5]),
        found(0.7, [5, 65, 20, 20], 2),  # in the crowd region of its class
        found(0.6, [40, 40, 20, 20]),
    ]
    threshold, f1 = best_threshold(TRUTH, detections)
    assert f1 == pytest.approx(2 * 2 / (3 + 3)) and threshold == pytest.approx(0.6)


def test_nothing_right_is_nothing_to_choose_by():
    assert best_threshold(TRUTH, []) == (0.0, 0.0)
    assert best_threshold(TRUTH, [found(0.9, [90, 90, 5, 5])]) == (0.0, 0.0)
    nothing = {**TRUTH, "annotations": []}
    assert best_threshold(nothing, [found(0.9, [90, 90, 5, 5])]) == (0.0, 0.0)
