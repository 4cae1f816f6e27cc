"""YOLOv3Detector: trains, predicts, saves, at several sizes and precisions."""

import json

import keras
import numpy as np
import pytest

from keras_densepred import data, metrics
from keras_densepred.models import YOLOLoss, YOLOv3Detector
from tests.models.conftest import ToyPyramid

BACKEND = keras.config.backend()
SLOW_ON_JAX = pytest.mark.slow if BACKEND == "jax" else ()
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if BACKEND == "tensorflow" else {}
ANCHORS = [(8, 8), (12, 14), (20, 24), (34, 28), (50, 56), (88, 60)]
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")


def make_targets():
    boxes = np.full((2, 4, 4), -1.0, "float32")
    labels = np.full((2, 4), -1, "int32")
    boxes[0, :2] = [[8, 4, 50, 44], [60, 30, 90, 60]]
    labels[0, :2] = [2, 0]
    return {"boxes": boxes, "labels": labels}


def numpy_weights(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def confident(model):
    """Moves the starting prior so that there are detections to compare."""
    for level in model.masks:
        bias = model.get_layer(f"yolo_{level.lower()}_prediction").bias
        spread = np.random.default_rng(1).normal(0, 2, bias.shape)
        bias.assign(keras.ops.convert_to_numpy(bias) + spread + 2)
    return model


@pytest.fixture(scope="module")
def compiled_once(toy_backbone):
    model = YOLOv3Detector(toy_backbone, 3, "prn", ANCHORS, loss="ciou")
    model.compile(keras.optimizers.Adam(1e-3), **COMPILE)
    return model, numpy_weights(model)


@pytest.fixture
def model(compiled_once):
    """One model for the tests, as it started: what JAX has compiled stays compiled."""
    model, start = compiled_once
    model.set_weights(start)
    model.reset_metrics()
    return model


def test_fits_arrays_and_generators_and_predicts(model):
    def batches():
        while True:
            yield IMAGES, make_targets()

    history = model.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0).history
    assert set(history) == {"loss", "box_loss", "objectness_loss", "classification_loss"}
    assert history["loss"][1] < history["loss"][0]
    model.fit(IMAGES, make_targets(), batch_size=2, verbose=0)
    found = confident(model).predict(IMAGES, batch_size=2, verbose=0)
    assert found["boxes"].shape == (2, 100, 4)
    for row, count in enumerate(found["num_detections"]):
        assert count > 0
        assert (found["confidence"][row, :count] >= 0.05).all()
        assert (found["labels"][row, :count] >= 0).all()
        assert (found["labels"][row, count:] == -1).all()
        assert (found["boxes"][row, :count].min(0) >= 0).all()
        assert (found["boxes"][row, :count].max(0) <= [96, 64, 96, 64]).all()


@pytest.mark.slow_on("jax")
def test_loss_is_the_mean_over_images_of_the_sum_of_the_parts(model):
    logs = model.test_on_batch(IMAGES, make_targets(), return_dict=True)
    targets = make_targets()
    parts = model.image_losses(IMAGES, targets["boxes"], targets["labels"], model(IMAGES))
    for name, part in parts.items():
        mean = keras.ops.convert_to_numpy(part).mean()
        np.testing.assert_allclose(logs[name], mean, rtol=1e-4)
    total = sum(logs[name] for name in parts)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_starts_nearly_at_the_prior(model):
    """90 slots an image, each background with probability 0.99."""
    empty = {key: np.full_like(value, -1) for key, value in make_targets().items()}
    logs = model.test_on_batch(IMAGES, empty, return_dict=True)
    assert logs["objectness_loss"] == pytest.approx(-90 * np.log(0.99), rel=0.1)
    assert logs["box_loss"] == logs["classification_loss"] == 0


