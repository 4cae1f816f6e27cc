"""Non-maximum suppression against a plain NumPy loop."""

import keras
import numpy as np
import pytest

from keras_densepred.ops.nms import BLOCK, non_max_suppression
from tests.boxes import assert_matches_reference, random_boxes
from tests.weights import compiled


def run(boxes, scores, **kwargs):
    suppress = compiled(non_max_suppression, "max_detections", "pre_nms_top_k", "from_logits")
    result = suppress(
        keras.ops.convert_to_tensor(boxes), keras.ops.convert_to_tensor(scores), **kwargs
    )
    return {key: keras.ops.convert_to_numpy(value) for key, value in result.items()}


@pytest.mark.parametrize(
    ("iou_threshold", "score_threshold", "max_detections"),
    [(0.5, 0.05, 100), (0.1, 0.3, 7), (0.9, 0.0, 400), (0.0, 0.05, 50)],
)
def test_equals_greedy_reference(iou_threshold, score_threshold, max_detections):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 3, 60)
    scores = rng.uniform(0, 1, (3, 60, 4)).astype("float32")
    settings = {
        "iou_threshold": iou_threshold,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
    }
    result = run(boxes, scores, **settings)
    assert_matches_reference(boxes, scores, result, **settings)


def test_equal_scores_and_identical_boxes():
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 2, 40)
    boxes[:, 20:] = boxes[:, :20]
    scores = (rng.integers(0, 4, (2, 40, 3)) / 4).astype("float32")
    settings = {"iou_threshold": 0.5, "score_threshold": 0.2, "max_detections": 90}
    assert_matches_reference(boxes, scores, run(boxes, scores, **settings), **settings)


def test_long_chain_of_suppressions_is_followed_to_its_end():
    """Each box overlaps only its neighbours, so every second one survives."""
    x = np.arange(60, dtype="float32") * 4
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], -1)[None]
    scores = np.linspace(0.9, 0.1, 60, dtype="float32")[None, :, None]
    result = run(boxes, scores, iou_threshold=0.3, score_threshold=0.05, max_detections=60)
    assert result["num_detections"].tolist() == [30]
    np.testing.assert_array_equal(result["boxes"][0, :30], boxes[0, ::2])


def test_classes_do_not_suppress_each_other():
    boxes = np.tile(np.array([[[3.0, 3.0, 9.0, 9.0]]], "float32"), (1, 5, 1))
    scores = np.full((1, 5, 3), 0.6, "float32")
    result = run(boxes, scores, max_detections=10)
    assert result["num_detections"].tolist() == [3]
    assert sorted(result["labels"][0, :3]) == [0, 1, 2]


def test_nothing_above_the_threshold():
    boxes = random_boxes(np.random.default_rng(2), 2, 9)
    result = run(boxes, np.full((2, 9, 2), 0.01, "float32"), max_detections=20)
    assert result["num_detections"].tolist() == [0, 0]
    for key in ("boxes", "labels", "confidence"):
        assert (result[key] == -1).all()
    assert result["boxes"].shape == (2, 20, 4)
    assert result["labels"].dtype == np.int32


def test_only_the_highest_pairs_take_part():
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 1, 50, span=2000.0)
    scores = rng.uniform(0.1, 1, (1, 50, 2)).astype("float32")
    result = run(boxes, scores, pre_nms_top_k=12, max_detections=100)
    assert result["num_detections"].tolist() == [12]
    np.testing.assert_allclose(result["confidence"][0, :12], -np.sort(-scores.ravel())[:12])


def test_boxes_without_area_are_kept_and_finite():
    boxes = np.zeros((1, 3, 4), "float32")
    result = run(boxes, np.full((1, 3, 1), 0.5, "float32"), max_detections=3)
    assert result["num_detections"].tolist() == [3]
    assert np.isfinite(result["boxes"]).all()


def test_half_precision_scores_do_not_move_the_boxes():
    boxes = random_boxes(np.random.default_rng(4), 1, 8, span=1000.0)
    scores = keras.ops.cast(np.full((1, 8, 1), 0.5, "float32"), "bfloat16")
    kept = run(boxes, scores, max_detections=8)["boxes"][0]
    assert all(any((row == box).all() for box in boxes[0]) for row in kept if row[0] >= 0)


