"""Average precision against pycocotools on annotations that have broken evaluators before."""

import contextlib
import copy
import io

import keras
import numpy as np
import pytest
from keras import ops
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_densepred import data, metrics
from keras_densepred.data.boxes import cut_by_boxes
from keras_densepred.metrics import coco_results
from keras_densepred.metrics.mask_results import masks_on_image, masks_to_rle
from keras_densepred.ops.box_masks import paste_masks

free = pytest.mark.backend_free
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "never seen"}]


def reference(ground_truth, detections, iou_type="bbox"):
    """pycocotools on the same data, with annotation ids from 1 (it takes id 0 for unmatched)."""
    ground_truth, detections = copy.deepcopy((ground_truth, detections))
    for number, item in enumerate(ground_truth["annotations"], start=1):
        item["id"] = number
    truth = COCO()
    truth.dataset = ground_truth
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if detections:
            found = truth.loadRes(detections)
        else:
            found = COCO()
            found.dataset = {**ground_truth, "annotations": []}
            found.createIndex()
        run = COCOeval(truth, found, iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    result = {**dict(zip(keys, run.stats[:6], strict=True)), "AR100": run.stats[8]}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for position, category_id in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, position, 0, -1]
        known = precision[precision > -1]
        result[f"AP/{names[category_id]}"] = known.mean() if known.size else -1
    return result


def random_split(seed=0, images=12, with_masks=False):
    """A split with crowd regions, empty images, ids from 0, and detections of every quality."""
    rng = np.random.default_rng(seed)
    ground_truth = {
        "images": [{"id": i, "height": 200, "width": 240} for i in range(images)],
        "categories": CATEGORIES,
        "annotations": [],
    }
    detections = []
    for image in range(images):
        for _ in range(0 if image % 4 == 3 else rng.integers(1, 9)):
            size = rng.choice([10, 40, 120])
            x, y, w, h = rng.uniform((0, 0, size / 2, size / 2), (110, 70, size, size))
            category = int(rng.choice([0, 7]))
            item = {
                "id": len(ground_truth["annotations"]),
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(rng.random() < 0.15),
            }
            if with_masks:
                item["segmentation"] = encode(x, y, w, h)
                item["area"] = float(rle.area(item["segmentation"]))
            ground_truth["annotations"].append(item)
            for _ in range(rng.integers(0, 3)):
                box = np.clip(np.add([x, y, w, h], rng.normal(0, size / 12, 4)), 1, 239)
                found = {
                    "image_id": image,
                    "category_id": category if rng.random() < 0.8 else 7 - category,
                    "score": float(np.round(rng.random(), 1)),  # with ties
                }
                if with_masks:
                    found["segmentation"] = encode(*box)
                else:
                    found["bbox"] = box.tolist()
                detections.append(found)
    return ground_truth, detections


def encode(x, y, w, h):
    mask = np.zeros((200, 240), np.uint8, order="F")
    mask[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
    encoded = rle.encode(mask)
    return {"size": [200, 240], "counts": encoded["counts"].decode()}


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key


@free
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_boxes(seed):
    ground_truth, detections = random_split(seed)
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))
    assert 0.05 < ours["AP"] < 0.95
    assert ours["AP/never seen"] == -1


@free
@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_masks(seed):
    ground_truth, detections = random_split(seed, with_masks=True)
    ours = metrics.coco_average_precision(ground_truth, detections, iou_type="segm")
    assert_equal(ours, reference(ground_truth, detections, "segm"))
    assert 0.05 < ours["AP"] < 0.95


@free
def test_no_detections_at_all():
    ground_truth, _ = random_split()
    ours = metrics.coco_average_precision(ground_truth, [])
    assert_equal(ours, reference(ground_truth, []))
    assert ours["AP"] == ours["AR100"] == 0


@free
def test_no_objects_at_all():
    ground_truth, detections = random_split()
    ground_truth["annotations"] = []
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))
    assert set(ours.values()) == {-1}


@free
def test_neither_objects_nor_detections():
    ground_truth, _ = random_split()
    ground_truth["annotations"] = []
    assert metrics.coco_average_precision(ground_truth, [])["AP"] == -1


@free
def test_only_crowd_regions():
    ground_truth, detections = random_split()
    for item in ground_truth["annotations"]:
        item["iscrowd"] = 1
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))


@free
def test_images_never_predicted_count():
    ground_truth, detections = random_split()
    some = [item for item in detections if item["image_id"] < 3]
    ours = metrics.coco_average_precision(ground_truth, some)
    assert_equal(ours, reference(ground_truth, some))
    assert ours["AR100"] < metrics.coco_average_precision(ground_truth, detections)["AR100"]


@free
def test_annotation_id_zero_is_found():
    ground_truth = {
        "images": [{"id": 0, "height": 100, "width": 100}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "area": 1600}
        ],
    }
    found = [{"image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.9}]
    assert metrics.coco_average_precision(ground_truth, found)["AP"] == 1


@free
def test_more_than_a_hundred_detections():
    ground_truth, detections = random_split()
    rng = np.random.default_rng(5)
    for _ in range(150):
        box = rng.uniform((0, 0, 5, 5), (150, 150, 80, 50)).tolist()
        score = float(rng.random())
        detections.append({"image_id": 1, "category_id": 0, "bbox": box, "score": score})
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))


@free
def test_inputs_stay_as_they_are_and_nothing_is_printed(capsys):
    ground_truth, detections = random_split()
    before = copy.deepcopy((ground_truth, detections))
    metrics.coco_average_precision(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr() == ("", "")


@free
@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 99}, "image_id 99"),
        ({"category_id": 5}, "category_id 5"),
        ({"score": float("nan")}, "not finite"),
        ({"bbox": [0.0, 0.0, float("inf"), 1.0]}, "not finite"),
    ],
)
def test_impossible_detections_are_named(change, message):
    ground_truth, detections = random_split()
    with pytest.raises(ValueError, match=message):
        metrics.coco_average_precision(ground_truth, [{**detections[0], **change}])


