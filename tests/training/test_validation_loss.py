"""The loss on validation images: the training's loss, of the weights that are evaluated."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred.training import CommonSettings
from keras_densepred.training.loop.validation_loss import ValidationLoss, batches_of_loss


@pytest.fixture
def model():
    """With a batch norm, whose statistics a step of training moves, and random numbers."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(keras.optimizers.SGD(0.1), loss="mse")
    return made


def test_it_is_in_the_logs_of_evaluated_epochs_and_leaves_the_model_as_it_was(model):
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 1))) for _ in range(3)]

    def weights():
        return contextlib.nullcontext()

    def trained(*callbacks):
        keras.utils.set_random_seed(1)
        twin = keras.models.clone_model(model)
        twin.set_weights(model.get_weights())
        twin.compile(keras.optimizers.SGD(0.1), loss="mse")
        history = twin.fit(*batches[0], epochs=5, verbose=0, callbacks=callbacks, shuffle=False)
        return twin, history.history

    measured = ValidationLoss(lambda: (batch for batch in batches[1:]), 2, 2, weights)
    found, history = trained(measured)
    plain, plainly = trained()
    np.testing.assert_array_equal(history["loss"], plainly["loss"])
    for ours, theirs in zip(found.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(history["val_loss"]) == 3, "epochs 2, 4 and the last"
    errors = [np.square(found.predict(x, verbose=0) - y).mean() for x, y in batches[1:]]
    assert history["val_loss"][-1] == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_weights_are_those_that_are_evaluated(model):
    @contextlib.contextmanager
    def zeros():
        kept = model.get_weights()
        model.set_weights([np.zeros_like(value) for value in kept])
        yield
        model.set_weights(kept)

    batches = [(np.ones((2, 4)), np.full((2, 1), 3.0))]
    measured = ValidationLoss(lambda: (batch for batch in batches), 1, 1, zeros)
    measured.set_model(model)
    assert measured.measure() == pytest.approx(9.0)


class Recipe:
    has_val_loss = True


class Without:
    has_val_loss = False


@pytest.mark.parametrize(
    ("steps", "epochs", "asked", "images", "batches"),
    [
        (1600, 16, None, 200, 8),  # 64 images
        (400, 16, None, 200, 6),  # of which a twentieth of the training is left
        (400, 16, None, 20, 2),
        (400, 16, None, 3, 1),
        (400, 200, None, 200, 0),  # measured so often that it is dear
        (199, 1, None, 200, 0),  # over before it is compiled
        (199, 1, True, 200, 8),
        (10**6, 1, False, 200, 0),
    ],
)
@pytest.mark.backend_free
def test_by_default_it_takes_a_small_share_of_the_training(steps, epochs, asked, images, batches):
    settings = CommonSettings(
        val_loss=asked, steps=steps, epochs=epochs, evaluate_every=2, batch_size=8
    )
    assert batches_of_loss(Recipe, settings, images) == batches
    assert batches_of_loss(Without, settings, images) == 0
