"""RepPoints against MMDetection's numbers (`tests/golden/points/reppoints.npz`) and its rules.

`plain`: three classes, two images, of which the second is smaller than the batch. `gn`: group
norms, two objects that want one point, an image without objects. Of the definition's traps
`test_reference_outputs` catches x before y, a half cell in the places, a tap grid that is not
taken off, a second stage that starts from zero; `test_reference_gradients` the factors 0.1 and
0.01; `test_boxes_of_points` the deviation divided by nine; the others are named where they stand.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import ResNetBackbone, models
from keras_densepred.models.anchors import grid_points
from keras_densepred.models.reppoints.points import points_to_boxes
from keras_densepred.models.reppoints.targets import (
    inside_images,
    nearest_points,
    overlapping_boxes,
)
from tests.models.conftest import ToyPyramid
from tests.networks import trainable_parameters
from tests.weights import compiled, gradients_of

BACKEND = keras.config.backend()
LEVELS = (3, 4, 5, 6, 7)
SIZE = (128, 160)
TOLERANCE = dict(atol=2e-4, rtol=2e-4)


@pytest.fixture(
    scope="module",
    params=["plain", pytest.param("gn", marks=pytest.mark.slow_on("jax", "tensorflow"))],
)
def reference(request, golden_points):
    prefix = f"{request.param}/"
    return {
        name.removeprefix(prefix): value
        for name, value in golden_points.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def golden_points():
    from pathlib import Path

    with np.load(Path(__file__).parents[1] / "golden" / "points" / "reppoints.npz") as file:
        return dict(file)


def weights_and_names(head):
    """Every weight of ours with its name there."""
    pairs = [
        (head.class_kernel, "reppoints_cls_conv.weight"),
        (head.refine_kernel, "reppoints_pts_refine_conv.weight"),
        (head.moment_transfer, "moment_transfer"),
    ]
    outputs = {
        "init_conv": "reppoints_pts_init_conv",
        "init_points": "reppoints_pts_init_out",
        "refined_points": "reppoints_pts_refine_out",
        "logits": "reppoints_cls_out",
    }
    for name, theirs in outputs.items():
        layer = getattr(head, name)
        pairs += [(layer.kernel, f"{theirs}.weight"), (layer.bias, f"{theirs}.bias")]
    for tower, theirs in ((head.class_tower, "cls_convs"), (head.point_tower, "reg_convs")):
        for layer in tower:
            number = layer.name.rsplit("_", 1)[1]
            for weight in layer.weights:
                part = {"kernel": "conv.weight", "gamma": "gn.weight", "beta": "gn.bias"}.get(
                    weight.name, "conv.bias"
                )
                pairs.append((weight, f"{theirs}.{number}.{part}"))
    return pairs


def to_ours(weight, value):
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return value.reshape(weight.shape)


def build(reference):
    """A detector with the reference's head, whose backbone plays no part."""
    norm = any(".gn." in name for name in reference)
    model = models.RepPoints(ToyPyramid(), 3, head_width=8, head_depth=2, head_norm=norm)
    model.pyramid_levels = LEVELS
    head = model.head
    for layer in (*head.class_tower, *head.point_tower):
        if isinstance(layer, keras.layers.GroupNormalization):
            layer.groups = 4
    for weight, name in weights_and_names(head):
        weight.assign(to_ours(weight, reference[f"w/{name}"]))
    return model, head


def maps(reference, name):
    return [np.ascontiguousarray(reference[f"{name}{i}"].transpose(0, 2, 3, 1)) for i in range(5)]


def numpy(value):
    return ops.convert_to_numpy(value)


def tensor(value):
    return ops.convert_to_tensor(value)


def test_every_weight_is_the_references(reference):
    _, head = build(reference)
    names = {name for _, name in weights_and_names(head)}
    assert names == {name[2:] for name in reference if name.startswith("w/")}
    assert len(names) == len(head.weights)


def test_reference_outputs(reference):
    _, head = build(reference)
    points = compiled(head.points)
    for i, feature in enumerate(maps(reference, "feat")):
        found = points(tensor(feature))
        for name, value in zip(("cls", "init", "refine"), found, strict=True):
            np.testing.assert_allclose(numpy(value), maps(reference, name)[i], **TOLERANCE)


