"""The two losses against NumPy, and what is wrong with the hosts'."""

import keras
import numpy as np

from keras_densepred.models import BoxL1Loss, SigmoidFocalLoss


def focal_reference(y, x, alpha=0.25, gamma=2.0):
    y, x = y.astype("float64"), x.astype("float64")
    p = 1 / (1 + np.exp(-x))
    p_t = np.where(y == 1, p, 1 - p)
    alpha_t = np.where(y == 1, alpha, 1 - alpha)
    return (-alpha_t * (1 - p_t) ** gamma * np.log(p_t)).sum(-1)


def test_focal_loss_is_the_papers_summed_over_classes():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 4)).astype("float32")
    targets = (rng.uniform(size=(2, 5, 4)) < 0.3).astype("float32")
    weights = rng.uniform(size=(2, 5)).astype("float32")
    loss = SigmoidFocalLoss()(targets, logits, sample_weight=weights)
    expected = (focal_reference(targets, logits) * weights).sum()
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_focal_loss_of_extreme_logits_is_finite_and_linear():
    targets = np.array([[1.0], [0.0]], "float32")
    logits = np.array([[-200.0], [200.0]], "float32")
    loss = keras.ops.convert_to_numpy(SigmoidFocalLoss(reduction=None)(targets, logits))
    np.testing.assert_allclose(loss, [0.25 * 200, 0.75 * 200], rtol=1e-5)


def test_keras_focal_loss_is_still_a_mean_over_classes():
    """The reason for our own; when this fails, Keras' may do."""
    logits = np.full((1, 1, 10), -2.0, "float32")
    targets = np.zeros((1, 1, 10), "float32")
    theirs = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, from_logits=True, reduction="sum"
    )(targets, logits)
    np.testing.assert_allclose(
        float(SigmoidFocalLoss()(targets, logits)), 10 * float(theirs), rtol=1e-4
    )


def test_box_loss_sums_the_coordinates():
    target = np.zeros((1, 2, 4), "float32")
    predicted = np.array([[[1, -2, 3, -4], [1, 1, 1, 1]]], "float32")
    loss = BoxL1Loss()(target, predicted, sample_weight=np.array([[1.0, 0.5]], "float32"))
    np.testing.assert_allclose(float(loss), 12.0)


def test_losses_are_restored_from_their_config():
    loss = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(SigmoidFocalLoss(alpha=0.4, gamma=1.5))
    )
    assert (loss.alpha, loss.gamma, loss.reduction) == (0.4, 1.5, "sum")
    assert (
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(BoxL1Loss())
        ).reduction
        == "sum"
    )