@pytest.mark.parametrize(("num_boxes", "max_detections"), [(BLOCK // 2 + 1, 500), (BLOCK, 9)])
def test_candidates_of_several_blocks(num_boxes, max_detections):
    """Suppressors in earlier blocks, a last block that is not full, images that end early."""
    rng = np.random.default_rng(5)
    boxes = random_boxes(rng, 3, num_boxes)
    scores = rng.uniform(0, 1, (3, num_boxes, 3)).astype("float32")
    scores[1] *= 0.1
    scores[2, :, 1:] = 0
    settings = {"iou_threshold": 0.3, "score_threshold": 0.05, "max_detections": max_detections}
    assert_matches_reference(boxes, scores, run(boxes, scores, **settings), **settings)


def test_chain_of_suppressions_across_blocks():
    num = 2 * BLOCK + 7
    x = np.arange(num, dtype="float32") * 4
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], -1)[None]
    scores = np.linspace(0.9, 0.1, num, dtype="float32")[None, :, None]
    result = run(boxes, scores, iou_threshold=0.3, max_detections=num)
    assert result["num_detections"].tolist() == [(num + 1) // 2]
    np.testing.assert_array_equal(result["boxes"][0, : (num + 1) // 2], boxes[0, ::2])


@pytest.mark.parametrize("score_threshold", [0.0, 0.4])
def test_logits_give_what_their_scores_give(score_threshold):
    rng = np.random.default_rng(6)
    boxes = random_boxes(rng, 2, 70)
    logits = rng.normal(0, 2, (2, 70, 4)).astype("float32")
    logits[0, :5] = float("-inf")
    scores = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits))
    settings = {"iou_threshold": 0.4, "score_threshold": score_threshold, "max_detections": 300}
    result = run(boxes, logits, from_logits=True, **settings)
    # The sigmoid of few values and of many may differ in the last bits.
    assert_matches_reference(boxes, scores, result, rtol=1e-6, **settings)


def test_logits_of_equal_score_go_by_box_and_class():
    """Both round to a score of 1, so the first box goes first in spite of its lower logit."""
    boxes = random_boxes(np.random.default_rng(7), 1, 1)
    boxes = np.concatenate([boxes, boxes + np.float32(0.125)], axis=1)
    logits = np.array([[[40.0, 50.0], [60.0, 70.0]]], "float32")
    result = run(boxes, logits, from_logits=True, max_detections=4)
    assert result["num_detections"].tolist() == [2]
    assert result["labels"][0, :2].tolist() == [0, 1]
    np.testing.assert_array_equal(result["boxes"][0, :2], boxes[0, [0, 0]])


def test_boxes_computed_where_they_take_part():
    rng = np.random.default_rng(8)
    boxes = random_boxes(rng, 2, 50)
    scores = rng.uniform(0, 1, (2, 50, 3)).astype("float32")
    asked = []

    def corners(index):
        asked.append(keras.ops.convert_to_numpy(index))
        return np.take_along_axis(boxes, asked[-1][..., None], axis=1)

    settings = {"max_detections": 20, "pre_nms_top_k": 30}
    result = non_max_suppression(corners, keras.ops.convert_to_tensor(scores), **settings)
    assert len(asked) == 1 and asked[0].shape == (2, 30)
    for key, value in run(boxes, scores, **settings).items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(result[key]), value)


def test_open_number_of_boxes():
    """With fewer boxes than candidates wanted, the missing ones are none, not boxes of score 0."""
    rng = np.random.default_rng(9)
    boxes = random_boxes(rng, 2, 20)
    logits = rng.normal(0, 2, (2, 20, 3)).astype("float32")
    settings = {"iou_threshold": 0.5, "score_threshold": 0.0, "max_detections": 90}
    inputs = keras.Input((None, 4)), keras.Input((None, 3))
    outputs = Suppression(from_logits=True, pre_nms_top_k=100, **settings)(*inputs)
    result = keras.Model(inputs, outputs).predict_on_batch([boxes, logits])
    assert_matches_reference(boxes, 1 / (1 + np.exp(-logits)), result, rtol=1e-5, **settings)


class Suppression(keras.layers.Layer):
    """Names its result's shapes: PyTorch cannot trace the loops on shapes alone."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def call(self, boxes, scores):
        return non_max_suppression(boxes, scores, **self.settings)

    def compute_output_spec(self, boxes, scores):
        num = self.settings["max_detections"]
        return {
            "boxes": keras.KerasTensor((None, num, 4)),
            "labels": keras.KerasTensor((None, num), "int32"),
            "confidence": keras.KerasTensor((None, num)),
            "num_detections": keras.KerasTensor((None,), "int32"),
        }
