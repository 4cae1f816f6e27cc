"""Both hosts' DeepLab on our backbones: training on masks with ignored pixels, saving."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred import models
from keras_densepred.backbones import CEDNetBackbone
from tests.hosts import keras_cv, needs_keras_cv

BACKEND = keras.backend.backend()
COMPILE = {"jit_compile": False} if BACKEND == "tensorflow" else {}
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
MASKS = np.random.default_rng(1).integers(0, 3, (2, 32, 32)).astype("int32")
MASKS[:, :8] = 255


@pytest.fixture(scope="module")
def backbone():
    """P2 to P5."""
    keras.utils.set_random_seed(0)
    return CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )


def assert_trains_predicts_and_reloads(model, path):
    model.compile(keras.optimizers.SGD(0.01), **COMPILE)
    batches = ((IMAGES, MASKS) for _ in range(3))  # as `training.fit` hands them over
    history = keras.Model.fit(model, batches, steps_per_epoch=1, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    expected = model.predict(IMAGES, batch_size=2, verbose=0)
    assert expected.shape == (2, 32, 32, 3)
    assert (expected < 0).any(), "logits"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded) is type(model)
    assert isinstance(loaded.loss, models.IgnoreCrossentropy)
    for found in (loaded(IMAGES), model(IMAGES)):
        found = keras.ops.convert_to_numpy(found)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
def test_keras_hub_v3_plus(backbone, tmp_path):
    model = models.DeepLabV3KerasHub(backbone, 3)
    assert isinstance(model, keras_hub.models.DeepLabV3ImageSegmenter)
    assert model.backbone.low_level_feature_key == "P2" and model.backbone.upsampling_size == 8
    assert_trains_predicts_and_reloads(model, tmp_path / "model.keras")


def test_keras_hub_v3_has_no_low_level_features(backbone, toy_backbone):
    plain = models.DeepLabV3KerasHub(backbone, 3, plus=False)
    assert plain.backbone.low_level_feature_key is None
    assert plain.output_shape == (None, None, None, 3)
    # P3 takes the place of a missing P2.
    toy = models.DeepLabV3KerasHub(toy_backbone, 3)
    assert toy.backbone.low_level_feature_key == "P3" and toy.backbone.upsampling_size == 4
    assert toy(IMAGES).shape == (2, 32, 32, 3)
    again = models.DeepLabV3KerasHub(toy.backbone, 2)
    assert again.backbone is toy.backbone


@pytest.mark.slow_on("jax", "tensorflow")
@needs_keras_cv
def test_keras_cv_v3_plus(backbone, tmp_path):
    model = models.DeepLabV3PlusKerasCV(backbone, 3)
    assert isinstance(model, keras_cv.models.DeepLabV3Plus)
    assert_trains_predicts_and_reloads(model, tmp_path / "model.keras")


@needs_keras_cv
def test_keras_cv_v3_plus_without_p2_and_at_any_size(toy_backbone):
    model = models.DeepLabV3PlusKerasCV(toy_backbone, 3)
    assert model(np.zeros((1, 33, 47, 3), "float32")).shape == (1, 33, 47, 3)


@needs_keras_cv
def test_missing_levels_are_named(toy_backbone):
    with pytest.raises(ValueError, match="'plain', a Sequential, has no `pyramid_outputs`"):
        models.DeepLabV3KerasHub(keras.Sequential(name="plain"), 3)
    with pytest.raises(ValueError, match="'plain', a Sequential, has no `pyramid_outputs`"):
        models.DeepLabV3PlusKerasCV(keras.Sequential(name="plain"), 3)
