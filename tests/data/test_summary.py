"""A summary counts what training sees, and can be read."""

import pytest

from keras_densepred.data import summarize
from keras_densepred.data.readers.summary import Finding

pytestmark = pytest.mark.backend_free


def truth(boxes, classes=("cat", "dog", "emu"), images=4):
    """`boxes`: (image id, category id, x, y, width, height, area, iscrowd)."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 99, "width": 99} for i in range(images)
        ],
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": box[0],
                "category_id": box[1],
                "bbox": list(box[2:6]),
                "area": box[6],
                "iscrowd": box[7],
            }
            for number, box in enumerate(boxes, start=1)
        ],
    }


BOXES = [
    (0, 0, 0, 0, 10, 40, 32**2 - 1, 0),
    (0, 10, 0, 0, 30, 20, 32**2, 0),
    (2, 10, 0, 0, 50, 60, 96**2, 0),
    (2, 10, 0, 0, 90, 80, 96**2 + 1, 0),
    (3, 0, 0, 0, 99, 99, 99**2, 1),
]


def test_counts():
    summary = summarize(truth(BOXES), "train")
    assert summary.images == 4
    assert summary.boxes == 4
    assert summary.boxes_per_class == {"cat": 1, "dog": 3, "emu": 0}
    assert summary.crowd == 1
    assert summary.empty_images == 2, "a crowd region alone gives nothing to train on"
    assert (summary.small, summary.medium, summary.large) == (1, 2, 1), "COCO's limits"
    assert summary.width == (10, 40, 90)
    assert summary.height == (20, 50, 80)


def test_text_holds_the_numbers_and_findings():
    finding = Finding(1234, "objects dropped: the box has no area", "annotation id 7")
    lines = str(summarize(truth(BOXES), "train.json", [finding])).splitlines()
    assert lines[0] == "train.json: 4 images, 4 boxes"
    assert "2 images without objects, 1 crowd region, 3 classes" in lines[1]
    text = "\n".join(lines)
    assert "dog" in text and "75.0 %" in text
    assert "emu: no boxes" in text
    assert "small (< 32²) 25 %, medium 50 %, large (> 96²) 25 %" in text
    assert "10 to 90 pixels, median 40" in text
    assert "! 1,234 objects dropped: the box has no area (first: annotation id 7)" in lines[-1]
    assert all(line == line.rstrip() and len(line) <= 88 for line in lines)


def test_many_classes_stay_within_twenty_lines():
    classes = [f"class {i}" for i in range(80)]
    boxes = [(0, 10 * i, 0, 0, 5, 5, 25, 0) for i in range(60) for _ in range(i + 1)]
    text = str(summarize(truth(boxes, classes), "many"))
    assert len(text.splitlines()) <= 20
    assert "class 59" in text
    assert "50 more classes" in text
    assert "20 classes: no boxes" in text


def test_nothing_at_all():
    summary = summarize(truth([], images=1), "empty")
    assert summary.boxes == 0
    assert summary.width == (0, 0, 0)
    assert str(summary).startswith("empty: 1 image, 0 boxes\n  1 image without objects")


def test_classes_of_the_same_name_are_counted_together():
    summary = summarize(truth(BOXES, classes=("cat", "cat", "emu")), "twins")
    assert summary.boxes_per_class == {"cat": 4, "emu": 0}
    assert summary.boxes == 4
