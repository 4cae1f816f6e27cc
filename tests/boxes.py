"""Boxes to suppress, and greedy suppression as a plain NumPy loop."""

import numpy as np


def greedy_reference(boxes, scores, iou_threshold, score_threshold, max_detections):
    """Boxes (N, 4), scores (N, C): list of (score, label, box index), one class after the other."""
    kept = []
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        survivors = []
        for i in order[scores[order, label] >= score_threshold]:
            clear = True
            for j in survivors:
                low = np.maximum(boxes[i, :2], boxes[j, :2])
                high = np.minimum(boxes[i, 2:], boxes[j, 2:])
                intersection = np.prod(np.maximum(high - low, 0))
                union = np.prod(boxes[i, 2:] - boxes[i, :2]) + np.prod(boxes[j, 2:] - boxes[j, :2])
                clear &= not intersection > np.float32(iou_threshold) * (union - intersection)
            if clear:
                survivors.append(i)
        kept += [(-scores[i, label], i, label) for i in survivors]
    return [(i, label) for _, i, label in sorted(kept)[:max_detections]]


def random_boxes(rng, batch, num, span=40.0, size=16.0):
    corner = rng.uniform(0, span, (batch, num, 2))
    return np.concatenate([corner, corner + rng.uniform(2, size, (batch, num, 2))], -1).astype(
        "float32"
    )


def assert_matches_reference(boxes, scores, result, rtol=0, **kwargs):
    for b in range(len(boxes)):
        expected = greedy_reference(boxes[b], scores[b], **kwargs)
        n = len(expected)
        assert result["num_detections"][b] == n
        index = np.array([i for i, _ in expected], int)
        labels = np.array([label for _, label in expected], int)
        np.testing.assert_array_equal(result["labels"][b, :n], labels)
        np.testing.assert_array_equal(result["boxes"][b, :n], boxes[b][index])
        np.testing.assert_allclose(result["confidence"][b, :n], scores[b][index, labels], rtol=rtol)
        assert (result["boxes"][b, n:] == -1).all()
        assert (result["labels"][b, n:] == -1).all()
        assert (result["confidence"][b, n:] == -1).all()
