"""Grid R-CNN: targets and boxes one by one, which regions train, detection, arguments."""

import types

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import FeaturePyramid, ResNetBackbone
from keras_densepred.models import FasterRCNN, GridRCNN
from keras_densepred.models.rcnn import grid
from keras_densepred.models.rcnn.grid_head import GRID_SIZE, GridHead, neighbours
from keras_densepred.models.rcnn.regions import Sample, Truth
from keras_densepred.ops.boxes import clip_boxes
from keras_densepred.ops.roi_align import roi_align
from keras_densepred.runtime.replicas import devices_of_a_replica
from tests.models.conftest import ToyPyramid
from tests.weights import compiled, set_deterministic_weights

# 2 pixels are a cell: the enlarged region reaches from 72 to 184.
REGION = np.array([[100, 100, 156, 156]], "float32")
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
TINY = dict(head_width=8, samples=16, num_proposals=12, rpn_width=8, max_detections=5)
TINY |= dict(grid_convs=1, grid_width=4)


def numpy(x):
    return ops.convert_to_numpy(x)


def targets_of(box, region=REGION):
    """(28, 28, 9): rows, columns, points."""
    box = np.array([box], "float32")
    targets = compiled(grid.grid_targets)
    return numpy(targets(ops.convert_to_tensor(region), ops.convert_to_tensor(box)))[0]


def cells(target):
    """Rows and columns of a point's marked cells."""
    return sorted(map(tuple, np.argwhere(target).tolist()))


def plus(row, column):
    around = [(row - 1, column), (row, column - 1), (row, column), (row, column + 1)]
    return sorted([*around, (row + 1, column)])


