"""What is written about a detector: tables, figures, pictures."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data, metrics, report

pytestmark = pytest.mark.backend_free
SPLIT = data.ShapesDataset(5, 96, 0, "val")


def found(keep=lambda number: True):
    """The objects themselves, some of them, and one thing that is not there."""
    ground_truth = SPLIT.ground_truth()
    keys = ("image_id", "category_id", "bbox")
    detections = [
        {**{key: item[key] for key in keys}, "score": 0.9}
        for number, item in enumerate(ground_truth["annotations"])
        if keep(number)
    ]
    return metrics.Found(ground_truth, detections)


def report_of(everything):
    return metrics.DetectionReport.of(everything, everything.results())


def written(evaluation):
    files = {}
    report.write_detection_report(evaluation, SPLIT, files.__setitem__)
    return files


def test_tables_and_pictures_of_a_detector_that_misses_some():
    everything = found(lambda number: number % 3)
    files = written(report_of(everything))
    assert set(files) == {"per_class.csv", "precision_recall.png", "confusion.png", "worst.png"}
    rows = list(csv.DictReader(io.StringIO(files["per_class.csv"].decode())))
    assert tuple(row["class"] for row in rows) == SPLIT.class_names
    counts = np.bincount(np.concatenate([SPLIT[i].labels for i in range(5)]), minlength=len(rows))
    for row, count in zip(rows, counts, strict=True):
        assert int(row["objects"]) == count
        assert (row["AP"] == "") == (count == 0), "nothing to measure"
    for name in set(files) - {"per_class.csv"}:
        with Image.open(io.BytesIO(files[name])) as picture:
            assert picture.width > 600 and picture.format == "PNG"


def test_a_perfect_detector_has_no_worst_picture():
    files = written(report_of(found()))
    assert "worst.png" not in files and "confusion.png" in files


def test_the_worst_pictures_come_first():
    ids = [item["image_id"] for item in SPLIT.ground_truth()["annotations"]]
    worst = SPLIT.image_ids[3]
    evaluation = report_of(found(lambda number: ids[number] != worst))
    assert evaluation.cost.argmax() == 3 and (evaluation.cost > 0).sum() == 1
    with Image.open(io.BytesIO(written(evaluation)["worst.png"])) as picture:
        assert picture.width < 2 * 600, "one pair"


def test_samples_are_spread_over_the_split():
    everything = found()
    images, truth, predictions = report.samples_of(everything, SPLIT, 3)
    for image, objects, boxes, index in zip(images, truth, predictions, (0, 2, 4), strict=True):
        record = SPLIT[index]
        np.testing.assert_array_equal(image, record.image)
        np.testing.assert_array_equal(objects["boxes"], record.boxes)
        np.testing.assert_allclose(boxes["boxes"], record.boxes, atol=1e-4)
        np.testing.assert_array_equal(boxes["labels"], record.labels)
    assert len(report.samples_of(everything, SPLIT, 99)[0]) == 5


def test_errors_in_words():
    text = report.describe_errors(report_of(found(lambda number: number % 3)))
    missed = len(range(0, len(SPLIT.ground_truth()["annotations"]), 3))
    (line,) = [line for line in text.splitlines() if line.startswith("  missed")]
    assert line.split()[2] == str(missed)
