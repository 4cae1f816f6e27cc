"""What every classifier promises, on every family of backbones. A new one joins by a line."""

import json

import keras
import numpy as np
import pytest

from keras_densepred import models
from keras_densepred.backbones import backbone_families
from keras_densepred.saved.opening import task_of
from tests.contracts.families import OwnBackbone, every_family, small_backbone
from tests.weights import gradients

CLASSES = 3
CLASSIFIERS = {  # and a backbone that each is trained on
    models.PooledImageClassifier: "own",
    models.CSPNetImageClassifier: "own",
    models.BiCSNetImageClassifier: "bicsnet_lite",
    models.CEDNetImageClassifier: "cednet",
}
# BiCSNet takes longest to build; tests/models/test_bicsnet_classifier.py has it besides.
every_classifier = pytest.mark.parametrize(
    "classifier",
    [
        pytest.param(c, marks=pytest.mark.slow if c is models.BiCSNetImageClassifier else ())
        for c in CLASSIFIERS
    ],
)

IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 0])
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}


def make(classifier, **options):
    dtype = options.pop("backbone_dtype", None)
    backbone = small_backbone(CLASSIFIERS[classifier], dtype=dtype)
    return classifier(backbone, **{"num_classes": CLASSES, **options})


def test_all_registered_classifiers_are_here():
    assert {models.classifier_class(family) for family in backbone_families()} <= set(CLASSIFIERS)


@pytest.mark.backend_free
@every_family
def test_every_family_has_a_classifier_whose_config_comes_back(family):
    model = models.image_classifier(small_backbone(family), CLASSES, activation="softmax")
    assert isinstance(model, models.Classifier) and model.task == "classification"
    assert type(model) is models.classifier_class(type(model.backbone))
    outputs = keras.tree.flatten(model.output_shape)
    assert outputs[-2:] == [None, CLASSES] and model.num_classes == CLASSES
    config = model.get_config()
    copy = type(model).from_config(json.loads(json.dumps(config)))
    assert json.dumps(copy.get_config()) == json.dumps(config)
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]


@pytest.mark.slow_on("jax", "tensorflow")
@every_classifier
def test_trains_saves_and_goes_on_where_it_was(classifier, tmp_path):
    model = make(classifier)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"], **COMPILE)
    batches = ((IMAGES, LABELS) for _ in range(2))
    history = model.fit(batches, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"]).all() and 0 <= history["accuracy"][0] <= 1
    expected = model.predict(IMAGES, verbose=0)
    assert expected.shape == (4, CLASSES)

    path, preset = tmp_path / "model.keras", tmp_path / "preset"
    model.save(path)
    model.save_to_preset(str(preset))
    assert task_of(path) == task_of(preset) == "classification"
    loaded = keras.saving.load_model(path)
    assert type(loaded) is classifier
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), expected, atol=1e-4)
    assert int(loaded.optimizer.iterations) == 2 and loaded.optimizer.momentum == 0.9
    again = classifier.from_preset(str(preset))
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), expected, atol=1e-4)
    losses = [m.train_on_batch(IMAGES, LABELS)[0] for m in (model, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
@every_classifier
def test_gradients_are_finite_and_reach_every_weight_of_the_head(classifier):
    model = make(classifier)
    for weight, gradient in zip(model.trainable_weights, gradients(model, IMAGES), strict=True):
        assert gradient is None or np.isfinite(gradient).all(), weight.path
        assert gradient is not None or not weight.path.startswith("head"), weight.path


@pytest.mark.slow_on("jax", "tensorflow")
@every_classifier
def test_mixed_precision_trains(classifier):
    model = make(classifier, backbone_dtype="mixed_bfloat16", head_dtype="float32")
    assert model.head_dtype.name == "float32"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **COMPILE)
    assert np.isfinite(model.train_on_batch(IMAGES, LABELS)).all()


@pytest.mark.backend_free
@every_classifier
def test_refuses_in_one_sentence(classifier):
    with pytest.raises(ValueError, match="`num_classes` is 0"):
        make(classifier, num_classes=0)
    with pytest.raises(ValueError, match="is a Sequential; classifiers stand on"):
        classifier(keras.Sequential(), CLASSES)


@pytest.mark.backend_free
def test_image_classifier_builds_by_name_and_drops_no_option():
    model = models.image_classifier("own_small", CLASSES, width=4, activation="softmax")
    assert type(model.backbone) is OwnBackbone and model.backbone.width == 4
    assert model.activation == "softmax"
    with pytest.raises(ValueError, match=r"OwnBackbone has no option 'drop_path_rate'"):
        models.image_classifier("own_small", CLASSES, drop_path_rate=0.1)
    with pytest.raises(ValueError, match="no option width, and the backbone is already built"):
        models.image_classifier(OwnBackbone(), CLASSES, width=4)
    with pytest.raises(ValueError, match="no built-in preset 'owm_small'"):
        models.image_classifier("owm_small", CLASSES)


@pytest.mark.backend_free
def test_a_family_may_bring_its_own_classifier(monkeypatch):
    class Derived(OwnBackbone):
        pass

    class OwnClassifier(models.PooledImageClassifier):
        pass

    assert models.classifier_class(Derived) is models.PooledImageClassifier
    registered = models.classifiers.registry._CLASSIFIERS
    monkeypatch.setattr(models.classifiers.registry, "_CLASSIFIERS", dict(registered))
    models.register_classifier(OwnBackbone, OwnClassifier)
    assert models.classifier_class(Derived) is OwnClassifier
    assert type(models.image_classifier(Derived(), CLASSES)) is OwnClassifier
    with pytest.raises(ValueError, match="int is no PyramidBackbone"):
        models.classifier_class(int)
