"""Our backbones in the hosts' own models, and what is wrong there that we work around.

A test named `..._still_...` holds a fault of a host. When it fails the host has been repaired, and
the workaround that it names can go.
"""

import json

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred.backbones import CEDNetBackbone, DetectionPyramid
from keras_densepred.models import NonMaxSuppression, PredictionHead
from tests.hosts import keras_cv, needs_keras_cv, repaired

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
BOXES = np.full((2, 3, 4), -1.0, "float32")
LABELS = np.full((2, 3), -1, "int32")
BOXES[0, :2] = [[2, 2, 20, 30], [14, 6, 31, 20]]
BOXES[1, 0] = [1, 1, 30, 24]
LABELS[0, :2] = [1, 0]
LABELS[1, 0] = 1
HUB_TARGETS = {"boxes": BOXES, "labels": LABELS}
CV_TARGETS = {"boxes": BOXES, "classes": LABELS}
BACKEND = keras.backend.backend()
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if BACKEND == "tensorflow" else {}


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    return CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )


def decoder(from_logits=True, label_key="classes"):
    return NonMaxSuppression(
        "xyxy", from_logits, confidence_threshold=0.0, max_detections=20, label_key=label_key
    )


def small_heads():
    """KerasCV's own heads are 256 wide: minutes for three backends, and not what is tested."""
    return {
        "classification_head": PredictionHead(9 * 2, width=8, depth=0, name="classification_head"),
        "box_head": PredictionHead(9 * 4, width=8, depth=0, name="box_head"),
    }


def assert_trains_predicts_and_reloads(model, targets, label_key, path):
    history = model.fit(IMAGES, targets, batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    found = model.predict(IMAGES, batch_size=2, verbose=0)
    assert found["boxes"].shape == (2, 20, 4)
    assert set(np.unique(found[label_key])) <= {-1, 0, 1}
    assert (found["num_detections"] > 0).all()
    model.save(path)
    reloaded = keras.models.load_model(path)
    assert type(reloaded) is type(model)
    for ours, theirs in zip(model.get_weights(), reloaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    config = json.dumps(reloaded.prediction_decoder.get_config())
    assert config == json.dumps(model.prediction_decoder.get_config())


@pytest.mark.slow_on("jax", "tensorflow")
@needs_keras_cv
def test_keras_cv_retinanet(backbone, tmp_path):
    model = keras_cv.models.RetinaNet(
        backbone,
        num_classes=2,
        bounding_box_format="xyxy",
        prediction_decoder=decoder(),
        **small_heads(),
    )
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4),
        box_loss="smoothl1",
        classification_loss="focal",
        **COMPILE,
    )
    assert_trains_predicts_and_reloads(model, CV_TARGETS, "classes", tmp_path / "model.keras")


@pytest.mark.slow_on("jax", "tensorflow")
@needs_keras_cv
def test_keras_cv_yolo_v8(backbone, tmp_path):
    model = keras_cv.models.YOLOV8Detector(
        backbone,
        num_classes=2,
        bounding_box_format="xyxy",
        fpn_depth=1,
        prediction_decoder=decoder(from_logits=False),
    )
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4),
        box_loss="ciou",
        classification_loss="binary_crossentropy",
        **COMPILE,
    )
    assert_trains_predicts_and_reloads(model, CV_TARGETS, "classes", tmp_path / "model.keras")


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("neck", ["fpn", pytest.param("pyramid", marks=pytest.mark.slow)])
def test_keras_hub_retinanet(backbone, neck, tmp_path):
    if neck == "fpn":
        pyramid = keras_hub.models.RetinaNetBackbone(backbone, 3, 5, use_p5=False)
    else:
        pyramid = DetectionPyramid(backbone, width=8)
    model = keras_hub.models.RetinaNetObjectDetector(
        pyramid,
        num_classes=2,
        bounding_box_format="xyxy",
        pre_logits_num_conv_layers=0,
        prediction_decoder=decoder(label_key="labels"),
    )
    model.compile(**COMPILE)
    assert_trains_predicts_and_reloads(model, HUB_TARGETS, "labels", tmp_path / "model.keras")


# --- faults of the hosts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_hub(backbone):
    return keras_hub.models.RetinaNetObjectDetector(
        DetectionPyramid(backbone, width=8),
        num_classes=2,
        bounding_box_format="xyxy",
        pre_logits_num_conv_layers=1,
    )


