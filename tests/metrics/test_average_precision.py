"""Average precision against pycocotools on annotations that have broken evaluators before."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_densepred import metrics

pytestmark = pytest.mark.backend_free

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


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_boxes(seed):
    ground_truth, detections = random_split(seed)
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))
    assert 0.05 < ours["AP"] < 0.95
    assert ours["AP/never seen"] == -1


@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_masks(seed):
    ground_truth, detections = random_split(seed, with_masks=True)
    ours = metrics.coco_average_precision(ground_truth, detections, iou_type="segm")
    assert_equal(ours, reference(ground_truth, detections, "segm"))
    assert 0.05 < ours["AP"] < 0.95


def test_no_detections_at_all():
    ground_truth, _ = random_split()
    ours = metrics.coco_average_precision(ground_truth, [])
    assert_equal(ours, reference(ground_truth, []))
    assert ours["AP"] == ours["AR100"] == 0


def test_no_objects_at_all():
    ground_truth, detections = random_split()
    ground_truth["annotations"] = []
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))
    assert set(ours.values()) == {-1}


def test_neither_objects_nor_detections():
    ground_truth, _ = random_split()
    ground_truth["annotations"] = []
    assert metrics.coco_average_precision(ground_truth, [])["AP"] == -1


def test_only_crowd_regions():
    ground_truth, detections = random_split()
    for item in ground_truth["annotations"]:
        item["iscrowd"] = 1
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))


def test_images_never_predicted_count():
    ground_truth, detections = random_split()
    some = [item for item in detections if item["image_id"] < 3]
    ours = metrics.coco_average_precision(ground_truth, some)
    assert_equal(ours, reference(ground_truth, some))
    assert ours["AR100"] < metrics.coco_average_precision(ground_truth, detections)["AR100"]


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


def test_more_than_a_hundred_detections():
    ground_truth, detections = random_split()
    rng = np.random.default_rng(5)
    for _ in range(150):
        box = rng.uniform((0, 0, 5, 5), (150, 150, 80, 50)).tolist()
        score = float(rng.random())
        detections.append({"image_id": 1, "category_id": 0, "bbox": box, "score": score})
    ours = metrics.coco_average_precision(ground_truth, detections)
    assert_equal(ours, reference(ground_truth, detections))


def test_inputs_stay_as_they_are_and_nothing_is_printed(capsys):
    ground_truth, detections = random_split()
    before = copy.deepcopy((ground_truth, detections))
    metrics.coco_average_precision(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr() == ("", "")


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