def batch_of(image_ids, scales, valid):
    return {
        "image_ids": np.array(image_ids, np.int64),
        "scales": np.array(scales, np.float32),
        "valid": np.array(valid),
    }


@free
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


def test_callback_evaluates_the_model_in_training():
    split = FixedSplit()
    shown = []
    callback = metrics.CocoEvaluation(
        split.batches(), split, verbose=False, on_batch=lambda *numbers: shown.append(numbers)
    )
    history, _ = fit(callback, epochs=2)
    assert shown == [(1, 1)] * 2
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


@free
def test_callback_refuses_a_senseless_interval():
    with pytest.raises(ValueError, match="`every`"):
        metrics.CocoEvaluation([], FixedSplit(), every=0)


class MaskDetector:
    """Predicts each image's objects as they are: boxes, and masks of which half is wrong."""

    def __init__(self, truth):
        self.truth = truth

    def predict_on_batch(self, images):
        return self.truth


@free
def test_masks_are_evaluated_beside_boxes():
    dataset = data.ShapesDataset(3, 64, with_masks=True)
    plain_colours = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    batches = data.eval_batches(dataset, batch_size=3, image_size=64, **plain_colours)
    records = [dataset[i] for i in range(3)]
    most = max(len(record.labels) for record in records)
    found = {
        "boxes": np.full((3, most, 4), -1, "float32"),
        "labels": np.full((3, most), -1, "int32"),
        "confidence": np.full((3, most), -1, "float32"),
        "masks": np.zeros((3, most, 56, 56), "float32"),
    }
    for row, record in enumerate(records):
        count = len(record.labels)
        found["boxes"][row, :count] = record.boxes
        found["labels"][row, :count] = record.labels
        found["confidence"][row, :count] = 0.9
        found["masks"][row, :count] = cut_by_boxes(record.masks, record.boxes, 56)
    gathered = []

    def gather(arrays):
        gathered.append(arrays)
        return arrays

    for results in (
        metrics.evaluate_detector(MaskDetector(found), batches, dataset),
        metrics.evaluate_detector(MaskDetector(found), batches, dataset, gather=gather),
    ):
        assert results["AP"] == pytest.approx(1.0)
        assert results["mask_AP50"] == pytest.approx(1.0) and results["mask_AP"] > 0.85
    assert gathered[0]["rle_bytes"].dtype == np.uint8
    worse = {**found, "masks": found["masks"] * (np.arange(56) < 14)}
    results = metrics.evaluate_detector(MaskDetector(worse), batches, dataset)
    assert results["AP"] == pytest.approx(1.0) and results["mask_AP50"] < 0.2
    plain = data.ShapesDataset(3, 64)
    results = metrics.evaluate_detector(MaskDetector(found), batches, plain)
    assert results["AP"] == pytest.approx(1.0) and "mask_AP" not in results


@free
def test_masks_in_run_lengths_are_those_pasted():
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(4, 7, 7))
    boxes = np.array([[2, 3, 30, 20], [-5, 10, 8, 50], [3.3, 4.4, 3.9, 5.2], [4, 4, 4, 4]])
    pasted = ops.convert_to_numpy(paste_masks(masks, boxes, 40, 33)) >= 0.5
    decoded = masks_on_image(masks, boxes, 40, 33)
    # The pasted one falls off within half a cell outside of its box, too.
    x, y = np.meshgrid(np.arange(33), np.arange(40))
    for ours, whole, (x1, y1, x2, y2) in zip(decoded, pasted, boxes, strict=True):
        inside = (x >= np.floor(x1)) & (x < np.ceil(x2)) & (y >= np.floor(y1)) & (y < np.ceil(y2))
        assert np.array_equal(ours, whole & inside)


@free
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("has_masks", [False, True])
def test_results_arrive_in_another_process_as_they_were(number, has_masks):
    rng = np.random.default_rng(0)
    boxes = np.array([[1.5, 2, 9, 8]] * number).reshape(-1, 4)
    lengths = masks_to_rle(rng.uniform(size=(number, 4, 4)), boxes, 10, 12)
    sent = [
        {"image_id": 7, "category_id": 2, "bbox": [1.5, 2.0, 7.5, 6.0], "score": 0.25 * i}
        for i in range(number)
    ]
    if has_masks:
        for item, segmentation in zip(sent, lengths, strict=True):
            item["segmentation"] = segmentation
    assert coco_results.from_arrays(coco_results.as_arrays(sent, has_masks)) == sent


@free
def test_a_mask_whose_box_reaches_into_the_padding_stays_in_its_place():
    """The left half of a box that is twice as wide as the image: all of the image."""
    mask = np.zeros((1, 1, 28, 28), "float32")
    mask[..., :14] = 1
    predictions = {
        "boxes": np.array([[[0, 0, 40, 20]]], "float32"),
        "labels": np.zeros((1, 1), "int32"),
        "confidence": np.ones((1, 1), "float32"),
        "masks": mask,
    }
    batch = {
        "image_ids": np.array([7]),
        "scales": np.ones((1, 2), "float32"),
        "valid": np.array([True]),
    }
    (found,) = metrics.detections_to_coco(predictions, batch, [1], {7: (20, 20)})
    assert found["bbox"] == [0, 0, 20, 20]
    assert rle.decode(found["segmentation"]).sum() > 0.95 * 20 * 20
