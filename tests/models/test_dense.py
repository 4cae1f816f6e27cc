"""TaskAlignedDetector's targets against their definition, loop by loop, its losses and decoding."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import models, necks
from keras_densepred.models.dense.head import boxes_of
from keras_densepred.models.dense.losses import (
    distribution_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from keras_densepred.models.dense.targets import aligned_places
from tests.models.conftest import ToyPyramid
from tests.networks import run
from tests.weights import compiled, gradients_of

SIZE, CELL, CLASSES = 64, 8.0, 4


def places_of(size=SIZE, strides=(8, 16, 32)):
    """Centres of the cells, level by level, row by row."""
    parts = []
    for stride in strides:
        along = (np.arange(size // stride) + 0.5) * stride
        y, x = np.meshgrid(along, along, indexing="ij")
        parts.append(np.stack([x.ravel(), y.ravel()], axis=1))
    return np.concatenate(parts).astype("float32")


def tensors(*arrays):
    return [ops.convert_to_tensor(array) for array in arrays]


def iou(boxes, box):
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)


def random_case(rng, images=3, objects=5):
    """Predictions near their places, and boxes of any size; the last image has no object."""
    places = places_of()
    reach = rng.uniform(1, 30, (images, len(places), 4))
    found = np.concatenate([places - reach[..., :2], places + reach[..., 2:]], axis=-1)
    corner = rng.uniform(-4, 50, (images, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 40, (images, objects, 2))], axis=-1)
    labels = rng.integers(0, CLASSES, (images, objects))
    labels[0, -2:] = -1
    labels[-1] = -1
    boxes[labels < 0] = -1
    scores = rng.uniform(0.001, 0.9, (images, len(places), CLASSES))
    numbers = (x.astype("float32") for x in (places, found, scores, boxes))
    return (*numbers, labels.astype("int32"))


def expected_places(places, found, scores, boxes, labels, count):
    """Section 3.3 of TOOD, one object after the other."""
    images, number = found.shape[:2]
    owner, quality = np.full((images, number), -1), np.zeros((images, number))
    for b in range(images):
        taken = {}
        for j in np.flatnonzero(labels[b] >= 0):
            centre = (boxes[b, j, :2] + boxes[b, j, 2:]) / 2
            half = np.maximum(boxes[b, j, 2:] - boxes[b, j, :2], CELL) / 2
            box = np.concatenate([centre - half, centre + half])
            inside = ((places >= box[:2]) & (places <= box[2:])).all(1)
            overlap = iou(found[b], box)
            fit = np.where(inside, scores[b, :, labels[b, j]] * overlap**6, 0)
            best = [i for i in np.argsort(-fit)[:count] if fit[i] > 0]
            taken[j] = (best, fit, overlap)
        for i in range(number):
            rivals = [j for j, (best, _, _) in taken.items() if i in best]
            if rivals:
                owner[b, i] = max(rivals, key=lambda j, i=i: taken[j][2][i])
        for j, (_, fit, overlap) in taken.items():
            own = owner[b] == j
            if own.any():
                quality[b, own] = fit[own] / fit[own].max() * overlap[own].max()
    return owner, quality


@pytest.mark.parametrize("count", [1, 4, 13])
def test_places_are_those_of_the_definition(count):
    places = compiled(aligned_places, "cell", "count")
    for seed in range(4):
        case = random_case(np.random.default_rng(seed))
        owner, quality = places(*tensors(*case), cell=CELL, count=count)
        wanted, worth = expected_places(*case, count)
        np.testing.assert_array_equal(ops.convert_to_numpy(owner), wanted)
        np.testing.assert_allclose(ops.convert_to_numpy(quality), worth, rtol=1e-4, atol=1e-6)
        assert (wanted[-1] == -1).all() and (wanted[:2] >= 0).any()


def test_an_object_smaller_than_a_cell_has_a_place():
    """Between four centres, where no place is inside of it."""
    places, found, scores, _, _ = random_case(np.random.default_rng(0), images=1)
    boxes = np.array([[[23, 15, 25, 17]]], "float32")
    assert not ((places >= boxes[0, 0, :2]) & (places <= boxes[0, 0, 2:])).all(1).any()
    case = (places, found, scores, boxes, np.zeros((1, 1), "int32"))
    owner, quality = compiled(aligned_places, "cell")(*tensors(*case), cell=CELL)
    owner, quality = (ops.convert_to_numpy(x)[0] for x in (owner, quality))
    assert (owner == 0).any() and (quality[owner == 0] > 0).all()


def test_neighbouring_numbers_share_a_distance():
    """Equation 6 of Generalized Focal Loss: 2.25 is 0.75 of 2 and 0.25 of 3; ends hold the rest."""
    logits = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    distance = np.array([[2.25, 0.0, 5.0, 4.5], [-3.0, 9.0, 1.0, 0.5], [0, 0, 0, 0]], "float32")
    shares = np.zeros_like(logits)
    shares[0, 0, 2:4] = 0.75, 0.25
    shares[0, 1, 0] = shares[0, 2, 5] = 1
    shares[0, 3, 4:6] = 0.5
    shares[1, 0, 0] = shares[1, 1, 5] = shares[1, 2, 1] = 1
    shares[1, 3, :2] = 0.5
    shares[2, :, 0] = 1
    loss = compiled(distribution_focal_loss)(*tensors(logits, distance))
    loss = ops.convert_to_numpy(loss)
    np.testing.assert_allclose(loss, -(shares * log_p).sum(-1).mean(-1), rtol=1e-5)


def test_class_losses_are_their_equations():
    logits = np.array([-3.0, 0.0, 2.0, -1.0, 90.0], "float32")
    q = np.array([0.0, 0.4, 0.9, 0.7, 0.0], "float32")
    p = 1 / (1 + np.exp(-logits[:4].astype("float64")))
    entropy = -(q[:4] * np.log(p) + (1 - q[:4]) * np.log(1 - p))
    for gamma in (0.0, 2.0):
        loss = ops.convert_to_numpy(quality_focal_loss(*tensors(logits, q), gamma))
        np.testing.assert_allclose(loss[:4], np.abs(q[:4] - p) ** gamma * entropy, rtol=1e-4)
        assert loss[4] == pytest.approx(90)  # no probability is cut
    loss = ops.convert_to_numpy(varifocal_loss(*tensors(logits, q), 2.0))
    weight = np.where(q[:4] > 0, q[:4], 0.75 * p**2)
    np.testing.assert_allclose(loss[:4], weight * entropy, rtol=1e-4)


def test_boxes_are_the_means_of_distances():
    places = np.array([[12.0, 20.0], [48.0, 16.0]], "float32")
    logits = np.full((1, 2, 4, 9), -100.0, "float32")
    for side, distance in enumerate((1, 0, 3, 2)):
        logits[0, 0, side, distance] = 0
    logits[0, 1, :, 1:3] = 0  # 1 or 2: 1.5
    strides = np.array([8.0, 32.0], "float32")
    boxes = compiled(boxes_of)(*tensors(logits, places, strides))
    expected = [[[4, 20, 36, 36], [0, -32, 96, 64]]]
    np.testing.assert_allclose(ops.convert_to_numpy(boxes), expected, atol=1e-4)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.TaskAlignedDetector(ToyPyramid(), CLASSES, head_width=8, head_depth=1)


@pytest.mark.slow_on("jax", "tensorflow")
def test_starts_with_boxes_of_four_strides(model):
    outputs = model(np.zeros((1, SIZE, SIZE, 3), "float32"), training=False)
    places, strides = model._places(np.zeros((1, SIZE, SIZE, 3)))
    np.testing.assert_allclose(ops.convert_to_numpy(places), places_of())
    boxes = ops.convert_to_numpy(boxes_of(outputs["distances"], places, strides))[0]
    sides = (boxes[:, 2:] - boxes[:, :2]) / ops.convert_to_numpy(strides)[:, None]
    np.testing.assert_allclose(sides, 4, atol=0.2)
    scores = ops.convert_to_numpy(ops.sigmoid(outputs["classification"]))
    np.testing.assert_allclose(scores, 0.01, atol=0.005)


def perfect_outputs(boxes, labels):
    """Raw outputs in which every place inside of an object knows it exactly."""
    places = places_of()
    strides = np.repeat([8.0, 16.0, 32.0], [64, 16, 4])
    classification = np.full((1, len(places), CLASSES), -20.0, "float32")
    distances = np.zeros((1, len(places), 4, 17), "float32")
    for box, label in zip(boxes, labels, strict=True):
        inside = ((places > box[:2]) & (places < box[2:])).all(1)
        classification[0, inside, label] = 4.0
        sides = np.concatenate([places - box[:2], box[2:] - places], axis=1) / strides[:, None]
        share = np.maximum(1 - np.abs(sides[..., None] - np.arange(17)), 1e-9)
        distances[0, inside] = np.log(share)[inside]
    outputs = {"classification": classification, "distances": distances.astype("float32")}
    return {name: ops.convert_to_tensor(value) for name, value in outputs.items()}


@pytest.mark.slow_on("jax", "tensorflow")
def test_what_is_learned_is_what_is_found(model):
    """Targets of perfect predictions are these objects, without box loss; decoding finds them."""
    boxes, labels = np.array([[5, 9, 29, 33], [30, 20, 63, 60]], "float32"), np.array([1, 3])
    outputs = perfect_outputs(boxes, labels)
    images = np.zeros((1, SIZE, SIZE, 3), "float32")
    found = model.detections(outputs, images)
    found = {name: ops.convert_to_numpy(value)[0] for name, value in found.items()}
    assert found["num_detections"] == 2
    order = np.argsort(found["labels"][:2])
    np.testing.assert_allclose(found["boxes"][:2][order], boxes, atol=0.05)
    np.testing.assert_array_equal(np.sort(found["labels"][:2]), labels)
    boxes, labels = tensors(boxes[None], labels[None].astype("int32"))
    targets = {"boxes": boxes, "labels": labels}
    losses = model.compute_losses(images, targets, outputs)
    assert float(losses["box_loss"]) == pytest.approx(0, abs=0.01)
    other = {**targets, "labels": ops.flip(labels, axis=1)}
    worse = model.compute_losses(images, other, outputs)
    assert float(worse["classification_loss"]) > 20 * float(losses["classification_loss"])


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_second_head_finds_each_object_once(model, tmp_path):
    """YOLOv10, section 3.1: the best place of an object alone, and no suppression after it."""
    twice = models.TaskAlignedDetector(
        ToyPyramid(), CLASSES, head_width=8, head_depth=1, one_to_one=True
    )
    assert isinstance(twice.prediction_decoder, models.TopDetections)
    boxes, labels = np.array([[5, 9, 29, 33], [30, 20, 63, 60]], "float32"), np.array([1, 3])
    outputs = perfect_outputs(boxes, labels)
    nothing = perfect_outputs(boxes[:0], labels[:0])
    images = np.zeros((1, SIZE, SIZE, 3), "float32")
    targets = {"boxes": boxes[None], "labels": labels[None].astype("int32")}
    targets = {name: ops.convert_to_tensor(x) for name, x in targets.items()}

    def losses(first, second):
        both = {**first, **{f"once_{name}": x for name, x in second.items()}}
        return {k: float(x) for k, x in twice.compute_losses(images, targets, both).items()}

    # Both heads learn, the second one place of each object: the others are its background.
    of_first = {k: float(x) for k, x in model.compute_losses(images, targets, outputs).items()}
    once = {name: ops.convert_to_numpy(x).copy() for name, x in outputs.items()}
    found = boxes_of(outputs["distances"], *twice._places(images))
    owner, _ = aligned_places(
        *(twice._places(images)[0], found, ops.sigmoid(outputs["classification"])),
        *(targets["boxes"], targets["labels"]),
        cell=CELL,
    )
    owner = ops.convert_to_numpy(owner)[0]
    best = [np.flatnonzero(owner == j)[0] for j in (0, 1)]
    others = np.setdiff1d(np.arange(len(owner)), best)
    once["classification"][0, others] = -20.0
    once = {name: ops.convert_to_tensor(x) for name, x in once.items()}
    good = losses(outputs, once)["classification_loss"]
    assert good < 1.2 * of_first["classification_loss"] + 0.1
    assert losses(outputs, outputs)["classification_loss"] > 5 * good
    wrong = {**outputs, "classification": ops.flip(outputs["classification"], axis=2)}
    assert losses(wrong, once)["classification_loss"] > 5 * good  # the first head learns as before
    # Decoding reads the second head alone.
    both = {**nothing, **{f"once_{name}": x for name, x in once.items()}}
    detections = twice.detections(both, images)
    detections = {name: ops.convert_to_numpy(x)[0] for name, x in detections.items()}
    assert detections["num_detections"] == 2
    np.testing.assert_array_equal(np.sort(detections["labels"][:2]), labels)
    # A saved one is the same.
    twice.save(tmp_path / "twice.keras")
    images = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "twice.keras")
    for name, value in twice(images, training=False).items():
        copy = ops.convert_to_numpy(loaded(images, training=False)[name])
        np.testing.assert_allclose(copy, ops.convert_to_numpy(value), atol=1e-5)
    assert loaded.one_to_one and set(loaded.class_axes()) == set(twice.class_axes())
    assert len(twice.class_axes()) == 2 * len(model.class_axes())


@pytest.mark.parametrize("objects", ["none", "crowded"])
def test_empty_and_crowded_pictures_train(model, objects):
    """300 objects on top of each other, some without area, in one picture of two, or none at all.

    Pictures with nothing but crowd regions come from the pipeline without objects.
    """
    rng = np.random.default_rng(0)
    boxes, labels = np.full((2, 300, 4), -1.0, "float32"), np.full((2, 300), -1, "int32")
    if objects == "crowded":
        corner = rng.uniform(0, 50, (300, 2))
        boxes[0] = np.concatenate([corner, corner + rng.uniform(0, 14, (300, 2))], axis=1)
        boxes[0, :5, 2:] = boxes[0, :5, :2]
        labels[0] = rng.integers(0, CLASSES, 300)
    outputs = run(model, rng.normal(size=(2, SIZE, SIZE, 3)).astype("float32"))
    outputs = {name: keras.Variable(ops.stop_gradient(x)) for name, x in outputs.items()}
    boxes, labels = tensors(boxes, labels)
    targets, images = {"boxes": boxes, "labels": labels}, np.zeros((2, SIZE, SIZE, 3))

    def loss():
        found = {name: ops.convert_to_tensor(x) for name, x in outputs.items()}
        return sum(model.compute_losses(images, targets, found).values())

    gradients = [ops.convert_to_numpy(x) for x in gradients_of(loss, list(outputs.values()))]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    of_classes, of_boxes = gradients
    assert of_classes.any() and of_boxes.any() == (objects == "crowded")


@pytest.mark.backend_free
def test_arguments_out_of_range_are_refused():
    for arguments, message in (
        ({"num_classes": 0}, "`num_classes` is 0"),
        ({"reach": 0}, "`reach` is 0"),
        ({"head_depth": -1}, "`head_depth` is -1"),
        ({"focal_gamma": -0.5}, "`focal_gamma` is -0.5"),
        ({"class_loss": "focal"}, "`class_loss` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            models.TaskAlignedDetector(ToyPyramid(), **{"num_classes": 2, **arguments})
    with pytest.raises(ValueError, match="`size` must be one of"):
        models.dense_detector("huge", 2)


@pytest.mark.backend_free
def test_the_path_aggregation_network_is_a_pyramid():
    neck = necks.CSPPathAggregation(ToyPyramid(ready=False), 12, depth=2, max_level=6)
    assert neck.is_pyramid and list(neck.output) == ["P3", "P4", "P5", "P6"]
    levels = neck(np.zeros((1, 97, 131, 3), "float32"))
    sizes = [tuple(x.shape[1:]) for x in levels.values()]
    assert sizes == [(13, 17, 12), (7, 9, 12), (4, 5, 12), (2, 3, 12)]
    copy = necks.CSPPathAggregation.from_config(neck.get_config())
    assert [w.shape for w in copy.weights] == [w.shape for w in neck.weights]
    for arguments in ({"width": 1}, {"depth": 0}, {"max_level": 4}):
        with pytest.raises(ValueError, match="`width` must be at least 2, `depth` 1 and"):
            necks.CSPPathAggregation(ToyPyramid(), **arguments)


@pytest.mark.backend_free
def test_sizes_grow():
    """Parameters in millions, for 80 classes; the smallest is built here."""
    pico = models.dense_detector("pico", 80)
    assert pico.count_params() == pytest.approx(1.3e6, rel=0.02)
    assert pico.head_width == models.DENSE_SIZES["pico"].width
    sizes = list(models.DENSE_SIZES.values())
    assert all(a.width < b.width for a, b in itertools.pairwise(sizes))


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart():
    from keras_densepred import data, metrics

    keras.utils.set_random_seed(0)
    pictures = data.ShapesDataset(8, 96, 0, "train")
    options = dict(batch_size=8, mean=(128.0,) * 3, std=(64.0,) * 3, image_size=96)
    batch = next(iter(data.eval_batches(pictures, **options)))
    model = models.dense_detector("pico", len(pictures.class_names))
    model.compile(keras.optimizers.AdamW(2e-3))
    targets = {name: batch[name] for name in ("boxes", "labels")}
    for _ in range(400):  # moving statistics of batch norms lag behind
        model.train_on_batch(batch["images"], targets)
    results = metrics.evaluate_detector(model, data.eval_batches(pictures, **options), pictures)
    assert results["AP"] >= 0.9
