"""Overlap of boxes, and deltas to and from anchors."""

import numpy as np
from keras import ops

from keras_densepred.models.anchors import anchor_boxes
from keras_densepred.ops.boxes import (
    centre_to_corners,
    corners_to_centre,
    decode_boxes,
    encode_boxes,
    giou_loss,
    pairwise_iou,
)


def numpy(x):
    return ops.convert_to_numpy(x)


def tensors(*values):
    return [ops.convert_to_tensor(value) for value in values]


def test_overlaps_of_all_pairs():
    first = np.array([[0, 0, 2, 2], [5, 5, 5, 5]], "float32")
    second = np.array([[[0, 0, 2, 2], [1, 0, 3, 2], [9, 9, 9, 9]]], "float32")
    expected = [[[1, 1 / 3, 0], [0, 0, 0]]]
    np.testing.assert_allclose(numpy(pairwise_iou(*tensors(first, second))), expected, atol=1e-6)
    batch = np.stack([first])
    np.testing.assert_allclose(numpy(pairwise_iou(*tensors(batch, second))), expected, atol=1e-6)


def test_deltas_and_boxes_are_inverse():
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 50, (2, 7, 2)), rng.uniform(1, 50, (2, 7, 2))
    anchors = np.concatenate([corner, corner + side], -1).astype("float32")
    boxes = anchors[:, ::-1].copy()
    anchors, boxes = tensors(anchors, boxes)
    decoded = decode_boxes(anchors, encode_boxes(anchors, boxes))
    np.testing.assert_allclose(numpy(decoded), numpy(boxes), atol=1e-3)
    flat = ops.zeros_like(anchors)
    assert np.isfinite(numpy(encode_boxes(flat, flat))).all()


def test_decoded_boxes_stay_finite_and_in_the_image():
    anchors = anchor_boxes(32, 64, range(3, 8))
    deltas = ops.full((1, anchors.shape[0], 4), 1e6)
    boxes = numpy(decode_boxes(anchors, deltas, 32, 64))
    assert np.isfinite(boxes).all()
    assert boxes.min() >= 0 and boxes[..., 0::2].max() <= 64 and boxes[..., 1::2].max() <= 32


def test_generalized_overlap():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 5, 5]], "float32")
    others = np.array([[0, 0, 2, 2], [2, 0, 3, 1], [5, 5, 5, 5]], "float32")
    values = numpy(giou_loss(*tensors(boxes, others)))
    np.testing.assert_allclose(values[:2], [0.0, 1.0 + 1 / 3], atol=1e-6)
    assert np.isfinite(values).all()


def test_corners_and_centres_are_inverse():
    corners = np.array([[1, 2, 5, 4]], "float32")
    (boxes,) = tensors(corners)
    assert numpy(corners_to_centre(boxes)).tolist() == [[3, 3, 4, 2]]
    assert np.array_equal(numpy(centre_to_corners(corners_to_centre(boxes))), corners)