@pytest.mark.slow_on("jax")
def test_reference_boxes_and_owners(reference):
    """Places beyond an image's own padding (-2) have no owner and no part in anything."""
    model, _ = build(reference)
    outputs = outputs_of(model, maps(reference, "feat"))
    for name, theirs in (("init_boxes", "boxes_init"), ("refined_boxes", "boxes_refine")):
        np.testing.assert_allclose(numpy(outputs[name]), reference[theirs], **TOLERANCE)
    points, level_of = grid_points(*SIZE, LEVELS)
    targets = targets_of(reference)
    objects = targets["boxes"], targets["labels"]
    inside = inside_images(points, targets["image_sizes"])
    expected = reference["owner_init"]
    np.testing.assert_array_equal(numpy(inside), expected != -2)
    init = nearest_points(points, level_of, LEVELS, *objects, inside)
    np.testing.assert_array_equal(numpy(init), np.maximum(expected, -1))
    refine = overlapping_boxes(tensor(reference["boxes_init"]), *objects, inside)
    np.testing.assert_array_equal(numpy(refine), reference["owner_refine"])


def outputs_of(model, features):
    """What the detector gives for these maps."""
    parts = [
        model.head(tensor(x), stride=2**level) for x, level in zip(features, LEVELS, strict=True)
    ]
    names = ("classification", "init_boxes", "refined_boxes")
    return {
        name: ops.concatenate(part, axis=1)
        for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }


def targets_of(reference):
    """Of both images, with a row of padding at least behind the objects."""
    rows = 1 + max(len(reference[f"gt{row}_labels"]) for row in range(2))
    boxes = np.full((2, rows, 4), -1, "float32")
    labels = np.full((2, rows), -1, "int32")
    for row in range(2):
        number = len(reference[f"gt{row}_labels"])
        boxes[row, :number] = reference[f"gt{row}_boxes"].reshape(-1, 4)
        labels[row, :number] = reference[f"gt{row}_labels"]
    arrays = {"boxes": boxes, "labels": labels, "image_sizes": reference["pad_shapes"]}
    return {name: tensor(value) for name, value in arrays.items()}


def batch_losses(model, reference, features):
    images = ops.zeros((2, *SIZE, 3))
    return model.compute_losses(images, targets_of(reference), outputs_of(model, features))


@pytest.mark.slow_on("jax")
def test_reference_losses(reference):
    """`gn` has an image without objects, which counts as having one positive."""
    model, _ = build(reference)
    losses = batch_losses(model, reference, maps(reference, "feat"))
    for name, theirs in (
        ("classification", "cls"),
        ("init_boxes", "pts_init"),
        ("refined_boxes", "pts_refine"),
    ):
        np.testing.assert_allclose(
            float(numpy(losses[f"{name}_loss"])), reference[f"loss_{theirs}"].sum(), rtol=2e-4
        )


@pytest.mark.slow_on("jax")
def test_reference_gradients(reference):
    model, head = build(reference)
    features = [keras.Variable(x) for x in maps(reference, "feat")]
    pairs = weights_and_names(head)
    variables = [weight for weight, _ in pairs] + features

    def loss():
        return sum(batch_losses(model, reference, features).values())

    found = [numpy(gradient) for gradient in gradients_of(loss, variables)]
    expected = [to_ours(weight, reference[f"g/{name}"]) for weight, name in pairs]
    expected += maps(reference, "grad_feat")
    names = [name for _, name in pairs] + [f"feat{i}" for i in range(5)]
    for name, gradient, wanted in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(
            gradient, wanted, rtol=2e-4, atol=1e-3 * np.abs(wanted).max(), err_msg=name
        )


@pytest.mark.slow_on("jax")
def test_reference_detections(reference):
    """Of the first image, which fills the batch; boxes are cut at the image."""
    model, _ = build(reference)
    outputs = outputs_of(model, maps(reference, "feat"))
    found = model.detections(outputs, ops.zeros((2, *SIZE, 3)))
    number = int((reference["det0_scores"] > 0.05).sum())
    assert int(numpy(found["num_detections"])[0]) == number
    for name, theirs in (("boxes", "boxes"), ("confidence", "scores"), ("labels", "labels")):
        np.testing.assert_allclose(
            numpy(found[name])[0, :number], reference[f"det0_{theirs}"][:number], **TOLERANCE
        )