@pytest.mark.slow_on("jax", "tensorflow")
def test_detections_are_darknets_boxes(model):
    """Every slot but one is background; that one's box by the formulas of the paper."""
    for level in model.masks:
        layer = model.get_layer(f"yolo_{level.lower()}_prediction")
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        layer.bias.assign(np.tile([0.0, 0, 0, 0, -9, 0, 0, 0], 3))
    outputs = {k: keras.ops.convert_to_numpy(v).copy() for k, v in model(IMAGES).items()}
    outputs["P4"][1, 2 * 6 + 4, 2] = [1.0, -0.5, 0.3, -0.2, 6.0, -9, 5.0, -9]  # row 2, column 4
    found = model.decode_predictions(
        {level: keras.ops.convert_to_tensor(x) for level, x in outputs.items()}, IMAGES
    )
    found = {key: keras.ops.convert_to_numpy(x) for key, x in found.items()}
    assert found["num_detections"].tolist() == [0, 1]
    x, y = (1.1 / (1 + np.exp(-np.array([1.0, -0.5]))) - 0.05 + [4, 2]) * 16
    w, h = np.array(ANCHORS[3]) * np.exp([0.3, -0.2])  # mask 1, 2, 3
    expected = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [96, 64, 96, 64])
    np.testing.assert_allclose(found["boxes"][1, 0], expected, rtol=1e-5)
    assert found["labels"][1, 0] == 1
    score = 1 / (1 + np.exp(-6)) / (1 + np.exp(-5))
    np.testing.assert_allclose(found["confidence"][1, 0], score, rtol=1e-5)


@pytest.mark.slow_on("jax", "tensorflow")
def test_images_of_several_sizes_in_one_session(model):
    """TensorFlow opens the image size of its graph at the second size."""
    for height, width in ((64, 96), (32, 32)):
        images = np.zeros((2, height, width, 3), "float32")
        logs = model.train_on_batch(images, make_targets())
        assert np.isfinite(logs).all()
        assert model.predict_on_batch(images)["boxes"].shape == (2, 100, 4)


@pytest.mark.slow_on("jax")
def test_box_format_changes_numbers_only(model):
    confident(model)
    other = YOLOv3Detector(
        model.backbone, 3, "prn", ANCHORS, loss="ciou", bounding_box_format="rel_yxyx"
    )
    other.set_weights(model.get_weights())
    targets, outputs = make_targets(), model(IMAGES)
    relative = targets["boxes"][..., [1, 0, 3, 2]] / np.array([64, 96, 64, 96], "float32")
    relative = {"boxes": relative, "labels": targets["labels"]}
    other.compile(keras.optimizers.Adam(1e-3), **COMPILE)
    expected = model.test_on_batch(IMAGES, targets, return_dict=True)
    for name, value in other.test_on_batch(IMAGES, relative, return_dict=True).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)
    found, expected = (
        {k: keras.ops.convert_to_numpy(v) for k, v in m.decode_predictions(outputs, IMAGES).items()}
        for m in (other, model)
    )
    count = expected["num_detections"][0]
    assert count > 0
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(
        found["boxes"][0, :count][:, [1, 0, 3, 2]] * [96, 64, 96, 64],
        expected["boxes"][0, :count],
        atol=1e-3,
    )


