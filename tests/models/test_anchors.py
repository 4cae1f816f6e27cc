"""Anchors, their targets and their decoding against a plain NumPy RetinaNet."""

import itertools
import math

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.retinanet.atss import assign_adaptively
from keras_densepred.ops.boxes import decode_boxes
from tests.weights import compiled

assign_targets = compiled(anchor_ops.assign_targets)


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def anchors_of(height, width, levels, *scale):
    return compiled(lambda: anchor_ops.anchor_boxes(height, width, levels, *scale))()


def reference_anchors(height, width, levels):
    anchors = []
    for level in levels:
        stride = 2**level
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                for ratio in (0.5, 1.0, 2.0):
                    for octave in range(3):
                        side = 4 * stride * 2 ** (octave / 3)
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        x, y = column * stride, row * stride
                        anchors.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return np.array(anchors, "float32")


def reference_iou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(sides, 0))
    return intersection / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection)


def reference_targets(anchors, boxes, labels):
    """One image, its boxes without padding: label of each anchor and its matched box."""
    iou = np.array([[reference_iou(a, b) for b in boxes] for a in anchors.astype("float64")])
    target = np.full(len(anchors), -1)
    matched = iou.argmax(1)
    target[iou.max(1) >= 0.4] = -2
    positive = iou.max(1) >= 0.5
    target[positive] = labels[matched[positive]]
    best = np.abs(iou - iou.max(0)) < 1e-6
    for anchor in np.flatnonzero(best.any(1)):
        wanting = np.flatnonzero(best[anchor])
        matched[anchor] = wanting[iou[anchor, wanting].argmax()]
        target[anchor] = labels[matched[anchor]]
    return target, boxes[matched]


def pad(boxes, labels, rows=6):
    padded = np.full((1, rows, 4), -1.0, "float32")
    padded_labels = np.full((1, rows), -1, "int32")
    padded[0, : len(boxes)] = boxes
    padded_labels[0, : len(boxes)] = labels
    return padded, padded_labels


@pytest.mark.parametrize(("height", "width"), [(96, 160), (32, 64)])
def test_anchors_lie_on_the_strides_of_the_levels(height, width):
    anchors = to_numpy(anchors_of(height, width, range(3, 8)))
    np.testing.assert_allclose(
        anchors, reference_anchors(height, width, range(3, 8)), atol=1e-3, rtol=1e-6
    )


def test_keras_hub_still_rounds_strides_when_the_size_is_no_multiple_of_the_coarsest():
    """The reason for our own anchors; when this fails, theirs may do."""
    generator = keras_hub.layers.AnchorGenerator("xyxy", 6, 6, 1, [1.0], 4.0)
    anchors = to_numpy(generator(np.zeros((1, 96, 96, 3), "float32"))["P6"])
    assert anchors[1, 0] - anchors[0, 0] == 48  # P6 has stride 64


