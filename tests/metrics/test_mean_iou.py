"""Mean IoU equals a count pixel by pixel, at the images' own size, and survives a fit."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred import data, metrics
from tests.data.masks import Masked
from tests.data.pictures import NORMAL

NAMES = ("a", "b", "c", "d")


def by_hand(truth, predicted, num_classes):
    """The definition, one pixel after the other."""
    confusion = np.zeros((num_classes, num_classes), int)
    for true, found in zip(truth.ravel(), predicted.ravel(), strict=True):
        if true != 255:
            confusion[true, found] += 1
    scores = []
    for label in range(num_classes):
        both = confusion[label, label]
        union = confusion[label].sum() + confusion[:, label].sum() - both
        scores.append(both / union if union else -1.0)
    return confusion, scores


@pytest.mark.backend_free
def test_equal_to_a_count_by_hand():
    random = np.random.default_rng(0)
    counts = metrics.PixelCounts(4)
    truth = random.choice([0, 1, 2, 255], (5, 9, 7), p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    predicted = random.integers(0, 3, truth.shape)
    for one, other in zip(truth, predicted, strict=True):
        counts.update(one, other)
    confusion, scores = by_hand(truth, predicted, 4)
    np.testing.assert_array_equal(counts.confusion, confusion)
    assert counts.confusion.dtype == np.int64
    results = counts.results(NAMES)
    assert [results[f"IoU/{name}"] for name in NAMES] == pytest.approx(scores)
    # "d" is neither in the truth nor in the prediction.
    assert results["IoU/d"] == -1 and results["mIoU"] == pytest.approx(np.mean(scores[:3]))
    known = truth != 255
    assert results["pixel_accuracy"] == pytest.approx((truth == predicted)[known].mean())


@pytest.mark.backend_free
def test_a_class_that_is_only_predicted_counts_as_0():
    counts = metrics.PixelCounts(4)
    counts.update(np.array([0, 0, 1, 255]), np.array([0, 3, 1, 2]))
    results = counts.results(NAMES)
    assert results == {
        "mIoU": pytest.approx((0.5 + 1.0 + 0.0) / 3),
        "pixel_accuracy": pytest.approx(2 / 3),
        "mean_accuracy": pytest.approx((0.5 + 1.0) / 2),
        "IoU/a": 0.5,
        "IoU/b": 1.0,
        "IoU/c": -1.0,
        "IoU/d": 0.0,
    }


@pytest.mark.backend_free
def test_without_a_labelled_pixel_there_is_no_number():
    counts = metrics.PixelCounts(2)
    counts.update(np.full((2, 2), 255), np.zeros((2, 2)))
    assert set(counts.results("ab").values()) == {-1.0}


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "truth, predicted, message",
    [
        ([0, 4], [0, 0], "The truth has label 4"),
        ([0, 1], [0, -1], "The prediction has label -1"),
        ([0, 1], [0], r"shape \(2,\) and prediction \(1,\)"),
    ],
)
def test_labels_that_cannot_be_are_named(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.PixelCounts(4).update(np.array(truth), np.array(predicted))
    with pytest.raises(ValueError, match="`num_classes`"):
        metrics.PixelCounts(0)


class Oracle:
    """Predicts what the pictures of `Masked` are: their gray value is their label."""

    def __init__(self, num_classes, wrong=()):
        self.num_classes = num_classes
        self.wrong = wrong

    def predict_on_batch(self, images):
        gray = images[..., 0] * NORMAL["std"][0] + NORMAL["mean"][0]
        labels = np.round(gray).astype(int)
        labels = np.where(np.isin(labels, self.wrong), 0, labels)
        return np.eye(self.num_classes, dtype=np.float32)[np.clip(labels, 0, self.num_classes - 1)]


@pytest.mark.backend_free
@pytest.mark.parametrize("size", [None, 16, (48, 24)])
def test_every_pixel_of_every_image_counts_once(size):
    dataset = Masked([(20, 30), (30, 20), (9, 9), (16, 16), (31, 5)])
    batches = data.eval_mask_batches(dataset, batch_size=2, image_size=size, **NORMAL)
    done = []
    counts = metrics.count_pixels(Oracle(60).predict_on_batch, batches, 60, done.append)
    pixels = [height * width - 1 for height, width in dataset.sizes]  # one is ignored in each
    assert np.diag(counts.confusion)[:5].tolist() == pixels
    assert counts.confusion.sum() == sum(pixels)
    assert done == list(range(1, len(batches) + 1))


@pytest.mark.backend_free
def test_scores_are_resized_before_the_best_is_taken():
    batch = {"image_sizes": np.array([[1, 2]]), "semantic_sizes": np.array([[1, 8]])}
    scores = np.zeros((1, 4, 4, 2), np.float32)
    scores[0, 0, :2, 1] = (-1.0, 3.0)  # bilinear: above 0 from a quarter of the way on
    labels = metrics.labels_at_own_size(scores, batch, 0)
    assert labels.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


@pytest.mark.backend_free
def test_bad_outputs_are_named():
    batches = data.eval_mask_batches(Masked([(8, 8)]), batch_size=1, **NORMAL)
    with pytest.raises(ValueError, match="one score a pixel and class"):
        metrics.count_pixels(lambda images: images[..., :2], batches, 60)
    with pytest.raises(ValueError, match="not finite"):
        metrics.count_pixels(lambda images: images * np.nan, batches, 3)


@pytest.mark.backend_free
def test_counts_of_processes_add_up():
    dataset = Masked([(8, 8)] * 5)
    predict = Oracle(5, wrong=(2,)).predict_on_batch
    whole = metrics.count_pixels(
        predict, data.eval_mask_batches(dataset, batch_size=4, **NORMAL), 5
    )
    shares = [
        metrics.count_pixels(
            predict,
            data.eval_mask_batches(dataset, batch_size=4, shard=(index, 2), **NORMAL),
            5,
        )
        for index in range(2)
    ]

    def gather(arrays):
        return {
            name: np.concatenate([array, shares[1].confusion[None]])
            for name, array in arrays.items()
        }

    np.testing.assert_array_equal(shares[0].gathered(gather).confusion, whole.confusion)


def test_evaluation_during_fit():
    dataset = Masked([(8, 8)] * 4)
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Conv2D(60, 1, data_format="channels_last")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss="mse")
    entered = []

    @contextlib.contextmanager
    def weights():
        entered.append(True)
        yield

    def inference(predict):
        return lambda images: Oracle(60).predict_on_batch(images) + 0 * predict(images)

    evaluation = metrics.SegmentationEvaluation(
        data.eval_mask_batches(dataset, batch_size=4, **NORMAL),
        dataset.class_names,
        every=2,
        weights=weights,
        inference=inference,
        verbose=False,
    )
    x, y = np.zeros((4, 8, 8, 3), "float32"), np.zeros((4, 8, 8, 60), "float32")
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[evaluation]).history
    assert history["val_mIoU"] == [1.0, 1.0] and history["val_pixel_accuracy"] == [1.0, 1.0]
    assert len(entered) == 2, "every second epoch and the last"
    assert evaluation.confusion.sum() == 4 * 63
    evaluation.predictor = Oracle(60, wrong=(1,))  # with a device of its own, say
    evaluation.gather = lambda arrays: {k: np.concatenate([v, v]) for k, v in arrays.items()}
    evaluation.inference = None
    assert evaluation.evaluate(model)["pixel_accuracy"] == 0.75
    assert evaluation.confusion.sum() == 2 * 4 * 63, "of two processes"
    other = metrics.SegmentationEvaluation([], dataset.class_names)
    other.set_state(evaluation.get_state())
    assert other.results == evaluation.results
    with pytest.raises(ValueError, match="`every`"):
        metrics.SegmentationEvaluation([], NAMES, every=0)
