"""Top-1, top-5 and loss against brute force, ties, several processes, and evaluation in `fit`."""

import contextlib
import json

import keras
import numpy as np
import pytest

from keras_densepred import data, metrics, training
from tests.data.class_pictures import Labelled, evaluate

free = pytest.mark.backend_free


def random_batch(seed=0, count=200, classes=12):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 2, (count, classes)), 1).astype(np.float32)  # with ties
    return logits, rng.integers(0, classes, count), rng.random(count) < 0.8


def brute_force(logits, labels, valid):
    top1 = top5 = loss = images = 0
    for row, label, is_valid in zip(logits.astype(np.float64), labels, valid, strict=True):
        if not is_valid:
            continue
        images += 1
        ranking = sorted(range(len(row)), key=lambda c: (-row[c], c))
        top1 += ranking[0] == label
        top5 += label in ranking[:5]
        loss -= np.log(np.exp(row[label]) / np.exp(row).sum())
    return {"loss": loss / images, "top1": top1 / images, "top5": top5 / images}


@free
def test_counts_are_those_of_brute_force():
    logits, labels, valid = random_batch()
    counts = metrics.ClassificationCounts.empty(12)
    for start in range(0, 200, 64):
        part = slice(start, start + 64)
        counts.update(logits[part], labels[part], valid[part])
    results = counts.results()
    expected = brute_force(logits, labels, valid)
    assert results.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-9)
    confusion = np.zeros((12, 12), int)
    for row in np.flatnonzero(valid):
        confusion[labels[row], logits[row].argmax()] += 1
    np.testing.assert_array_equal(counts.confusion, confusion)


@free
def test_the_same_answer_to_everything_is_right_as_often_as_chance():
    counts = metrics.ClassificationCounts.empty(10)
    counts.update(np.zeros((20, 10)), np.arange(20) % 10, np.ones(20, bool))
    results = counts.results()
    assert (results["top1"], results["top5"]) == (0.1, 0.5)
    np.testing.assert_allclose(results["loss"], np.log(10))


@free
def test_few_classes_and_large_logits():
    counts = metrics.ClassificationCounts.empty(2)
    counts.update(np.array([[1e4, -1e4], [1e4, -1e4]]), np.array([0, 1]), np.ones(2, bool))
    assert counts.results() == {"loss": 1e4, "top1": 0.5, "top5": 1.0}


@free
def test_counts_of_processes_add_up():
    logits, labels, valid = random_batch()
    whole, parts = metrics.ClassificationCounts.empty(12), []
    whole.update(logits, labels, valid)
    for half in (slice(0, 100), slice(100, 200)):
        parts.append(metrics.ClassificationCounts.empty(12))
        parts[-1].update(logits[half], labels[half], valid[half])
    other = {}
    parts[0].gathered(lambda arrays: other.update(arrays) or arrays)
    total = parts[1].gathered(
        lambda arrays: {name: np.concatenate([other[name], arrays[name]]) for name in arrays}
    )
    np.testing.assert_array_equal(total.confusion, whole.confusion)
    assert total.results() == pytest.approx(whole.results())


@free
def test_outputs_that_cannot_be_counted_are_named():
    counts = metrics.ClassificationCounts.empty(3)
    labels, valid = np.zeros(2, int), np.array([True, False])
    with pytest.raises(ValueError, match=r"\(2, 4\) for 2 images of 3 classes"):
        counts.update(np.zeros((2, 4)), labels, valid)
    logits = np.zeros((2, 3))
    logits[1] = np.nan
    counts.update(logits, labels, valid)  # the row that does not count
    with pytest.raises(ValueError, match="not finite"):
        counts.update(logits, labels, ~valid)
    with pytest.raises(ValueError, match="No image was evaluated"):
        metrics.ClassificationCounts.empty(3).results()


def tiny_model():
    image = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.layers.Dense(3)(pooled))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), loss)
    return model


def test_evaluation_during_fit_with_averaged_weights_beside():
    dataset = Labelled(10)
    normal = {"mean": (0.0,) * 3, "std": (10.0,) * 3}
    model = tiny_model()
    evaluation = metrics.ClassificationEvaluation(
        evaluate(dataset, 4, **normal),
        3,
        every=2,
        averaged=lambda: training.averaged_weights(model),
        verbose=False,
    )
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    y = np.eye(3, dtype="float32")[np.arange(8) % 3]
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(dict(logs))

    model.fit(x, y, batch_size=4, epochs=3, callbacks=[evaluation, Watch()], verbose=0)
    names = {f"{prefix}val_{name}" for prefix in ("", "ema_") for name in ("loss", "top1", "top5")}
    assert [names <= logs.keys() for logs in seen] == [False, True, True]
    assert seen[-1]["val_loss"] != seen[-1]["ema_val_loss"]
    assert evaluation.confusion.sum() == 10
    state = json.loads(json.dumps(evaluation.get_state()))
    fresh = metrics.ClassificationEvaluation(evaluate(dataset, 4), 3)
    fresh.set_state(state)
    assert fresh.results == evaluation.results


@free
def test_evaluation_of_a_split_over_processes(capsys):
    class Colour:
        def predict_on_batch(self, images):
            return np.eye(3)[images[:, 0, 0, 0] % 3]

    dataset = Labelled(10, bad={3})
    calls = []

    def double(arrays):
        calls.append(arrays)
        return {name: np.concatenate([values, values]) for name, values in arrays.items()}

    evaluation = metrics.ClassificationEvaluation(
        evaluate(dataset, 4, on_bad_image="skip"),
        3,
        averaged=contextlib.nullcontext,
        predictor=Colour(),
        gather=double,
    )
    results = evaluation.evaluate(None)
    assert len(calls) == 2
    assert results["val_top1"] == results["ema_val_top1"] == results["val_top5"] == 1.0
    np.testing.assert_array_equal(evaluation.confusion, 2 * np.diag([3, 3, 3]))
    with pytest.raises(ValueError, match="every"):
        metrics.ClassificationEvaluation(evaluate(dataset), 3, every=0)


@free
def test_a_shape_net_would_be_evaluated_on_all_pictures():
    dataset = data.ShapesClassification(7, 32)

    class Constant:
        def predict_on_batch(self, images):
            return np.tile([0.0, 0, 0, 0, 0, 1], (len(images), 1))

    counts = metrics.count_predictions(Constant(), evaluate(dataset, 4), 6)
    np.testing.assert_array_equal(counts.confusion[:, 5], [2, 1, 1, 1, 1, 1])