def test_keras_hub_still_gives_the_focal_prior_to_the_box_head(stock_hub):
    """keras-hub 0.32.0; models.heads, models.retinanet."""
    cls_bias = keras.ops.convert_to_numpy(stock_hub.classification_head.prediction_layer.bias)
    box_bias = keras.ops.convert_to_numpy(stock_hub.box_head.prediction_layer.bias)
    assert (cls_bias == 0).all()
    np.testing.assert_allclose(box_bias, -np.log(99), rtol=1e-4)


def test_keras_hub_still_draws_head_kernels_five_times_too_large(stock_hub):
    """keras-hub 0.32.0; models.heads."""
    kernel = keras.ops.convert_to_numpy(stock_hub.box_head.prediction_layer.kernel)
    np.testing.assert_allclose(kernel.std(), 0.05, rtol=0.05)


def test_keras_hub_still_fixes_the_heads_width(stock_hub):
    """keras-hub 0.32.0; models.heads."""
    assert next(iter(stock_hub.backbone.output.values())).shape[-1] == 8
    assert stock_hub.box_head.num_filters == stock_hub.classification_head.num_filters == 256


def test_keras_hub_still_drops_batches_without_boxes(stock_hub):
    """keras-hub 0.32.0; models.retinanet.model."""
    empty = {"boxes": np.full_like(BOXES, -1), "labels": np.full_like(LABELS, -1)}
    stock_hub.compile(**COMPILE)
    logs = stock_hub.evaluate(IMAGES, empty, batch_size=2, verbose=0, return_dict=True)
    assert logs["cls_logits_loss"] == 0.0


def test_keras_hub_still_refuses_dictionaries_in_train_on_batch(stock_hub):
    """keras-hub 0.32.0; models.retinanet.train_on_batch."""
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        stock_hub.train_on_batch(IMAGES, HUB_TARGETS)


def test_keras_hub_still_refuses_generators(stock_hub):
    """keras-hub 0.32.0; models.retinanet.fit."""

    def batches():
        while True:
            yield IMAGES, HUB_TARGETS

    with pytest.raises((TypeError, ValueError, AttributeError)):
        stock_hub.fit(batches(), steps_per_epoch=1, verbose=0)


@pytest.mark.slow_on("jax")
def test_keras_hub_decoder_still_suppresses_across_classes():
    """keras-hub 0.32.0; models.decoding."""
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 10]]], "float32")
    scores = np.array([[[0.9, 0.0], [0.0, 0.8]]], "float32")
    theirs = keras_hub.layers.NonMaxSuppression("xyxy", False, max_detections=5)(boxes, scores)
    ours = NonMaxSuppression("xyxy", False, max_detections=5)(boxes, scores)
    assert int(theirs["num_detections"][0]) == 1
    assert int(ours["num_detections"][0]) == 2


def test_keras_hub_fpn_still_reads_use_p5_the_other_way_round(backbone):
    """keras-hub 0.32.0, FeaturePyramid: `use_p5=True` makes P6 from the backbone's P5 (8 channels
    here), its docstring says from the FPN's (256); models.retinanet.model."""
    pyramid = keras_hub.models.RetinaNetBackbone(backbone, 3, 6, use_p5=True)
    kernel = pyramid.feature_pyramid.output_conv_layers["P6"].kernel
    assert kernel.shape == (3, 3, 8, 256)


@pytest.fixture(scope="module")
def stock_cv(backbone):
    return keras_cv.models.RetinaNet(
        backbone, num_classes=2, bounding_box_format="xyxy", **small_heads()
    )


if BACKEND == "torch":

    @needs_keras_cv
    def test_keras_cv_decoder_still_needs_torchvision_on_torch(stock_cv):
        """keras-cv 0.9.0; models.decoding."""
        with pytest.raises(ModuleNotFoundError, match="torchvision"):
            stock_cv.predict(IMAGES, verbose=0)


@needs_keras_cv
def test_keras_cv_still_forgets_the_feature_pyramid(stock_cv):
    """keras-cv 0.9.0; models.retinanet.keras_cv."""
    assert "feature_pyramid" not in stock_cv.get_config()


