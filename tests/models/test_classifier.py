"""CEDNetImageClassifier: deep supervision in training, the last head elsewhere."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetImageClassifier
from tests.contracts.families import small_backbone
from tests.weights import set_deterministic_weights

IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 0])


def classifier():
    model = CEDNetImageClassifier(small_backbone("cednet", num_stages=2), num_classes=3)
    set_deterministic_weights(model)
    return model


@pytest.mark.slow_on("jax", "tensorflow")
def test_training_sees_every_head_and_prediction_the_last():
    model = classifier()
    logits = model(IMAGES, training=True)
    assert len(logits) == 2 and all(tuple(x.shape) == (4, 3) for x in logits)
    last = ops.convert_to_numpy(model(IMAGES))
    np.testing.assert_allclose(last, ops.convert_to_numpy(logits[-1]), atol=1e-5)


@pytest.mark.slow_on("jax", "tensorflow")
def test_the_loss_is_the_mean_of_the_stages():
    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    expected = np.mean(
        [ops.convert_to_numpy(loss(LABELS, x)) for x in model(IMAGES, training=True)]
    )
    history = model.fit(IMAGES, LABELS, batch_size=4, verbose=0).history
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)


@pytest.mark.slow_on("jax", "tensorflow")
def test_fit_changes_every_head_and_round_trips_are_exact(tmp_path):
    model = classifier()
    before = model.get_weights()
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(IMAGES, LABELS, batch_size=2, verbose=0)
    for old, weight in zip(before, model.weights, strict=True):
        if weight.path.startswith("head") and "kernel" in weight.path:
            assert np.any(old != ops.convert_to_numpy(weight)), weight.path
    expected = model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras"),
        CEDNetImageClassifier.from_preset(str(tmp_path / "preset")),
    ):
        assert isinstance(copy, CEDNetImageClassifier)
        np.testing.assert_array_equal(copy.predict(IMAGES, verbose=0), expected)
