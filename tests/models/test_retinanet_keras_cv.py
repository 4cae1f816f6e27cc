"""RetinaNetKerasCV: the same model as RetinaNetKerasHub under KerasCV's class."""

import json
import sys

import keras
import numpy as np
import pytest

import keras_densepred.models as models
from tests.hosts import keras_cv, needs_keras_cv

pytestmark = needs_keras_cv

# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")


def make_targets():
    boxes = np.full((2, 4, 4), -1.0, "float32")
    labels = np.full((2, 4), -1, "int32")
    boxes[0, :2] = [[8, 4, 50, 44], [60, 30, 68, 40]]
    labels[0, :2] = [2, 0]
    return {"boxes": boxes, "labels": labels}


@pytest.fixture(scope="module")
def pair(toy_pyramid):
    """The two hosts' models with the same weights, and detections to compare."""
    settings = {"num_classes": 3, "head_width": 8, "head_depth": 1}
    ours = models.RetinaNetKerasCV(toy_pyramid, **settings)
    bias = ours.classification_head.prediction.bias
    bias.assign(
        keras.ops.convert_to_numpy(bias) + np.random.default_rng(1).normal(3, 1, bias.shape)
    )
    hub = models.RetinaNetKerasHub(toy_pyramid, **settings)
    hub.set_weights(ours.get_weights())
    ours.compile(keras.optimizers.AdamW(1e-3), **COMPILE)
    hub.compile(keras.optimizers.AdamW(1e-3), **COMPILE)
    return ours, hub


def test_both_hosts_have_the_same_losses_and_detections(pair):
    ours, hub = pair
    logs = ours.test_on_batch(IMAGES, make_targets(), return_dict=True)
    expected = hub.test_on_batch(IMAGES, make_targets(), return_dict=True)
    assert set(logs) == set(expected) == {"loss", "box_loss", "classification_loss"}
    for key, value in expected.items():
        np.testing.assert_allclose(logs[key], value, rtol=1e-5)
    detections = ours.predict(IMAGES, verbose=0)
    assert detections["num_detections"].min() > 0
    for key, value in hub.predict(IMAGES, verbose=0).items():
        np.testing.assert_allclose(detections[key], value, rtol=1e-5, atol=1e-5)


def test_starts_at_the_papers_loss(toy_pyramid):
    model = models.RetinaNetKerasCV(toy_pyramid, num_classes=3, head_width=8, head_depth=1)
    model.compile("sgd", **COMPILE)
    logs = model.test_on_batch(IMAGES, make_targets(), return_dict=True)
    assert 1.1 < logs["classification_loss"] < 1.5


def test_is_the_hosts_model_and_takes_its_key_of_labels(pair):
    model, _ = pair
    assert isinstance(model, keras_cv.models.RetinaNet)
    targets = make_targets()

    def batches():
        while True:
            yield IMAGES, {"boxes": targets["boxes"], "classes": targets["labels"]}

    history = model.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


@pytest.mark.slow_on("jax", "tensorflow")
def test_pyramid_survives_saving(pair, tmp_path):
    model, _ = pair
    model.train_on_batch(IMAGES, make_targets())
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(reloaded) is type(model)
    assert json.dumps(reloaded.get_config()) == json.dumps(model.get_config())
    assert int(reloaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    found = reloaded.predict_on_batch(IMAGES)
    for key, value in model.predict_on_batch(IMAGES).items():
        np.testing.assert_array_equal(found[key], value)


def test_backbone_without_pyramid_gets_an_fpn(toy_backbone):
    model = models.RetinaNetKerasCV(toy_backbone, num_classes=2, head_width=8, head_depth=1)
    assert list(model.backbone.output) == ["P3", "P4", "P5", "P6", "P7"]


def test_without_keras_cv_there_is_one_sentence_and_the_rest_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    monkeypatch.delitem(sys.modules, "keras_densepred.models.retinanet.keras_cv", raising=False)
    with pytest.raises(ImportError, match=r'pip install "\.\[cv\]"'):
        _ = models.RetinaNetKerasCV
    assert models.RetinaNetKerasHub is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="RetinaNetKerasTorch"):
        _ = models.RetinaNetKerasTorch
