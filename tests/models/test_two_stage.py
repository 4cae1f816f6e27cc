"""Two-stage detectors: losses at the start, batches of every kind, training, saving."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import FeaturePyramid, ResNetBackbone, data, metrics
from keras_densepred.models import CascadeMaskRCNN, CascadeRCNN, FasterRCNN, GridRCNN, MaskRCNN
from keras_densepred.models.rcnn.regions import Sample, Truth
from tests.models.conftest import ToyPyramid

# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
SMALL = dict(
    num_classes=3,
    head_width=16,
    samples=16,
    num_proposals=20,
    mask_convs=1,
    max_detections=5,
)
DETECTORS = {
    "mask": (MaskRCNN, {}),
    "faster": (FasterRCNN, {"dynamic": True}),
    "cascade": (CascadeRCNN, {}),
    "grid": (GridRCNN, {"grid_convs": 2, "grid_width": 8}),
    "cascade_mask": (
        CascadeMaskRCNN,
        dict(head_convs=1, head_fcs=1, head_norm=True, class_agnostic=False, box_loss="giou"),
    ),
}
# One network is compiled for most of the tests; on PyTorch, which does not compile, more are cheap.
slow_when_compiled = pytest.mark.slow if keras.config.backend() != "torch" else ()


def detector(name, dtype=None, **changes):
    """On a pyramid of P2 to P6 with few channels."""
    keras.utils.set_random_seed(0)
    cls, options = DETECTORS[name]
    backbone = ResNetBackbone((1, 1, 1, 1), width=2, fixed_batch_norm=True, dtype=dtype)
    return cls(FeaturePyramid(backbone, width=8), **{**SMALL, **options, **changes})


def targets(*boxes):
    """Objects of the first image; the second has none. Their masks fill the left half."""
    y = {
        "boxes": np.full((2, 6, 4), -1, "float32"),
        "labels": np.full((2, 6), -1, "int32"),
        "masks": np.zeros((2, 6, 10, 10), "uint8"),
    }
    y["boxes"][0, : len(boxes)] = np.array(boxes, "float32").reshape(-1, 4)
    y["labels"][0, : len(boxes)] = np.arange(len(boxes)) % 3
    y["masks"][0, : len(boxes), :, :5] = 1
    return y


# What a batch may hold: objects, none (an image of crowd regions has none either), one pixel and
# less, as many as fit and over each other, and reaching over the border.
BATCHES = {
    "objects": targets((8, 4, 50, 44), (40, 30, 60, 40)),
    "none": targets(),
    "pixels": targets((20, 30, 21, 31), (3, 3, 3.001, 3.001), (63, 63, 64, 64)),
    "many": targets(*[(2 + i, 2, 30 + i, 60) for i in range(6)]),
    "border": targets((-20, -30, 200, 300), (60, 10, 90, 20)),
}


def without_masks(y):
    return {key: value for key, value in y.items() if key != "masks"}


def numpy_weights(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


@pytest.fixture(scope="module")
def trained_once():
    model = detector("mask")
    model.compile(keras.optimizers.SGD(1e-3), **COMPILE)
    return model, numpy_weights(model)


@pytest.fixture
def model(trained_once):
    """One model for the tests, as it started: what JAX has compiled stays compiled."""
    model, start = trained_once
    model.set_weights(start)
    model.reset_metrics()
    return model


@pytest.mark.slow_on("jax")
def test_losses_start_where_they_should(model):
    """Nothing is known: objectness is even, and so are the classes and the background."""
    logs = model.train_on_batch(IMAGES, BATCHES["objects"], return_dict=True)
    assert set(logs) == {
        "loss",
        "rpn_objectness_loss",
        "rpn_box_loss",
        "class_loss",
        "box_loss",
        "mask_loss",
    }
    assert logs["rpn_objectness_loss"] == pytest.approx(np.log(2), abs=0.02)
    assert logs["class_loss"] == pytest.approx(np.log(4), abs=0.05)
    parts = sum(value for key, value in logs.items() if key != "loss")
    assert logs["loss"] == pytest.approx(parts, rel=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("batch", BATCHES)
def test_batches_of_every_kind(model, batch):
    logs = model.train_on_batch(IMAGES, BATCHES[batch], return_dict=True)
    assert all(np.isfinite(value) for value in logs.values()), logs
    assert logs["class_loss"] > 0
    # Regions of objects train whatever their size; anchors only where one overlaps by 0.3.
    assert (logs["mask_loss"] > 0) == (batch != "none")
    assert (logs["rpn_box_loss"] > 0) or batch in ("none", "pixels")
    assert all(np.isfinite(weight).all() for weight in numpy_weights(model))


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("positive", [0, 1, 2, 3])
def test_the_mask_loss_leaves_no_region_out(model, positive):
    """Whatever number of places the mask head runs on: two images, four places each."""
    y = {key: ops.convert_to_tensor(value) for key, value in BATCHES["many"].items()}
    truth = Truth(y["boxes"], y["labels"], y["masks"])
    is_positive = ops.convert_to_tensor(np.array([[n < positive for n in range(16)], [False] * 16]))
    rows = ops.convert_to_tensor(np.tile(np.arange(16, dtype="int32") % 6, (2, 1)))
    boxes = ops.convert_to_tensor(np.tile(np.float32([4, 6, 40, 50]), (2, 16, 1)))
    sample = Sample(boxes, rows % 3, rows, is_positive, is_positive, is_positive)
    features = model(IMAGES)["features"]
    stage = model._region_stages[0]
    all_places = stage.mask_error(features, sample, truth, 4) / max(positive, 1)
    loss = ops.convert_to_numpy(stage.mask_loss(features, sample, truth))
    assert loss == pytest.approx(ops.convert_to_numpy(all_places), rel=1e-5)
    assert (loss > 0) == (positive > 0)


@pytest.mark.slow_on("jax", "tensorflow")
def test_every_weight_learns(model):
    before = {w.path: ops.convert_to_numpy(w) for w in model.trainable_variables}
    for _ in range(2):
        model.train_on_batch(IMAGES, BATCHES["many"])
    unmoved = [
        w.path
        for w in model.trainable_variables
        if np.array_equal(ops.convert_to_numpy(w), before[w.path])
    ]
    assert not unmoved


def test_predictions(model):
    found = model.predict_on_batch(IMAGES)
    assert {key: value.shape for key, value in found.items()} == {
        "boxes": (2, 5, 4),
        "labels": (2, 5),
        "confidence": (2, 5),
        "num_detections": (2,),
        "masks": (2, 5, 28, 28),
    }
    used = np.arange(5) < found["num_detections"][:, None]
    assert used.any()
    assert ((found["labels"] >= 0) == used).all() and (found["boxes"][~used] == -1).all()
    assert (found["boxes"][used] >= 0).all() and (found["boxes"][used] <= 64).all()
    assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()
    assert (found["masks"][~used] == 0).all() and (found["masks"][used] > 0).all()
    assert (np.diff(np.where(used, found["confidence"], 0), axis=1) <= 0).all()


@pytest.mark.slow_on("jax", "tensorflow")
def test_round_trip(model, tmp_path):
    model.train_on_batch(IMAGES, BATCHES["objects"])
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy) is MaskRCNN
    assert json.dumps(copy.get_config()) == json.dumps(model.get_config())
    for ours, theirs in zip(numpy_weights(model), numpy_weights(copy), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    done = [int(ops.convert_to_numpy(m.optimizer.iterations)) for m in (model, copy)]
    assert done[0] == done[1] > 0


@pytest.mark.parametrize("seeds", [pytest.param((1, 1, 2), marks=slow_when_compiled)])
def test_the_seed_decides_the_sample(model, seeds):
    losses = []
    for seed in seeds:
        model.seed_generator.state.assign(np.array([seed, 0], "uint32"))
        model.reset_metrics()
        losses.append(float(model.test_on_batch(IMAGES, BATCHES["many"])[0]))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow_when_compiled) for name in ("faster", "cascade_mask")]
)
def test_other_detectors_train_and_predict(name, tmp_path):
    model = detector(name)
    model.compile(keras.optimizers.SGD(1e-3), **COMPILE)
    for batch in ("objects", "none", "pixels"):
        y = BATCHES[batch] if model.with_masks else without_masks(BATCHES[batch])
        logs = model.train_on_batch(IMAGES, y, return_dict=True)
        assert all(np.isfinite(value) for value in logs.values()), logs
    found = model.predict_on_batch(IMAGES)
    assert found["boxes"].shape == (2, 5, 4) and ("masks" in found) == model.with_masks
    assert np.isfinite(found["boxes"]).all()
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    again = copy.predict_on_batch(IMAGES)
    np.testing.assert_allclose(again["boxes"], found["boxes"], atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("mask", marks=slow_when_compiled)])
def test_half_precision(name):
    """Weights, losses and detections are float32, what is between is not."""
    model = detector(name, dtype="mixed_bfloat16")
    model.compile(keras.optimizers.SGD(1e-3), **COMPILE)
    logs = model.train_on_batch(IMAGES, BATCHES["objects"], return_dict=True)
    assert all(np.isfinite(value) for value in logs.values()), logs
    assert logs["class_loss"] == pytest.approx(np.log(4), abs=0.1)
    found = model.predict_on_batch(IMAGES)
    assert {found[key].dtype for key in ("boxes", "confidence", "masks")} == {np.dtype("float32")}
    assert {w.dtype for w in model.trainable_weights} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_eight_images_are_learned_by_heart(name):
    """AP of at least 0.9 on what was trained on, boxes and masks."""
    dataset = data.ShapesDataset(8, 64, with_masks=True)
    normal = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    cls, options = DETECTORS[name]
    backbone = ResNetBackbone((1, 1, 1, 1), width=16)
    model = cls(
        FeaturePyramid(backbone, width=64),
        num_classes=len(dataset.category_ids),
        **{**options, "head_width": 128, "samples": 64, "num_proposals": 100},
        mask_convs=2,
        anchor_scale=4.0,
    )
    steps = 400
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.AdamW(schedule), **COMPILE)
    mask_size = 28 if model.with_masks else None
    with data.train_batches(
        dataset, batch_size=8, image_size=64, seed=0, mask_size=mask_size, **normal
    ) as stream:
        batch = next(stream)
    images = batch.pop("images")
    for _ in range(steps):
        model.train_on_batch(images, batch)
    evaluation = data.eval_batches(dataset, batch_size=8, image_size=64, **normal)
    results = metrics.evaluate_detector(model, evaluation, dataset)
    assert results["AP"] >= 0.9
    if model.with_masks:
        assert results["mask_AP"] >= 0.9


@pytest.mark.backend_free
def test_levels_of_the_stages():
    model = detector("mask")
    assert model.pyramid_levels == (2, 3, 4, 5, 6) and model.region_levels == (2, 3, 4, 5)
    on_p3 = FasterRCNN(ToyPyramid(), **SMALL)
    assert on_p3.region_levels == on_p3.pyramid_levels == (3, 4, 5)
    wrapped = FasterRCNN(ResNetBackbone((1, 1, 1, 1), width=2), **SMALL)
    assert isinstance(wrapped.backbone, FeaturePyramid)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name,changes,message",
    [
        ("faster", {"box_loss": "iou"}, "`box_loss` must be one of"),
        ("cascade", {"dynamic": True}, "`dynamic` is for one stage"),
        ("faster", {"box_loss": "l1"}, "`dynamic` is for one stage"),
        ("mask", {"samples": 3}, "`samples` is too small: give 4 at least"),
        ("mask", {"num_classes": 0}, "`num_classes` is too small"),
    ],
)
def test_bad_arguments_are_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        detector(name, **changes)


@pytest.mark.backend_free
def test_bad_targets_are_named():
    model = detector("mask")
    with pytest.raises(ValueError, match="takes no `loss` and no `metrics`"):
        model.compile(metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"fit on .*boxes, labels, masks"):
        model.compute_loss(IMAGES, without_masks(BATCHES["none"]), {})
    with pytest.raises(ValueError, match="fit without `sample_weight`"):
        model.compute_loss(IMAGES, BATCHES["none"], {}, sample_weight=np.ones(2))
    backbone = ResNetBackbone(
        (1, 1, 1, 1), width=2, data_format="channels_first", image_shape=(3, None, None)
    )
    with pytest.raises(ValueError, match="is channels_first"):
        FasterRCNN(backbone, num_classes=3)
    with pytest.raises(ValueError, match="has no `pyramid_outputs`: give `keras_densepred"):
        FasterRCNN(keras.Sequential([keras.Input((8,))]), num_classes=3)