@pytest.mark.slow_on("jax")
def test_saved_model_reloads_with_optimizer_and_continues(model, tmp_path):
    model.train_on_batch(IMAGES, make_targets())
    confident(model).save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(reloaded) is type(model)
    assert json.dumps(reloaded.get_config()) == json.dumps(model.get_config())
    assert reloaded.loss_settings == model.loss_settings
    for ours, theirs in zip(numpy_weights(model), numpy_weights(reloaded), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(reloaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    expected, found = model.predict_on_batch(IMAGES), reloaded.predict_on_batch(IMAGES)
    assert expected["num_detections"].min() > 0
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.backend_free
def test_every_argument_survives_the_config():
    settings = YOLOLoss("giou", 0.4, 0.6, 1.5, 0.5, 0.4, {"P5": 1.3})
    model = YOLOv3Detector(
        ToyPyramid(ready=False),
        4,
        "prn_3l",
        [(4.5, 8), (9, 10), (20, 24), (34, 28)],
        {"P3": [0, 1], "P4": [1, 2, 3], "P5": [3]},
        settings,
        "rel_yxyx",
        "swish",
        0.9,
        dtype="mixed_bfloat16",
        name="yolo",
    )
    config = json.loads(json.dumps(model.get_config()))
    other = YOLOv3Detector.from_config(config)
    assert json.dumps(other.get_config()) == json.dumps(model.get_config())
    assert other.loss_settings == settings
    assert other.head_dtype.name == "mixed_bfloat16"
    assert {k: v.shape[2:] for k, v in other.output.items()} == {
        "P3": (2, 9),
        "P4": (3, 9),
        "P5": (1, 9),
    }


@pytest.mark.parametrize("policy", [pytest.param("mixed_bfloat16", marks=SLOW_ON_JAX)])
@pytest.mark.slow_on("tensorflow")
def test_half_precision_trains_and_gives_float32(policy):
    model = YOLOv3Detector(ToyPyramid(ready=False, dtype=policy), 3, "prn", ANCHORS, loss="giou")
    model.compile(keras.optimizers.Adam(1e-3), **COMPILE)
    assert all(x.dtype == "float32" for x in model.output.values())
    history = model.fit(IMAGES, make_targets(), batch_size=2, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert model.predict(IMAGES, verbose=0)["boxes"].dtype == np.float32


def test_compile_and_targets_are_checked(model, toy_backbone):
    fresh = YOLOv3Detector(toy_backbone, 3, "prn")
    with pytest.raises(ValueError, match="no `loss` and no `metrics`"):
        fresh.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"'boxes', 'classes'"):
        model.compute_loss(IMAGES, {"boxes": 0, "classes": 0}, {})
    with pytest.raises(ValueError, match="sample_weight"):
        model.compute_loss(IMAGES, make_targets(), {}, sample_weight=IMAGES)
    fresh.compile()
    assert isinstance(fresh.optimizer, keras.optimizers.SGD)


@pytest.mark.backend_free
def test_backbone_is_checked():
    backbone = ToyPyramid(ready=False)
    backbone.pyramid_outputs = {"P3": backbone.pyramid_outputs["P3"]}
    with pytest.raises(ValueError, match="no level P4, P5"):
        YOLOv3Detector(backbone, 3)
    backbone = ToyPyramid(ready=False)
    backbone.data_format = "channels_first"
    with pytest.raises(ValueError, match="channels_first"):
        YOLOv3Detector(backbone, 3)


class Two:
    """The first pictures of the built-in shapes, for training and evaluation."""

    def __init__(self):
        self.shapes = data.ShapesDataset(2, 96, seed=3)
        self.category_ids = self.shapes.category_ids

    def ground_truth(self):
        return self.shapes.ground_truth()

    def images(self):
        images = np.stack([self.shapes[i].image for i in range(2)]).astype("float32")
        return images / 127.5 - 1

    def targets(self):
        boxes, labels = np.full((2, 8, 4), -1.0, "float32"), np.full((2, 8), -1, "int32")
        for i in range(2):
            record = self.shapes[i]
            boxes[i, : len(record.labels)] = record.boxes
            labels[i, : len(record.labels)] = record.labels
        return {"boxes": boxes, "labels": labels}


@pytest.mark.parametrize("loss", [pytest.param(x, marks=pytest.mark.slow) for x in ("mse", "giou", "ciou")])  # fmt: skip  # noqa: E501
def test_learns_a_few_images_by_heart(loss):
    pictures = Two()
    model = YOLOv3Detector(
        ToyPyramid(ready=False, filters=32),
        6,
        "prn_3l",
        [(10, 10), (16, 22), (24, 16), (28, 28), (24, 44), (44, 26), (40, 50), (60, 44), (64, 70)],
        loss=loss,
        momentum=0.9,
    )
    model.compile(keras.optimizers.Adam(2e-3, global_clipnorm=10.0), **COMPILE)
    images, targets = pictures.images(), pictures.targets()
    for _ in range(300):
        model.train_on_batch(images, targets)
    batch = {
        "images": images,
        "image_ids": np.array(pictures.shapes.image_ids),
        "scales": np.ones((2, 2), "float32"),
        "valid": np.ones(2, bool),
    }
    results = metrics.evaluate_detector(model, [batch], pictures)
    assert results["AP"] >= 0.9, results
