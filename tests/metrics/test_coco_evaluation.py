"""From what a detector predicts to COCO's numbers: each image's pixels, and after each epoch."""

import contextlib

import keras
import numpy as np
import pytest

from keras_densepred import metrics


def batch_of(image_ids, scales, valid):
    return {
        "image_ids": np.array(image_ids, np.int64),
        "scales": np.array(scales, np.float32),
        "valid": np.array(valid),
    }


@pytest.mark.backend_free
def test_detections_are_in_original_pixels_and_inside_of_the_image():
    predictions = {
        "boxes": np.array([[[10, 20, 30, 60], [-5, -5, 500, 500], [0, 0, 1, 1]]] * 2, np.float32),
        "labels": np.array([[1, 0, -1]] * 2),
        "confidence": np.array([[0.9, 0.5, -1]] * 2, np.float32),
    }
    batch = batch_of([42, 43], [[2.0, 0.5]] * 2, [True, False])
    found = metrics.detections_to_coco(predictions, batch, (3, 8), {42: (100, 200), 43: (9, 9)})
    assert [item["image_id"] for item in found] == [42, 42]
    assert [item["category_id"] for item in found] == [8, 3]
    np.testing.assert_allclose(found[0]["bbox"], [20, 10, 40, 20])
    np.testing.assert_allclose(found[1]["bbox"], [0, 0, 200, 100])
    np.testing.assert_allclose([item["score"] for item in found], [0.9, 0.5])


class FixedSplit:
    """Two images with one object each, the network seeing them at half size."""

    category_ids = (4,)

    def ground_truth(self):
        return {
            "images": [{"id": i, "height": 64, "width": 64} for i in (1, 2)],
            "categories": [{"id": 4, "name": "thing"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 4, "bbox": [16.0, 16.0, 32.0, 32.0]}
                for i in (1, 2)
            ],
        }

    def batches(self):
        batch = batch_of([1, 2, 2], [[0.5, 0.5]] * 3, [True, True, False])
        return [{**batch, "images": np.ones((3, 32, 32, 3), np.float32)}]


@keras.saving.register_keras_serializable("tests")
class Detector(keras.Model):
    """Finds the object once its only weight is above 0.5; training moves the weight to 1."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.knows = self.add_weight(shape=(), initializer="zeros", name="knows")

    def call(self, images):
        return self.knows * keras.ops.mean(images, axis=(1, 2, 3))

    def predict_step(self, *arguments):
        output = super().predict_step(*arguments)
        scores, state = output if isinstance(output, tuple) else (output, None)
        count = keras.ops.shape(scores)[0]
        found = keras.ops.cast(scores > 0.5, "int32")[:, None]
        box = keras.ops.convert_to_tensor([[[8.0, 8.0, 24.0, 24.0]]])
        decoded = {
            "boxes": keras.ops.tile(box, (count, 1, 1)),
            "labels": found - 1,
            "confidence": keras.ops.cast(found, "float32"),
        }
        return decoded if state is None else (decoded, state)


def fit(callback, epochs):
    model = Detector()
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse", jit_compile=False)
    images, targets = np.ones((4, 32, 32, 3), np.float32), np.ones(4, np.float32)
    return model.fit(
        images, targets, batch_size=4, epochs=epochs, verbose=0, callbacks=[callback]
    ), model


class Knowing:
    """Finds all objects."""

    def predict_on_batch(self, images):
        count = len(images)
        return {
            "boxes": np.tile(np.array([[[8.0, 8.0, 24.0, 24.0]]], np.float32), (count, 1, 1)),
            "labels": np.zeros((count, 1), np.int32),
            "confidence": np.ones((count, 1), np.float32),
        }


@pytest.mark.backend_free
def test_objects_of_images_that_were_passed_over_are_not_missed():
    split = FixedSplit()
    (batch,) = split.batches()
    batch["valid"][1] = False  # unreadable
    found = metrics.find_objects(Knowing(), [batch], split)
    assert found.images == len(found.ground_truth["annotations"]) == 1
    assert found.results()["AP"] == 1.0

    def of_two(arrays):
        """Another process has looked at the second image."""
        arrays = {name: np.concatenate([value, value]) for name, value in arrays.items()}
        for name in arrays.keys() & {"ids", "image_ids"}:
            arrays[name][-1, ...].flat[0] = 2
        return arrays

    found = metrics.find_objects(Knowing(), [batch], split, gather=of_two)
    assert found.images == 2 and found.ground_truth == split.ground_truth()
    assert found.results()["AP"] == 1.0


def test_callback_evaluates_the_model_in_training():
    split = FixedSplit()
    shown, computed = [], []
    callback = metrics.CocoEvaluation(
        split.batches(),
        split,
        once=lambda action: computed.append(action()) or computed[-1],
        verbose=False,
        on_batch=lambda *numbers: shown.append(numbers),
    )
    history, _ = fit(callback, epochs=2)
    assert shown == [(1, 1)] * 2
    assert len(computed) == 2
    assert callback.results is computed[-1]
    # The weight is 1 after the first epoch's step of 0.5 * 2, so both evaluations find all.
    assert history.history["val_AP"] == [1.0, 1.0]
    measured = {f"val_{key}" for key in metrics.SUMMARY_KEYS} - {"val_APl"}
    assert set(history.history) == {"loss", *measured}, "only sizes that there are"
    assert callback.results["APl"] == -1
    assert callback.results["AP/thing"] == 1.0


def test_callback_uses_other_weights_on_request_and_only_now_and_then():
    split = FixedSplit()
    evaluated = []

    @contextlib.contextmanager
    def untrained():
        trained = callback.model.get_weights()
        callback.model.set_weights([np.zeros_like(value) for value in trained])
        evaluated.append(True)
        yield
        callback.model.set_weights(trained)

    callback = metrics.CocoEvaluation(
        split.batches(), split, every=2, weights=untrained, verbose=False
    )
    history, model = fit(callback, epochs=3)
    assert len(evaluated) == 2  # after the second epoch and after the last
    assert history.history["val_AP"] == [0.0, 0.0]
    assert model.get_weights()[0] == pytest.approx(1.0)


@pytest.mark.backend_free
def test_callback_refuses_a_senseless_interval():
    with pytest.raises(ValueError, match="`every`"):
        metrics.CocoEvaluation([], FixedSplit(), every=0)
