"""YOLOv3's loss and its gradient against plain NumPy."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from keras_densepred.models import YOLO_ANCHORS, YOLO_LOSSES, YOLOLoss, YOLOv3Detector
from tests.models.yolo_reference import reference

SIZE = (96, 64)  # width and height
THREE = [(6, 8), (10, 20), (16, 12), (20, 24), (28, 40), (44, 30), (50, 56), (80, 40), (90, 62)]
SIX = [(6, 8), (12, 14), (20, 24), (34, 28), (50, 56), (88, 60)]
BOXES = [
    [],
    # a centre on the corner of four cells of every level; two of one slot, of different classes and
    # then of one; one that ends at the edge of the image
    [
        (22, 20, 42, 44),
        (50, 10, 68, 34),
        (51, 10.5, 70, 34.5),
        (51, 11, 71, 35),
        (70, 40, 96, 64),
    ],
    # a centre outside of the image's last cell, all of the image, hardly anything
    [(92, 60, 100, 68), (0, 0, 96, 64), (10, 10, 11, 10.5)],
]
LABELS = [[], [0, 2, 1, 1, 2], [1, 0, 2]]


def padded():
    boxes = np.full((3, 7, 4), -1.0, "float32")
    labels = np.full((3, 7), -1, "int32")
    for b, (image_boxes, image_labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        rows = np.arange(len(image_boxes)) + b  # padding before, too
        boxes[b, rows] = np.reshape(image_boxes, (-1, 4))
        labels[b, rows] = image_labels
    boxes[0, 3] = [20, 20, 20, 40]  # without area: an object for nobody
    labels[0, 3] = 1
    return boxes, labels


@functools.cache
def make(case, backbone):
    """A detector and a function from outputs, boxes and labels to its losses and their gradient.

    The losses are the three of each image, the gradient is that of their sum by the outputs.
    """
    neck, anchors, settings, ignore = CASES[case]
    settings = dataclasses.replace(settings, ignore_threshold=ignore)
    model = YOLOv3Detector(backbone, 3, neck, anchors, loss=settings)
    images = np.zeros((3, SIZE[1], SIZE[0], 3), "float32")

    def losses(outputs, boxes, labels):
        y = model.targets_in_pixels({"boxes": boxes, "labels": labels}, images)
        parts = model.image_losses(images, y["boxes"], y["labels"], outputs)
        parts = keras.ops.stack(list(parts.values()), axis=-1)
        return keras.ops.sum(parts), parts

    return model, GRADIENTS[keras.config.backend()](losses)


def jax_gradient(losses):
    import jax

    both = jax.jit(jax.value_and_grad(losses, has_aux=True))

    def run(outputs, boxes, labels):
        (_, parts), gradient = both(outputs, boxes, labels)
        return to_numpy(parts, gradient)

    return run


def tensorflow_gradient(losses):
    import tensorflow as tf

    def run(outputs, boxes, labels):
        outputs = {level: tf.constant(x) for level, x in outputs.items()}
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total, parts = losses(outputs, boxes, labels)
        return to_numpy(parts, tape.gradient(total, outputs))

    return run


def torch_gradient(losses):
    import torch

    def run(outputs, boxes, labels):
        outputs = {level: torch.tensor(x, requires_grad=True) for level, x in outputs.items()}
        total, parts = losses(outputs, torch.tensor(boxes), torch.tensor(labels))
        total.backward()
        return to_numpy(parts.detach(), {level: x.grad for level, x in outputs.items()})

    return run


GRADIENTS = {"jax": jax_gradient, "tensorflow": tensorflow_gradient, "torch": torch_gradient}


def to_numpy(losses, gradient):
    convert = keras.ops.convert_to_numpy
    return convert(losses), {level: convert(x) for level, x in gradient.items()}


def random_outputs(model, spread=1.0):
    rng = np.random.default_rng(3)
    outputs = {}
    for level, mask in model.masks.items():
        stride = 2 ** int(level[1:])
        cells = (SIZE[0] // stride) * (SIZE[1] // stride)
        outputs[level] = rng.normal(0, spread, (3, cells, len(mask), 8)).astype("float32")
    return outputs


def expected(model, outputs):
    maps = {
        level: x.reshape(3, SIZE[1] // 2 ** int(level[1:]), -1, *x.shape[2:]).astype("float64")
        for level, x in outputs.items()
    }
    return reference(maps, BOXES, LABELS, SIZE, model.anchors, model.masks, model.loss_settings)


CASES = {
    "mse": ("prn_3l", THREE, YOLO_LOSSES["mse"], 0.3),
    "mse_shared_anchor": (
        *("prn", SIX),
        YOLOLoss("mse", 0.75, 0.5, 2.0, anchor_threshold=0.3, scale_xy={"P4": 1.1}),
        0.3,
    ),
    "giou": ("prn", SIX, YOLO_LOSSES["giou"], 0.4),
    "ciou": ("prn_3l", THREE, YOLO_LOSSES["ciou"], 0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_numpy(case, toy_backbone):
    model, losses_and_gradient = make(case, toy_backbone)
    outputs = random_outputs(model)
    losses, gradient = losses_and_gradient(outputs, *padded())
    wanted, wanted_gradient, counts = expected(model, outputs)
    assert min(counts.values()) > 0, counts
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-6)
    for level, value in wanted_gradient.items():
        np.testing.assert_allclose(
            gradient[level], value.reshape(gradient[level].shape), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES)
def test_extreme_logits_have_finite_losses_and_gradients(case, toy_backbone):
    model, losses_and_gradient = make(case, toy_backbone)
    losses, gradient = losses_and_gradient(random_outputs(model, spread=200.0), *padded())
    assert np.isfinite(losses).all()
    assert all(np.isfinite(value).all() for value in gradient.values())


@pytest.mark.parametrize("rows", [7, 0])
def test_no_slot_of_an_empty_image_has_a_box_or_class_loss(rows, toy_backbone):
    model, losses_and_gradient = make("mse_shared_anchor", toy_backbone)
    losses, gradient = losses_and_gradient(
        random_outputs(model),
        np.full((3, rows, 4), -1.0, "float32"),
        np.full((3, rows), -1, "int32"),
    )
    assert (losses[:, [0, 2]] == 0).all() and (losses[:, 1] > 0).all()
    for value in gradient.values():
        assert (value[..., :4] == 0).all() and (value[..., 5:] == 0).all()


@pytest.mark.backend_free
def test_presets_are_the_cfgs(toy_backbone):
    giou, ciou = YOLO_LOSSES["giou"], YOLO_LOSSES["ciou"]
    assert YOLO_LOSSES["mse"] == YOLOLoss("mse", 1.0, 1.0, 1.0, 0.7, 1.0, {})
    assert (giou.box_loss, giou.box_normalizer, giou.anchor_threshold) == ("giou", 0.5, 1.0)
    assert (ciou.box_loss, ciou.box_normalizer, ciou.anchor_threshold) == ("ciou", 0.07, 0.213)
    assert giou.scale_xy == ciou.scale_xy == {"P3": 1.2, "P4": 1.1, "P5": 1.05}
    tiny = YOLOv3Detector(toy_backbone, 3, "prn")
    assert tiny.anchors == YOLO_ANCHORS["yolov3_tiny"]
    assert tiny.masks == {"P4": (1, 2, 3), "P5": (3, 4, 5)}
    full = YOLOv3Detector(toy_backbone, 3, "prn_3l")
    assert full.anchors == YOLO_ANCHORS["yolov3"]
    assert full.masks == {"P3": (0, 1, 2), "P4": (3, 4, 5), "P5": (6, 7, 8)}


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box_loss": "l1"}, '"mse", "giou" or "ciou"'),
        ({"box_normalizer": -1}, "`box_normalizer` is -1"),
        ({"ignore_threshold": 1.5}, "`ignore_threshold` is 1.5"),
        ({"scale_xy": {"P3": 0.5}}, "factors of 1 or more"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        YOLOLoss(**arguments)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchors": SIX[:5]}, "5 anchors have no equal shares on 2 levels"),
        ({"anchors": [(0, 1)] * 6}, "widths and heights above 0"),
        ({"masks": {"P3": [0], "P4": [1]}}, "give anchors for P4, P5"),
        ({"masks": {"P4": [0], "P5": [6]}}, "there are 6 anchors"),
        ({"anchors": "yolov9"}, "`anchors` is 'yolov9'"),
        ({"loss": "l1"}, "`loss` is 'l1'"),
        ({"neck": "fpn"}, "`neck` is 'fpn'"),
        ({"num_classes": 0}, "`num_classes` is 0"),
    ],
)
def test_detector_arguments(arguments, message, toy_backbone):
    with pytest.raises(ValueError, match=message):
        YOLOv3Detector(toy_backbone, **{"num_classes": 3, "neck": "prn", **arguments})
