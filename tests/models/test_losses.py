"""The losses against NumPy, and what is wrong with the hosts'."""

import keras
import numpy as np
import pytest

from keras_densepred.models import BoxGIoULoss, BoxL1Loss, IgnoreCrossentropy, SigmoidFocalLoss
from keras_densepred.ops.boxes import decode_boxes, giou_loss


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


def pixels():
    random = np.random.default_rng(0)
    logits = 3 * random.normal(size=(2, 4, 5, 7)).astype("float32")
    masks = random.integers(0, 7, (2, 4, 5)).astype("int32")
    masks[0, :2] = masks[1, 3, 4] = 255
    return masks, logits


def cross_entropy_by_hand(masks, logits):
    """Mean over the labelled pixels, and its gradient."""
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labelled = masks != 255
    one_hot = np.eye(logits.shape[-1])[np.where(labelled, masks, 0)]
    loss = -np.log((probability * one_hot).sum(-1))[labelled].mean()
    gradient = (probability - one_hot) * labelled[..., None] / labelled.sum()
    return loss, gradient


def gradient_of(loss, masks, logits):
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda x: loss(masks, x))(logits))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.Variable(logits)
        with tf.GradientTape() as tape:
            value = loss(masks, x)
        return tape.gradient(value, x).numpy()
    import torch

    x = torch.tensor(logits, requires_grad=True)
    loss(masks, x).backward()
    return x.grad.numpy()


def test_ignored_pixels_have_neither_loss_nor_gradient():
    masks, logits = pixels()
    loss = IgnoreCrossentropy()
    expected, gradient = cross_entropy_by_hand(masks, logits)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient_of(loss, masks, logits), gradient, atol=1e-6)
    other = IgnoreCrossentropy(ignore_label=3)
    some = np.where(masks == 255, 3, masks)
    assert float(other(some, logits)) != pytest.approx(expected, rel=1e-3)


def test_a_batch_without_labels_has_loss_0():
    masks, logits = pixels()
    masks = np.full_like(masks, 255)
    assert float(IgnoreCrossentropy()(masks, logits)) == 0.0
    assert (gradient_of(IgnoreCrossentropy(), masks, logits) == 0).all()


def test_ignore_crossentropy_comes_back_from_its_config():
    loss = keras.losses.deserialize(keras.losses.serialize(IgnoreCrossentropy(7, "sum")))
    assert (loss.ignore_label, loss.reduction) == (7, "sum")


def test_overlap_of_deltas_is_that_of_their_boxes():
    """In the anchor's frame as in pixels."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (7, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(5, 40, (7, 2))], axis=1)
    anchors = keras.ops.convert_to_tensor(anchors.astype("float32"))
    one, other = (rng.normal(0, 0.4, (2, 7, 4)).astype("float32") for _ in range(2))
    loss = BoxGIoULoss(weight=3.0, reduction=None)(*map(keras.ops.convert_to_tensor, (one, other)))
    boxes = [decode_boxes(anchors, keras.ops.convert_to_tensor(deltas)) for deltas in (one, other)]
    expected = 3.0 * keras.ops.convert_to_numpy(giou_loss(*boxes))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loss), expected, rtol=1e-3, atol=1e-4)
    copy = keras.losses.deserialize(keras.losses.serialize(BoxGIoULoss(3.0)))
    assert copy.weight == 3.0 and copy.reduction == "sum"