def test_targets_equal_a_plain_assignment():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 60, (4, 2))], 1).astype("float32")
    boxes[3, 2:] = boxes[3, :2] + (5, 7)  # smaller than any anchor overlaps by half
    labels = np.array([2, 0, 1, 3])
    anchors = reference_anchors(96, 96, range(3, 8))
    expected, matched = reference_targets(anchors, boxes, labels)
    deltas, targets = assign_targets(
        keras.ops.convert_to_tensor(anchors), *map(keras.ops.convert_to_tensor, pad(boxes, labels))
    )
    np.testing.assert_array_equal(to_numpy(targets)[0], expected)
    assert set(expected) == {-2, -1, 0, 1, 2, 3}
    positive = expected >= 0
    size = anchors[:, 2:] - anchors[:, :2]
    shift = ((matched[:, :2] + matched[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / size
    log_size = np.log((matched[:, 2:] - matched[:, :2]) / size)
    np.testing.assert_allclose(
        to_numpy(deltas)[0][positive], np.concatenate([shift, log_size], 1)[positive], atol=1e-5
    )


def test_every_box_has_an_anchor_of_its_own():
    """A 6 px box overlaps no anchor by half: the rule of 0.5 alone would call it background."""
    boxes, labels = pad(np.array([[40, 40, 46, 46], [8, 8, 90, 90]], "float32"), [0, 1])
    anchors = anchors_of(96, 96, range(3, 8))
    _, targets = assign_targets(
        anchors, keras.ops.convert_to_tensor(boxes), keras.ops.convert_to_tensor(labels)
    )
    assert {0, 1} <= set(to_numpy(targets)[0])


@pytest.mark.parametrize("rows", [0, 3])
def test_image_without_boxes_is_background(rows):
    anchors = anchors_of(64, 64, range(3, 8))
    deltas, targets = assign_targets(
        anchors, keras.ops.full((2, rows, 4), -1.0), keras.ops.full((2, rows), -1, dtype="int32")
    )
    assert (to_numpy(targets) == -1).all()
    assert np.isfinite(to_numpy(deltas)).all()


def test_decoding_inverts_encoding():
    boxes, labels = pad(np.array([[10, 20, 50, 44], [2, 3, 30, 60]], "float32"), [0, 1])
    anchors = anchors_of(64, 64, range(3, 8))
    deltas, targets = assign_targets(
        anchors, keras.ops.convert_to_tensor(boxes), keras.ops.convert_to_tensor(labels)
    )
    decoded = to_numpy(decode_boxes(anchors, deltas, 64, 64))[0]
    for label in (0, 1):
        found = decoded[to_numpy(targets)[0] == label]
        np.testing.assert_allclose(found, np.tile(boxes[0, label], (len(found), 1)), atol=1e-3)


def test_anchors_of_another_scale_have_the_same_centres():
    plain = to_numpy(anchors_of(64, 64, range(3, 5)))
    smaller = to_numpy(anchors_of(64, 64, range(3, 5), 3.0))
    centres = [boxes[:, :2] + boxes[:, 2:] for boxes in (smaller, plain)]
    np.testing.assert_allclose(*centres, atol=1e-4)
    sides, half = plain[:, 2:] - plain[:, :2], smaller[:, 2:] - smaller[:, :2]
    np.testing.assert_allclose(half, 0.75 * sides, rtol=1e-5)


def reference_atss(levels, boxes, labels):
    """One image, its boxes without padding, as algorithm 1 says."""
    anchors = np.concatenate(levels).astype("float64")
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    firsts = np.cumsum([0, *map(len, levels)])
    best, target = np.zeros(len(anchors)), np.full(len(anchors), -1)
    for box, label in zip(boxes.astype("float64"), labels, strict=True):
        away = ((centres - (box[:2] + box[2:]) / 2) ** 2).sum(1)
        candidates = []
        for first, last in itertools.pairwise(firsts):
            limit = np.sort(away[first:last])[: 9 * 9][-1]
            candidates += [i for i in range(first, last) if away[i] <= limit + 1e-6]
        overlap = np.array([reference_iou(a, box) for a in anchors])
        threshold = overlap[candidates].mean() + overlap[candidates].std(ddof=1)
        learns = [
            i
            for i in candidates
            if overlap[i] >= threshold
            and (centres[i] > box[:2]).all()
            and (centres[i] < box[2:]).all()
        ]
        if not learns:
            learns = np.flatnonzero(overlap >= overlap.max() * (1 - 1e-5))
        for i in learns:
            if overlap[i] > best[i]:
                best[i], target[i] = overlap[i], label
    return target


def test_adaptive_targets_are_those_of_the_algorithm():
    """The last box is so small that no anchor's centre lies in it."""
    strides = (8, 16, 32)
    levels = compiled(lambda: [anchor_ops.level_anchors(96, 128, stride) for stride in strides])()
    levels = [to_numpy(level) for level in levels]
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 70, (4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 60, (4, 2))], axis=1)
    boxes = np.concatenate([boxes, [[42.0, 42.0, 46.0, 46.0]]]).astype("float32")
    labels = np.array([2, 0, 1, 0, 4])
    padded, padded_labels = pad(boxes, labels)
    tensors = [keras.ops.convert_to_tensor(x) for x in (*levels, padded, padded_labels)]
    assign = compiled(assign_adaptively)
    deltas, found = assign(tensors[:3], *tensors[3:])
    expected = reference_atss(levels, boxes, labels)
    assert {0, 1, 2, 4} <= set(expected)
    np.testing.assert_array_equal(to_numpy(found)[0], expected)
    decoded = to_numpy(decode_boxes(keras.ops.concatenate(tensors[:3]), deltas))[0]
    for label in (1, 2, 4):
        (box,) = boxes[labels == label]
        own = decoded[expected == label]
        np.testing.assert_allclose(own, np.tile(box, (len(own), 1)), atol=1e-2)
    deltas, found = assign(tensors[:3], tensors[3], keras.ops.full_like(tensors[4], -1))
    assert (to_numpy(found) == -1).all() and np.isfinite(to_numpy(deltas)).all()