def test_points_go_down_columns_and_each_sees_its_window():
    targets = targets_of((92, 84, 156, 168))  # cells 10 and 42, 26 by 6 and 48, 27
    starts = (0, 14, 28)
    for point in range(9):
        column = (10, 26, 42)[point // 3] - starts[point // 3]
        row = (6, 27, 48)[point % 3] - starts[point % 3]
        assert cells(targets[..., point]) == plus(row, column), point


def test_a_point_outside_of_its_window_has_no_cells_and_one_at_its_edge_the_rest():
    targets = targets_of((72 + 2 * 30, 84, 156, 168))  # column 30 of windows of 28
    assert not targets[..., :3].any()
    targets = targets_of((72 + 2 * 28, 84, 156, 168))
    assert cells(targets[..., 0]) == [(6, 27)]


def test_a_point_just_left_of_the_enlarged_region_marks_the_first_column():
    """Cell -0.5 is cut to 0, not rounded down to -1."""
    assert cells(targets_of((71, 84, 156, 168))[..., 0]) == [(5, 0), (6, 0), (6, 1), (7, 0)]


def test_thin_regions_have_no_targets():
    for width, there in ((1.5, False), (1.6, True)):
        region = np.array([[100, 100, 100 + width, 156]], "float32")
        assert targets_of((100, 100, 100 + width, 156), region).any() == there


def heat(peaks, others=-40.0):
    """Logits (1, 28, 28, 9) with one peak (row, column, logit) for each point."""
    logits = np.full((1, 28, 28, 9), others, "float32")
    for point, (row, column, logit) in enumerate(peaks):
        logits[0, row, column, point] = logit
    return ops.convert_to_tensor(logits)


def test_sides_are_means_weighted_by_probability():
    weights = np.array([0.9, 0.5, 0.1])
    peaks = [(14, 14, 0.0)] * 9
    for point, weight in zip((0, 1, 2), weights, strict=True):
        peaks[point] = (4, 10 + point, np.log(weight / (1 - weight)))
    box = compiled(grid.decode_grid)(heat(peaks), ops.convert_to_tensor(REGION))
    left, top, right, bottom = numpy(box)[0]
    columns = 72 + 2 * (np.array([10, 11, 12]) + 0.5)
    assert left == pytest.approx(np.sum(weights * columns) / np.sum(weights), abs=1e-4)
    assert right == pytest.approx(72 + 2 * (28 + 14.5), abs=1e-4)
    rows = 72 + 2 * (np.array([4, 14, 14]) + 0.5)  # of the points 0, 3 and 6
    shares = np.array([0.9, 0.5, 0.5])
    assert top == pytest.approx(np.sum(shares * rows) / np.sum(shares), abs=1e-4)
    assert bottom == pytest.approx(72 + 2 * (28 + (0.1 * 4 + 14) / 1.1 + 0.5), abs=1e-3)


def test_probabilities_too_small_for_float32_still_vote():
    logits = heat([(14, 14, -200.0)] * 9, -300.0)
    box = compiled(grid.decode_grid)(logits, ops.convert_to_tensor(REGION))
    np.testing.assert_allclose(numpy(box)[0], [101, 101, 157, 157], atol=1e-4)


def test_boxes_end_at_the_image():
    boxes = ops.convert_to_tensor(np.array([[-3, 5, 70, 80]], "float32"))
    assert numpy(clip_boxes(boxes, 60, 64)).tolist() == [[0, 5, 64, 60]]


def test_neighbours_come_left_up_down_right():
    assert neighbours(0) == (1, 3) and neighbours(4) == (1, 3, 5, 7) and neighbours(8) == (5, 7)
    assert sum(len(neighbours(point)) for point in range(9)) == 24


def test_the_head_starts_with_a_hundredth_everywhere():
    head = GridHead(1, 8)
    head.build((None, GRID_SIZE, GRID_SIZE, 4))
    assert np.std(numpy(head.doubling1.kernel)) == pytest.approx(1e-3, rel=0.1)
    regions = np.random.default_rng(0).normal(size=(2, 14, 14, 4)).astype("float32")
    assert numpy(ops.sigmoid(compiled(head)(regions))) == pytest.approx(0.01, rel=0.05)


def test_heat_maps_are_float32_whatever_the_network_computes_in():
    head = GridHead(1, 4, dtype="mixed_bfloat16")
    head.build((None, GRID_SIZE, GRID_SIZE, 4))
    regions = np.random.default_rng(0).normal(size=(2, 14, 14, 4)).astype("float32")
    logits = compiled(head)(ops.convert_to_tensor(regions))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    rounded = ops.cast(ops.cast(logits, "bfloat16"), "float32")
    assert np.mean(numpy(logits) != numpy(rounded)) > 0.9
    assert {weight.dtype for weight in head.weights} == {"float32"}


# === Which regions train ===


def stage(num_samples=192):
    head = GridHead(1, 4, name="grid_head")
    head.build((None, GRID_SIZE, GRID_SIZE, 3))
    set_deterministic_weights(head)  # at the start all regions have nearly the same loss
    head.doubling2.kernel.assign(20.0 * head.doubling2.kernel)
    return grid.GridStage(head, (3, 4), 2, num_samples, 8, keras.random.SeedGenerator(0))


def feature_maps(images=2):
    rng = np.random.default_rng(1)
    return {
        f"P{level}": ops.convert_to_tensor(
            rng.normal(size=(images, 64 // 2**level, 64 // 2**level, 3)).astype("float32")
        )
        for level in (3, 4)
    }


def sample_of(counts, images=2):
    """So many regions of objects an image, all different, in twelve places."""
    boxes = np.zeros((images, 12, 4), "float32")
    boxes[...] = np.array([8, 10, 40, 46]) + np.arange(12)[None, :, None] / 2
    positive = np.arange(12) < np.array(counts)[:, None]
    matched = np.zeros((images, 12), "int32")
    tensors = map(ops.convert_to_tensor, (boxes, matched, matched, positive, positive, positive))
    truth = np.tile(np.array([9, 9, 44, 50], "float32"), (images, 1, 1))
    return Sample(*tensors), Truth(
        ops.convert_to_tensor(truth), ops.convert_to_tensor(np.zeros((images, 1), "int32"))
    )


def by_hand(stage, features, regions):
    """The loss of (image, place) regions that are not jittered."""
    sample, truth = sample_of([12, 12])
    boxes = numpy(sample.boxes)
    errors = []
    for image, place in regions:
        box = ops.convert_to_tensor(boxes[image, place][None, None])
        maps = [features[f"P{level}"][image : image + 1] for level in (3, 4)]
        pooled = roi_align(maps, box, (8, 16), GRID_SIZE)[0]
        targets = grid.grid_targets(box[0], truth.boxes[0])
        errors.append(float(numpy(stage.heat_error(pooled, targets))[0]))
    return 15 * np.mean(errors)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("counts", [(1, 0), (0, 3), (5, 2), (8, 8)])
def test_the_loss_is_the_mean_over_the_regions_of_objects(counts, monkeypatch):
    """Empty places add nothing and are not divided by, and each region reads its own image."""
    monkeypatch.setattr(grid, "JITTER", 0.0)
    ours, features = stage(), feature_maps()
    sample, truth = sample_of(counts)
    loss = ours.compute_losses(features, sample, truth, 64, 64)["grid_loss"]
    regions = [(image, place) for image in range(2) for place in range(counts[image])]
    assert float(numpy(loss)) == pytest.approx(by_hand(ours, features, regions), rel=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
def test_of_more_regions_than_may_train_some_are_drawn(monkeypatch):
    monkeypatch.setattr(grid, "JITTER", 0.0)
    ours, features = stage(num_samples=1), feature_maps()
    sample, truth = sample_of((3, 2))
    regions = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    possible = [by_hand(ours, features, [region]) for region in regions]
    drawn = set()
    for _ in range(20):
        loss = float(numpy(ours.compute_losses(features, sample, truth, 64, 64)["grid_loss"]))
        (which,) = np.flatnonzero(np.isclose(possible, loss, rtol=1e-5))
        drawn.add(int(which))
    assert len(drawn) >= 3


@pytest.mark.slow_on("jax")
def test_without_objects_there_is_no_loss():
    sample, truth = sample_of((0, 0))
    losses = stage().compute_losses(feature_maps(), sample, truth, 64, 64)
    assert {name: float(numpy(loss)) for name, loss in losses.items()} == {"grid_loss": 0.0}


@pytest.mark.skipif(keras.config.backend() == "jax", reason="JAX traces branches: no values")
def test_only_the_grid_heads_regions_are_jittered(monkeypatch):
    seen = []
    pool = grid.pool_regions

    def pool_and_note(features, levels, boxes, *arguments):
        seen.append(numpy(boxes).reshape(-1, 4))
        return pool(features, levels, boxes, *arguments)

    monkeypatch.setattr(grid, "pool_regions", pool_and_note)
    sample, truth = sample_of((8, 8))
    before = numpy(sample.boxes)
    stage().compute_losses(feature_maps(), sample, truth, 64, 64)
    np.testing.assert_array_equal(numpy(sample.boxes), before)
    (moved,) = seen
    # Plain regions of these sizes, not enlarged ones.
    sizes = (moved[:, 2:] - moved[:, :2]) / np.array([32, 36])
    assert np.all(np.abs(sizes - 1) <= 0.151) and np.ptp(sizes) > 0.1
    assert len(np.unique(moved, axis=0)) == 16
    assert not any((row == before.reshape(-1, 4)).all(axis=1).any() for row in moved)


def test_a_share_of_the_regions_is_of_each_device(monkeypatch):
    """On JAX a step is written for all of them."""
    mesh = types.SimpleNamespace(devices=np.zeros(8))
    monkeypatch.setattr(
        keras.distribution, "distribution", lambda: types.SimpleNamespace(device_mesh=mesh)
    )
    assert devices_of_a_replica() == (8 if keras.config.backend() == "jax" else 1)


def test_regions_of_any_image_are_pooled_in_one_row():
    features = [*feature_maps().values()]
    boxes = np.array(
        [[[4, 4, 30, 50], [8, 2, 60, 60]], [[0, 0, 20, 20], [9, 9, 33, 40]]], "float32"
    )

    def pool(boxes, images=None):
        return roi_align(features, boxes, (8, 16), 3, images=images)

    by_image = numpy(compiled(pool)(ops.convert_to_tensor(boxes)))
    images = ops.convert_to_tensor(np.array([[1, 0, 1]], "int32"))
    picked = ops.convert_to_tensor(np.stack([[boxes[1, 0], boxes[0, 1], boxes[1, 1]]]))
    row = numpy(compiled(pool)(picked, images))
    expected = np.stack([by_image[1, 0], by_image[0, 1], by_image[1, 1]])[None]
    np.testing.assert_allclose(row, expected, atol=1e-6, strict=True)


# === The detector ===


def detector(**changes):
    keras.utils.set_random_seed(0)
    backbone = ResNetBackbone((1, 1, 1, 1), width=2, fixed_batch_norm=True)
    return GridRCNN(FeaturePyramid(backbone, width=8), 3, **{**TINY, **changes})


@pytest.mark.slow_on("tensorflow", "jax")
def test_suppression_is_of_proposals_and_boxes_are_the_grids(monkeypatch):
    model = detector()
    assert model.confidence_threshold == 0.03 and model.iou_threshold == 0.3
    found = model.predict_on_batch(IMAGES)
    stage_class = type(model._grid_stage)
    monkeypatch.setattr(stage_class, "call", lambda self, features, boxes, **size: boxes)
    model.predict_function = None
    proposals = model.predict_on_batch(IMAGES)
    # Scores, classes and their order stay; no box goes because the grid moved it onto another.
    for key in ("labels", "confidence", "num_detections"):
        np.testing.assert_allclose(found[key], proposals[key], atol=1e-6)
    used = found["labels"] >= 0
    assert used.any() and np.all(found["boxes"][~used] == -1)
    assert np.abs(found["boxes"][used] - proposals["boxes"][used]).max() > 0.1
    assert found["boxes"][used].min() >= 0 and found["boxes"][used].max() <= 64


@pytest.mark.backend_free
def test_the_box_head_only_classifies_and_proposals_learn_by_smooth_l1():
    model = detector()
    assert not any("deltas" in w.path and "box_head" in w.path for w in model.weights)
    assert [tracker.name for tracker in model.loss_trackers][2:] == ["class_loss", "grid_loss"]
    assert model._proposal_stage.beta == pytest.approx(1 / 9)
    faster = FasterRCNN(ToyPyramid(), 3, head_width=8)
    assert faster._proposal_stage.beta == 0 and faster._grid_stage is None


@pytest.mark.slow_on("jax", "tensorflow")
def test_every_weight_learns():
    model = detector()
    model.compile(keras.optimizers.SGD(0.1))
    before = {w.path: numpy(w) for w in model.grid_head.trainable_weights}
    y = {
        "boxes": np.array([[[8, 4, 50, 44]], [[20, 20, 60, 60]]], "float32"),
        "labels": np.array([[1], [2]], "int32"),
    }
    for _ in range(2):
        model.train_on_batch(IMAGES, y)
    # A bias before a norm of each channel by itself would move nothing; these norms have groups.
    unmoved = [
        w.path
        for w in model.grid_head.trainable_weights
        if np.array_equal(numpy(w), before[w.path])
    ]
    assert not unmoved


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "changes,message",
    [
        ({"box_loss": "giou"}, "`box_loss` is for detectors that regress boxes"),
        ({"dynamic": True}, "`dynamic` is for detectors that regress boxes"),
        ({"class_agnostic": True}, "`class_agnostic` is for detectors that regress boxes"),
        ({"grid_width": 6}, "`grid_width` must be a multiple of 4, got 6"),
        ({"grid_convs": 0}, "`grid_convs` is too small"),
        ({"grid_samples": 0}, "`grid_samples` is too small"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        GridRCNN(ToyPyramid(), 3, **{**TINY, **changes})