@needs_keras_cv
def test_keras_cv_still_takes_three_levels_only(backbone):
    """keras-cv 0.9.0; models.retinanet.keras_cv."""
    pyramid = DetectionPyramid(backbone, width=8)
    assert set(pyramid.output) == {"P3", "P4", "P5", "P6", "P7"}
    model = keras_cv.models.RetinaNet(
        pyramid, num_classes=2, bounding_box_format="xyxy", **small_heads()
    )
    assert set(model.feature_extractor.output) == {"P3", "P4", "P5"}


@needs_keras_cv
def test_keras_cv_fpn_still_reports_the_size_of_p5_for_p6():
    """keras-cv 0.9.0, FeaturePyramid.compute_output_shape; models.retinanet.keras_cv."""
    shapes = {f"P{level}": (1, 64 >> level, 64 >> level, 8) for level in (3, 4, 5)}
    reported = keras_cv.models.retinanet.FeaturePyramid().compute_output_shape(shapes)
    assert reported[3][1:3] == (2, 2)  # 1 x 1 in truth


@needs_keras_cv
def test_keras_cv_still_refuses_train_on_batch(stock_cv):
    """keras-cv 0.9.0; models.keras_cv."""
    stock_cv.compile(optimizer="sgd", box_loss="smoothl1", classification_loss="focal")
    with pytest.raises(ValueError, match="unpack"):
        stock_cv.train_on_batch(IMAGES, CV_TARGETS)


MASKS = np.random.default_rng(1).integers(0, 3, (2, 32, 32)).astype("int32")

if BACKEND == "torch":

    def test_keras_still_fails_on_probabilities_of_maps_on_torch():
        """keras 3.15.1, sparse_categorical_crossentropy; models.losses.IgnoreCrossentropy."""
        import torch

        logits = torch.zeros((2, 32, 32, 3), requires_grad=True)
        probabilities = torch.softmax(logits, dim=-1)
        loss = keras.losses.SparseCategoricalCrossentropy()(MASKS, probabilities)
        with pytest.raises(RuntimeError, match="contiguous"):
            loss.backward()


@pytest.fixture(scope="module")
def stock_hub_deeplab(backbone):
    return keras_hub.models.DeepLabV3ImageSegmenter(
        keras_hub.models.DeepLabV3Backbone(backbone, "P5", 8, [2], "P2"), num_classes=3
    )


def test_keras_hub_segmenter_still_wants_one_hot_masks(stock_hub_deeplab):
    """keras-hub 0.32.0, ImageSegmenter.compile; models.segmenter."""
    assert type(stock_hub_deeplab.loss) is keras.losses.CategoricalCrossentropy


def test_keras_hub_segmenter_still_refuses_generators(stock_hub_deeplab):
    """keras-hub 0.32.0; models.segmenter."""

    def batches():
        while True:
            yield IMAGES, np.eye(3, dtype="float32")[MASKS]

    with pytest.raises((TypeError, ValueError, AttributeError)):
        stock_hub_deeplab.fit(batches(), steps_per_epoch=1, verbose=0)


@pytest.mark.slow_on("jax", "tensorflow")
@needs_keras_cv
def test_keras_cv_deeplab_still_ends_in_a_softmax(backbone):
    """keras-cv 0.9.0; models.deeplab_v3_keras_cv."""
    model = keras_cv.models.DeepLabV3Plus(backbone, num_classes=3)
    scores = keras.ops.convert_to_numpy(model(IMAGES))
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-5)


@needs_keras_cv
def test_keras_cv_deeplab_still_takes_p2_and_p5_only(backbone):
    """keras-cv 0.9.0; models.deeplab_v3_keras_cv."""
    with pytest.raises(KeyError, match="P2"):
        keras_cv.models.DeepLabV3Plus(DetectionPyramid(backbone, width=8), num_classes=3)


@repaired(keras, "3.16")
def test_keras_resizing_still_puts_later_layers_into_training():
    """keras 3.15.1, Resizing.call; models.deeplab_v3_keras_hub."""
    inputs = keras.Input((4, 4, 2))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(keras.layers.Resizing(4, 4)(inputs)))
    model(np.full((1, 4, 4, 2), 3.0, "float32"))
    assert np.all(keras.ops.convert_to_numpy(norm.moving_mean) > 0)
