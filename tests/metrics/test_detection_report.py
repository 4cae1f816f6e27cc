"""What costs average precision, on made cases with known answers, and against COCO's numbers."""

import numpy as np
import pytest

from keras_densepred import metrics

pytestmark = pytest.mark.backend_free
SQUARE = [100.0, 100.0, 40.0, 40.0]
FAR = [300.0, 300.0, 40.0, 40.0]
HALF_OFF = [120.0, 100.0, 40.0, 40.0]  # IoU 1/3 with SQUARE
CAT, DOG = 3, 8


def split(*objects, crowds=()):
    """One image with objects `(category, box)`."""
    items = [(*item, 0) for item in objects] + [(*item, 1) for item in crowds]
    return {
        "images": [{"id": 5, "height": 400, "width": 400}],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": c, "bbox": box, "iscrowd": crowd}
            for i, (c, box, crowd) in enumerate(items, start=1)
        ],
    }


def found(*items):
    """Detections `(category, box, score)`."""
    keys = ("category_id", "bbox", "score")
    return [{"image_id": 5, **dict(zip(keys, item, strict=True))} for item in items]


def errors_of(ground_truth, detections):
    return metrics.split_errors(metrics.match(ground_truth, detections))


@pytest.mark.parametrize(
    ("kind", "detections", "lost"),
    [
        ("class", [(DOG, SQUARE, 0.9)], 1.0),
        ("box", [(CAT, HALF_OFF, 0.9)], 1.0),
        ("both", [(DOG, HALF_OFF, 0.9)], 0.0),  # goes away, and the object stays missing
        ("duplicate", [(CAT, SQUARE, 0.9), (CAT, SQUARE, 0.8)], 0.0),  # below all that is right
        ("background", [(CAT, FAR, 0.9), (CAT, SQUARE, 0.8)], 0.5),
        ("missed", [], 1.0),  # nothing else is wrong
    ],
)
def test_an_error_of_each_kind(kind, detections, lost):
    ground_truth = split((CAT, SQUARE))
    errors = errors_of(ground_truth, found(*detections))
    expected = {kind: 1, "missed": 1} if kind in ("both", "missed") else {kind: 1}
    assert {name: count for name, count in errors.count.items() if count} == expected
    assert errors.lost[kind] == pytest.approx(lost)
    others = {name: gain for name, gain in errors.lost.items() if name != kind}
    assert others == {**dict.fromkeys(others, 0.0), **({"missed": 1.0} if kind == "both" else {})}


def test_a_duplicate_before_other_right_ones_costs():
    ground_truth = split((CAT, SQUARE), (CAT, FAR))
    detections = found((CAT, SQUARE, 0.9), (CAT, SQUARE, 0.8), (CAT, FAR, 0.7))
    errors = errors_of(ground_truth, detections)
    # Precision 1 up to a recall of one half, then 2/3: 51 and 50 of 101 places.
    now = (51 + 50 * 2 / 3) / 101
    assert metrics.coco_average_precision(ground_truth, detections)["AP50"] == pytest.approx(now)
    assert errors.lost["duplicate"] == pytest.approx(1 - now)


def test_missed_objects_cost_what_recall_lacks():
    ground_truth = split((CAT, SQUARE), (CAT, FAR))
    errors = errors_of(ground_truth, found((CAT, SQUARE, 0.9)))
    assert errors.count["missed"] == 1
    assert errors.lost["missed"] == pytest.approx(1 - 51 / 101)


def test_what_is_found_where_all_objects_are_missed_is_too_much():
    errors = errors_of(split((CAT, SQUARE)), found((CAT, FAR, 0.9)))
    assert errors.count["missed"] == 1 and errors.lost["missed"] == 0


def test_only_the_surest_of_two_is_repaired():
    ground_truth = split((CAT, SQUARE), (DOG, FAR))
    wrong = found((DOG, SQUARE, 0.9), (DOG, SQUARE, 0.8), (DOG, FAR, 0.7))
    errors = errors_of(ground_truth, wrong)
    assert errors.count["class"] == 2 and errors.count["missed"] == 0
    assert errors.lost["class"] == pytest.approx((1 + 1) / 2 - (0 + 1 / 3) / 2)


def test_crowds_are_neither_right_nor_wrong():
    ground_truth = split((CAT, SQUARE), crowds=[(CAT, [250.0, 250.0, 140.0, 140.0])])
    matching = metrics.match(ground_truth, found((CAT, SQUARE, 0.9), (CAT, FAR, 0.95)))
    assert matching.ignored.tolist() == [True, False] and matching.is_found.all()
    assert not any(metrics.split_errors(matching).count.values())


