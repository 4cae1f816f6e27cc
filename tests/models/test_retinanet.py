"""RetinaNetKerasHub: losses at the start, batches of every kind, training, saving."""

import json

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred import models
from keras_densepred.models import RetinaNetKerasHub
from keras_densepred.models import anchors as anchor_ops
from tests.networks import run
from tests.weights import compiled

# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")


def make_targets():
    boxes = np.full((2, 4, 4), -1.0, "float32")
    labels = np.full((2, 4), -1, "int32")
    boxes[0, :2] = [[8, 4, 50, 44], [60, 30, 68, 40]]
    labels[0, :2] = [2, 0]
    return {"boxes": boxes, "labels": labels}


def numpy_weights(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def assert_same_model(model, other):
    assert type(other) is type(model)
    # As JSON: a saved tuple comes back as a list.
    assert json.dumps(other.get_config()) == json.dumps(model.get_config())
    for ours, theirs in zip(numpy_weights(model), numpy_weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def confident(model):
    """Moves the starting prior so that there are detections to compare."""
    bias = model.classification_head.prediction.bias
    spread = np.random.default_rng(1).normal(0, 1, bias.shape)
    bias.assign(keras.ops.convert_to_numpy(bias) + 4.0 + spread)
    return model


@pytest.fixture(scope="module")
def compiled_once(toy_pyramid):
    model = RetinaNetKerasHub(toy_pyramid, num_classes=3, head_width=8, head_depth=1)
    model.compile(keras.optimizers.AdamW(1e-3), **COMPILE)
    return model, numpy_weights(model)


@pytest.fixture
def model(compiled_once):
    """One model for the tests, as it started: what JAX has compiled stays compiled."""
    model, start = compiled_once
    model.set_weights(start)
    model.reset_metrics()
    return model


def test_is_the_hosts_model(model):
    assert isinstance(model, keras_hub.models.RetinaNetObjectDetector)
    assert isinstance(model, keras_hub.models.Task)


def test_starts_at_the_papers_loss(model):
    """All anchors start as background with probability 0.99, so the positives' focal term,
    0.25 * 0.99^2 * ln 100 = 1.128 each, is nearly all of the classification loss."""
    logs = model.test_on_batch(IMAGES, make_targets(), return_dict=True)
    assert set(logs) == {"loss", "box_loss", "classification_loss"}
    assert 1.1 < logs["classification_loss"] < 1.5
    assert 0.3 < logs["box_loss"] < 2.0
    np.testing.assert_allclose(
        logs["loss"], logs["box_loss"] + logs["classification_loss"], rtol=1e-5
    )


def test_losses_equal_numpy(model):
    confident(model)
    targets = make_targets()
    logs = model.test_on_batch(IMAGES, targets, return_dict=True)
    outputs = {k: keras.ops.convert_to_numpy(v) for k, v in run(model, IMAGES).items()}
    anchors = anchor_ops.anchor_boxes(64, 96, range(3, 6))
    deltas, labels = (
        keras.ops.convert_to_numpy(value)
        for value in compiled(anchor_ops.assign_targets)(
            anchors,
            keras.ops.convert_to_tensor(targets["boxes"]),
            keras.ops.convert_to_tensor(targets["labels"]),
        )
    )
    positive = labels >= 0
    error = np.abs(outputs["bbox_regression"] - deltas).sum(-1)
    np.testing.assert_allclose(logs["box_loss"], error[positive].sum() / positive.sum(), rtol=1e-4)
    p = 1 / (1 + np.exp(-outputs["cls_logits"].astype("float64")))
    truth = labels[..., None] == np.arange(3)
    focal = np.where(truth, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
    counted = labels != -2
    assert not counted.all()
    np.testing.assert_allclose(
        logs["classification_loss"], focal[counted].sum() / positive.sum(), rtol=1e-4
    )


def test_batch_without_boxes_teaches_background(model):
    confident(model)
    empty = {"boxes": np.full((2, 4, 4), -1.0, "float32"), "labels": np.full((2, 4), -1, "int32")}
    first = model.train_on_batch(IMAGES, empty, return_dict=True)
    assert first["box_loss"] == 0.0
    assert first["classification_loss"] > 0.1
    model.reset_metrics()
    second = model.train_on_batch(IMAGES, empty, return_dict=True)
    assert second["classification_loss"] < first["classification_loss"]


def test_fits_arrays_and_generators_and_predicts(model):
    def batches():
        while True:
            yield IMAGES, make_targets()

    history = model.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
    model.fit(IMAGES, make_targets(), batch_size=2, verbose=0)
    found = confident(model).predict(IMAGES, batch_size=2, verbose=0)
    assert found["boxes"].shape == (2, 100, 4)
    assert found["labels"].shape == found["confidence"].shape == (2, 100)
    for row, count in enumerate(found["num_detections"]):
        assert count > 0
        assert (found["confidence"][row, :count] >= 0.05).all()
        assert (found["labels"][row, :count] >= 0).all()
        assert (found["labels"][row, count:] == -1).all()
        assert (found["boxes"][row, :count].max(0) <= [96, 64, 96, 64]).all()


def test_images_of_several_sizes_in_one_session(model):
    """TensorFlow opens the image size of its graph at the second size."""
    for height, width in ((64, 96), (32, 32)):
        images = np.zeros((2, height, width, 3), "float32")
        assert model.predict_on_batch(images)["boxes"].shape == (2, 100, 4)
        logs = model.test_on_batch(images, make_targets())
        assert np.isfinite(logs).all()


def test_box_format_changes_numbers_only(model):
    confident(model)
    other = RetinaNetKerasHub(
        model.backbone,
        num_classes=3,
        bounding_box_format="rel_yxyx",
        head_width=8,
        head_depth=1,
    )
    other.set_weights(model.get_weights())
    targets = make_targets()
    relative = {
        "boxes": targets["boxes"][..., [1, 0, 3, 2]] / np.array([64, 96, 64, 96], "float32"),
        "labels": targets["labels"],
    }
    np.testing.assert_allclose(
        other.test_on_batch(IMAGES, relative), model.test_on_batch(IMAGES, targets), rtol=1e-4
    )
    found, expected = other.predict_on_batch(IMAGES), model.predict_on_batch(IMAGES)
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    n = expected["num_detections"][0]
    np.testing.assert_allclose(
        found["boxes"][0, :n][:, [1, 0, 3, 2]] * [96, 64, 96, 64],
        expected["boxes"][0, :n],
        atol=1e-3,
    )


def test_saved_model_reloads_with_optimizer_and_continues(model, tmp_path):
    model.train_on_batch(IMAGES, make_targets())
    confident(model).save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_model(model, reloaded)
    assert int(reloaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    expected, found = model.predict_on_batch(IMAGES), reloaded.predict_on_batch(IMAGES)
    assert expected["num_detections"].min() > 0
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    model.reset_metrics()
    np.testing.assert_allclose(
        reloaded.train_on_batch(IMAGES, make_targets()),
        model.train_on_batch(IMAGES, make_targets()),
        rtol=1e-6,
    )
    for ours, theirs in zip(numpy_weights(model), numpy_weights(reloaded), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_preset_holds_pyramid_and_heads(model, tmp_path):
    preset = str(tmp_path / "preset")
    confident(model).save_to_preset(preset)
    assert_same_model(model, RetinaNetKerasHub.from_preset(preset))
    fresh = RetinaNetKerasHub.from_preset(preset, num_classes=5)
    assert fresh.output["cls_logits"].shape[-1] == 5
    assert_same_model(model.backbone, fresh.backbone)


def test_keras_hub_still_loads_presets_of_the_expected_backbone_class_only(model, tmp_path):
    """The reason for our own `from_preset`; when this fails, it may go."""
    preset = str(tmp_path / "preset")
    model.save_to_preset(preset)
    with pytest.raises(ValueError, match="compatible"):
        keras_hub.models.RetinaNetObjectDetector.from_preset(preset)


@pytest.mark.backend_free
def test_backbone_without_pyramid_gets_keras_hubs_fpn(toy_backbone, tmp_path):
    model = RetinaNetKerasHub(toy_backbone, num_classes=2, head_width=8, head_depth=1)
    assert isinstance(model.backbone, keras_hub.models.RetinaNetBackbone)
    assert list(model.backbone.output) == ["P3", "P4", "P5", "P6", "P7"]
    model.save(tmp_path / "model.keras")
    assert_same_model(model, keras.models.load_model(tmp_path / "model.keras"))


@pytest.mark.slow_on("jax", "tensorflow")  # the contract of detectors trains it there
def test_mixed_precision_trains(model):
    half = RetinaNetKerasHub(
        type(model.backbone)(dtype="mixed_bfloat16"), num_classes=3, head_width=8, head_depth=1
    )
    assert half.box_head.hidden[0].compute_dtype == "bfloat16"
    assert half.output["bbox_regression"].dtype == "float32"
    half.compile(keras.optimizers.AdamW(1e-3), **COMPILE)
    logs = half.train_on_batch(IMAGES, make_targets(), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert 1.0 < logs["classification_loss"] < 1.5


def test_head_is_as_wide_and_deep_as_asked(toy_pyramid):
    model = RetinaNetKerasHub(toy_pyramid, num_classes=4, head_width=12, head_depth=3)
    kernels = [layer.kernel.shape for layer in model.classification_head.hidden]
    assert kernels == [(3, 3, 8, 12), (3, 3, 12, 12), (3, 3, 12, 12)]
    assert model.classification_head.prediction.kernel.shape == (3, 3, 12, 36)
    bias = keras.ops.convert_to_numpy(model.classification_head.prediction.bias)
    np.testing.assert_allclose(bias, -np.log(99.0), rtol=1e-5)
    assert not keras.ops.convert_to_numpy(model.box_head.prediction.bias).any()


def test_papers_head_is_normal_with_deviation_001(toy_pyramid):
    head = RetinaNetKerasHub(toy_pyramid, num_classes=1, head_width=256, head_depth=1).box_head
    for layer in (head.hidden[0], head.prediction):
        deviation = keras.ops.convert_to_numpy(layer.kernel).std()
        np.testing.assert_allclose(deviation, 0.01, rtol=0.05)


def test_hidden_convolutions_take_an_initializer_that_is_saved(toy_pyramid):
    model = RetinaNetKerasHub(
        toy_pyramid, num_classes=1, head_width=64, head_depth=2, head_initializer="he_normal"
    )
    for copy in (model, RetinaNetKerasHub.from_config(model.get_config())):
        for head in (copy.box_head, copy.classification_head):
            for layer, expected in (
                (head.hidden[1], (2 / (9 * 64)) ** 0.5),
                (head.prediction, 0.01),
            ):
                deviation = keras.ops.convert_to_numpy(layer.kernel).std()
                np.testing.assert_allclose(deviation, expected, rtol=0.05)


def test_wrong_inputs_get_one_sentence(toy_pyramid, model):
    images = keras.Input((32, 32, 3))
    plain = keras.Model(images, keras.layers.Conv2D(2, 3)(images))
    with pytest.raises(ValueError, match="pyramid_outputs"):
        RetinaNetKerasHub(plain, num_classes=2)
    with pytest.raises(ValueError, match="num_classes"):
        RetinaNetKerasHub(toy_pyramid, num_classes=0)
    with pytest.raises(ValueError, match="head_width"):
        RetinaNetKerasHub(toy_pyramid, num_classes=1, head_width=-4)
    with pytest.raises(ValueError, match="head_depth"):
        RetinaNetKerasHub(toy_pyramid, num_classes=1, head_depth=-1)
    with pytest.raises(ValueError, match="CocoEvaluation"):
        model.compile("sgd", metrics=["accuracy"])
    channels_first = type(toy_pyramid)()
    channels_first.data_format = "channels_first"
    with pytest.raises(ValueError, match="channels_first"):
        RetinaNetKerasHub(channels_first, num_classes=1)


@pytest.mark.slow_on("jax", "tensorflow")
def test_each_object_may_have_its_own_threshold(toy_pyramid, tmp_path):
    """ATSS and GIoU train, and are what a saved model goes on with."""
    with pytest.raises(ValueError, match="`assigner` must be one of"):
        models.RetinaNet(toy_pyramid, 3, assigner="nearest")
    model = models.RetinaNet(toy_pyramid, 3, head_width=8, head_depth=1, assigner="atss")
    model.compile("sgd", box_loss=models.BoxGIoULoss())
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    targets = {"boxes": np.array([[[8, 8, 40, 50.0]]], "float32"), "labels": np.array([[1]])}
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert np.isfinite(list(logs.values())).all() and logs["box_loss"] > 0
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.assigner == "atss" and isinstance(copy.box_loss, models.BoxGIoULoss)
