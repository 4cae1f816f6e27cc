"""YOLOv3's loss and Darknet's deltas in plain NumPy, from CSPNET.md 3.7: slot after slot."""

import numpy as np

STEP = 1e-6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(target, logit):
    p = sigmoid(logit)
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


def slope(function, x):
    """Derivative by central differences; of each element of a vector."""
    x = np.asarray(x, np.float64)
    if x.ndim == 0:
        return (function(x + STEP) - function(x - STEP)) / (2 * STEP)
    steps = STEP * np.eye(len(x))
    return np.array([(function(x + d) - function(x - d)) / (2 * STEP) for d in steps])


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def centred(box, width, height):
    """Corners in pixels to centre and size in shares of the image."""
    x1, y1, x2, y2 = box
    centre = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
    return np.array([*centre, (x2 - x1) / width, (y2 - y1) / height])


def overlaps(a, b):
    """Intersection, union, and width and height of the hull."""
    ax1, ay1, ax2, ay2 = corners(a)
    bx1, by1, bx2, by2 = corners(b)
    w, h = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    intersection = max(w, 0) * max(h, 0)
    union = a[2] * a[3] + b[2] * b[3] - intersection
    return intersection, union, max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)


def iou(a, b):
    intersection, union, _, _ = overlaps(a, b)
    return intersection / union


def giou(a, b):
    intersection, union, width, height = overlaps(a, b)
    return intersection / union - (width * height - union) / (width * height)


def diou(a, b):
    _, _, width, height = overlaps(a, b)
    return iou(a, b) - ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (width**2 + height**2)


def aspect(a, b):
    return 4 / np.pi**2 * (np.arctan(b[2] / b[3]) - np.arctan(a[2] / a[3])) ** 2


def box_value_and_delta(kind, logits, box, truth, anchor_px, offset, scale, size):
    """Loss of one slot's box and its change by the four logits."""
    width, height = size
    if kind == "mse":
        target = [truth[2] * width / anchor_px[0], truth[3] * height / anchor_px[1]]

        def centre(logit, t):
            share = (t + (scale - 1) / 2) / scale
            return scale * cross_entropy(share, logit)

        def total(z):
            loss = centre(z[0], offset[0]) + centre(z[1], offset[1])
            return loss + sum((z[2 + i] - np.log(target[i])) ** 2 / 2 for i in (0, 1))

        # Darknet's own words: delta = scale * (target - output).
        output = scale * sigmoid(logits[:2]) - (scale - 1) / 2
        delta = np.concatenate([output - offset, logits[2:] - np.log(target)])
        np.testing.assert_allclose(slope(total, logits), delta, atol=1e-5)
        weight = 2 - truth[2] * truth[3]
        return weight * total(logits), weight * delta
    if kind == "giou":
        value, derivative = 1 - giou(box, truth), -slope(lambda b: giou(b, truth), box)
    else:
        v = aspect(box, truth)
        alpha = v / (1 - iou(box, truth) + v + 1e-6)
        value = 1 - diou(box, truth) + alpha * v
        by_aspect = slope(lambda b: aspect(b, truth), box) * (box[2] ** 2 + box[3] ** 2)
        derivative = -slope(lambda b: diou(b, truth), box) + alpha * by_aspect
    return value, derivative * [1, 1, np.exp(logits[2]), np.exp(logits[3])]


def reference(outputs, boxes, labels, size, anchors, masks, settings):
    """Losses of each image and the gradient of their sum.

    Args:
        outputs: level to logits (B, rows, columns, A, 5 + C).
        boxes: for each image a list of xyxy boxes in pixels.
        labels: for each image a list of classes.
        size: (width, height) in pixels.
        anchors: all anchors.
        masks: level to indices of its anchors.
        settings: `YOLOLoss`.

    Returns:
        (B, 3) box, objectness and class loss; level to gradient like `outputs`; and how many slots
        were ignored, learned, and learned more than one object.
    """
    width, height = size
    losses = np.zeros((len(boxes), 3))
    gradients = {level: np.zeros(x.shape) for level, x in outputs.items()}
    counts = {"ignored": 0, "learned": 0, "shared": 0}
    for b, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        truths = [centred(box, width, height) for box in image_boxes]
        for level, x in outputs.items():
            rows, columns = x.shape[1:3]
            scale = settings.scale_xy.get(level, 1.0)
            learned = {}
            for truth, label in zip(truths, image_labels, strict=True):
                shape = [
                    iou((0, 0, truth[2] * width, truth[3] * height), (0, 0, *a)) for a in anchors
                ]
                best = shape.index(max(shape))
                column = min(int(truth[0] * columns), columns - 1)
                row = min(int(truth[1] * rows), rows - 1)
                for a, index in enumerate(masks[level]):
                    extra = settings.anchor_threshold < 1 and (
                        shape[index] > settings.anchor_threshold
                    )
                    if index == best or extra:
                        learned.setdefault((row, column, a), []).append((truth, label))
            for row in range(rows):
                for column in range(columns):
                    for a, index in enumerate(masks[level]):
                        z = np.asarray(x[b, row, column, a], np.float64)
                        gradient = gradients[level][b, row, column, a]
                        anchor = anchors[index]
                        reach = scale * sigmoid(z[:2]) - (scale - 1) / 2
                        centre = [(column + reach[0]) / columns, (row + reach[1]) / rows]
                        shape = np.array(anchor) * np.exp(z[2:4]) / size
                        box = np.array([*centre, *shape])
                        objects = learned.get((row, column, a), [])
                        overlap = max((iou(box, truth) for truth in truths), default=0.0)
                        if not objects and overlap > settings.ignore_threshold:
                            counts["ignored"] += 1
                            continue
                        weight, target = settings.objectness_normalizer, float(bool(objects))
                        losses[b, 1] += weight * cross_entropy(target, z[4])
                        gradient[4] += weight * slope(lambda v, t=target: cross_entropy(t, v), z[4])
                        if not objects:
                            continue
                        counts["learned"] += 1
                        counts["shared"] += len(objects) > 1
                        weight = settings.class_normalizer
                        for c in range(len(z) - 5):
                            target = float(any(label == c for _, label in objects))
                            losses[b, 2] += weight * cross_entropy(target, z[5 + c])
                            gradient[5 + c] += weight * slope(
                                lambda v, t=target: cross_entropy(t, v), z[5 + c]
                            )
                        for truth, _ in objects:
                            offset = truth[:2] * (columns, rows) - (column, row)
                            value, delta = box_value_and_delta(
                                settings.box_loss, z[:4], box, truth, anchor, offset, scale, size
                            )
                            weight = settings.box_normalizer / len(objects)
                            losses[b, 0] += weight * value
                            gradient[:4] += weight * delta
    return losses, gradients, counts