def test_the_threshold_is_the_one_of_the_best_f1():
    ground_truth = split((CAT, SQUARE), (DOG, FAR))
    some = found((CAT, SQUARE, 0.917), (DOG, FAR, 0.622), (DOG, SQUARE, 0.6), (CAT, FAR, 0.1))
    assert metrics.best_threshold(metrics.match(ground_truth, some)) == pytest.approx(0.62)
    assert metrics.best_threshold(metrics.match(ground_truth, some[3:])) is None
    ties = found((CAT, SQUARE, 0.5), (CAT, [0.0, 0.0, 9.0, 9.0], 0.5), (DOG, FAR, 0.5))
    assert metrics.best_threshold(metrics.match(ground_truth, ties)) == 0.5


def random_split(seed):
    """Many images with objects and detections of every quality, scores without ties."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "height": 400, "width": 400} for i in range(20)]
    annotations, detections = [], []
    for number in range(80):
        image, category = int(rng.integers(20)), int(rng.choice([CAT, DOG]))
        box = [*rng.uniform(0, 300, 2), *rng.uniform(20, 90, 2)]
        crowd = int(rng.random() < 0.1)
        item = {"id": number + 1, "image_id": image, "category_id": category, "bbox": box}
        annotations.append({**item, "iscrowd": crowd, "area": box[2] * box[3]})
        for _ in range(rng.integers(0, 4)):
            near = (np.array(box) + rng.normal(0, 9, 4)).clip(1).tolist()
            said = category if rng.random() < 0.8 else CAT + DOG - category
            detections.append(
                {"image_id": image, "category_id": said, "bbox": near, "score": rng.random()}
            )
    categories = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


@pytest.mark.parametrize("seed", range(3))
def test_what_is_matched_is_what_coco_matches(seed):
    """An oracle that repairs nothing loses nothing: our AP50 is COCO's."""
    ground_truth, detections = random_split(seed)
    matching = metrics.match(ground_truth, detections)
    objects = np.bincount(matching.object_label)
    ours = metrics.error_split._mean_ap(
        matching.label, matching.found >= 0, matching.ignored, objects, objects
    )
    theirs = metrics.coco_average_precision(ground_truth, detections)["AP50"]
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_the_whole_report():
    ground_truth, detections = random_split(0)
    everything = metrics.Found(ground_truth, detections)
    report = metrics.DetectionReport.of(everything, everything.results())
    real = [item for item in ground_truth["annotations"] if not item["iscrowd"]]
    assert report.confusion[:2].sum() == len(real)
    shown = [item for item in detections if item["score"] >= report.threshold]
    on_crowds = int(metrics.match(ground_truth, shown).ignored.sum())
    assert report.confusion[:, :2].sum() == len(shown) - on_crowds
    right = np.trace(report.confusion)
    assert report.f1 == pytest.approx(2 * right / (len(real) + len(shown) - on_crowds))
    assert report.cost.sum() == sum(report.errors.count.values()) > 0
    boxes = report.by_class["boxes"]
    assert sum(row["objects"] for row in boxes.values()) == len(real)
    for name, row in boxes.items():
        assert row["AP"] == report.results[f"AP/{name}"]
        assert row["objects_large"] == 0 and row["APl"] == -1, "none above 96^2"
        assert row["objects_small"] + row["objects_medium"] == row["objects"]
        assert 0 < row["ARm"] <= row["AR100"] * 1.5
    assert np.mean([row["AP50"] for row in boxes.values()]) == pytest.approx(report.results["AP50"])
    assert report.precisions["cat"].mean() == pytest.approx(boxes["cat"]["AP50"])
    as_json = report.as_json()
    assert as_json["confusion_at_threshold"]["objects"] == report.confusion.tolist()
    assert set(as_json["AP50_lost"]) == set(metrics.ERRORS) == set(as_json["errors_at_threshold"])


def test_a_detector_that_finds_nothing_and_a_split_without_objects():
    for truth in (split((CAT, SQUARE)), split()):
        for some in ([], found((DOG, FAR, 0.9))):
            everything = metrics.Found(truth, some)
            report = metrics.DetectionReport.of(everything, everything.results())
            assert report.threshold == 0.3 and report.f1 == 0
            assert report.confusion.sum() == len(truth["annotations"]) + len(some)