def test_boxes_of_points():
    """Divided by 8, not 9; smallest and largest of all, or of the first four."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, 18)).astype("float32")
    y, x = points[:, 0::2], points[:, 1::2]
    transfer = np.array([0.3, -0.2], "float32")
    half = x.std(axis=1, ddof=1) * np.exp(0.3), y.std(axis=1, ddof=1) * np.exp(-0.2)
    centre = x.mean(axis=1), y.mean(axis=1)
    moment = [c - h for c, h in zip(centre, half, strict=True)]
    moment += [c + h for c, h in zip(centre, half, strict=True)]
    expected = {
        "moment": moment,
        "minmax": [x.min(1), y.min(1), x.max(1), y.max(1)],
        "partial_minmax": [f(v[:, :4], 1) for f in (np.min, np.max) for v in (x, y)],
    }
    for transform, wanted in expected.items():
        to_boxes = compiled(points_to_boxes, "transform")
        found = to_boxes(tensor(points), transform=transform, transfer=tensor(transfer))
        np.testing.assert_allclose(numpy(found), np.stack(wanted, -1), rtol=1e-5, atol=1e-6)


def test_every_place_starts_as_background():
    head = models.RepPoints(ToyPyramid(), 3, head_width=8).head
    np.testing.assert_allclose(numpy(head.logits.bias), -np.log(99.0), rtol=1e-6)
    assert not np.any(numpy(head.init_points.bias)) and not np.any(numpy(head.moment_transfer))


def test_points_in_one_place_have_finite_gradients():
    """The root of a variance of zero has none; every run begins near it."""
    points, transfer = keras.Variable(np.ones((2, 18), "float32")), ops.zeros(2)

    def loss():
        boxes = points_to_boxes(tensor(points), "moment", transfer)
        return ops.sum(boxes * ops.arange(4, dtype="float32"))

    gradient = numpy(gradients_of(loss, [points])[0])
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_levels_of_objects_change_at_powers_of_two():
    """64 px is P4: a rounded logarithm would put it on P3; areas decide, not the longer side."""
    points, level_of = grid_points(512, 512, LEVELS)
    sides = [(63.9, 63.9), (64, 64), (32, 128), (1e-9, 3), (128, 128), (4000, 4000)]
    label, inside = ops.zeros((1, 1), "int32"), ops.ones((1, len(points)), "bool")
    owner_of = compiled(lambda box: nearest_points(points, level_of, LEVELS, box, label, inside))
    for (width, height), level in zip(sides, (3, 4, 4, 3, 5, 7), strict=True):
        owner = owner_of(tensor(np.array([[[9, 9, 9 + width, 9 + height]]], "float32")))
        taken = np.flatnonzero(numpy(owner)[0] >= 0)
        assert numpy(level_of)[taken].tolist() == [level], (width, height)


def test_a_point_that_two_want_goes_to_the_nearer_and_the_other_gets_none():
    points, level_of = grid_points(32, 32, (3,))
    boxes = tensor(np.array([[[4, 4, 17, 17], [5, 5, 12, 12], [5, 5, 12, 12]]], "float32"))
    inside = ops.ones((1, 16), "bool")
    owner = nearest_points(points, level_of, (3,), boxes, ops.zeros((1, 3), "int32"), inside)
    owner = numpy(owner)[0]
    assert owner[5] == 1 and (owner >= 0).sum() == 1


def test_an_object_that_no_box_touches_takes_none():
    """MMDetection issue 8289: with a least overlap of zero it would take nearly all."""
    found = np.array([[[0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]]], "float32")
    boxes = np.array([[[40, 40, 44, 44], [1, 1, 9, 9]]], "float32")
    labels, inside = ops.zeros((1, 2), "int32"), ops.ones((1, 3), "bool")
    owner = overlapping_boxes(tensor(found), tensor(boxes), labels, inside)
    assert numpy(owner)[0].tolist() == [1, -1, -1]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "norm, preset, parameters",
    [
        (False, "resnet50", 36_620_150),
        (True, "resnet50", 36_623_734),
        (False, "msfm_resnet50", 38_938_878),
    ],
)
def test_published_parameters(norm, preset, parameters):
    backbone = ResNetBackbone.from_preset(preset, frozen_stages=1)
    model = models.RepPoints(backbone, num_classes=80, head_norm=norm)
    assert trainable_parameters(model) == parameters


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_classes=0), "`num_classes` is 0"),
        (dict(head_depth=0), "`head_depth` is 0"),
        (dict(transform="mean"), "`transform` must be one of"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.RepPoints(ToyPyramid(), **{"num_classes": 3, **options})
