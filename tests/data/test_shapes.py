"""The built-in data set: deterministic, consistent, varied, and exported without loss."""

import json
import pickle
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from keras_densepred import data
from keras_densepred.data.boxes import box_iou

pytestmark = pytest.mark.backend_free


def test_a_picture_depends_on_seed_split_and_index_only():
    dataset = data.ShapesDataset(40, 64, seed=3)
    forward = [dataset[i] for i in (7, 30)]
    longer = pickle.loads(pickle.dumps(data.ShapesDataset(900, 64, seed=3)))
    for first, second in zip(reversed(forward), (longer[30], longer[7]), strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.labels, second.labels)
    others = [
        data.ShapesDataset(40, 64, seed=4)[7],
        data.ShapesDataset(40, 64, seed=3, split="val")[7],
        dataset[8],
    ]
    assert not any(np.array_equal(forward[0].image, other.image) for other in others)


def test_a_picture_written_into_is_drawn_anew(monkeypatch):
    """Kept drawings are nobody's to change, and no more are kept than memory allows."""
    from keras_densepred.data.shapes import detection

    monkeypatch.setattr(detection, "_kept", {})
    monkeypatch.setattr(detection, "_kept_bytes", 0)
    monkeypatch.setattr(detection, "_KEPT_BYTES", 100_000)
    dataset = data.ShapesDataset(8, 96, with_masks=True)
    before = [dataset[index] for index in range(8)]
    assert 2 <= len(detection._kept) < 8
    for record in before:
        expected = [x.copy() for x in (record.image, record.boxes, record.labels, record.masks)]
        for array in (record.image, record.boxes, record.labels, record.masks):
            array[...] = 0
        again = dataset[record.image_id - 1]
        again = (again.image, again.boxes, again.labels, again.masks)
        for one, other in zip(expected, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_picture_is_the_same_on_every_machine():
    record = data.ShapesDataset(4, 128, seed=0)[3]
    names = [data.ShapesDataset.class_names[label] for label in record.labels]
    assert names == ["circle", "square", "cross", "ring", "star"]
    boxes = [
        (93, 20, 128, 66),
        (53, 47, 89, 75),
        (74, 81, 101, 120),
        (16, 37, 53, 81),
        (48, 27, 92, 61),
    ]
    np.testing.assert_allclose(record.boxes, boxes, atol=1)


def test_masks_boxes_and_semantic_labels_agree():
    dataset = data.ShapesDataset(60, (96, 128), seed=1, with_masks=True, with_semantic=True)
    for record in (dataset[i] for i in range(60)):
        assert record.size == (96, 128)
        assert record.masks.sum(0).max(initial=0) <= 1, "masks of what is visible cannot overlap"
        expected = np.zeros((96, 128), np.uint8)
        for box, label, mask in zip(record.boxes, record.labels, record.masks, strict=True):
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_array_equal(box, tight)
            expected[mask] = label + 1
        np.testing.assert_array_equal(record.semantic, expected)


def test_masks_and_labels_are_there_on_request_only():
    record = data.ShapesDataset(1, 64)[0]
    assert record.masks is None and record.semantic is None


def test_it_is_a_task():
    """All classes, many and no objects, small and large ones, hidden ones, cut by the frame."""
    dataset = data.ShapesDataset(300, 128, seed=0, with_masks=True)
    records = [dataset[i] for i in range(300)]
    counts = np.bincount(np.concatenate([r.labels for r in records]), minlength=6)
    assert counts.min() > 0.7 * counts.mean()
    assert {len(r.labels) for r in records} == set(range(dataset.max_objects + 1))
    boxes = np.concatenate([r.boxes for r in records])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert np.mean(sides < 28) > 0.2 and np.mean(sides > 56) > 0.2
    assert 0.02 < np.mean((boxes == 0) | (boxes == 128)) < 0.2
    overlaps = [box_iou(r.boxes, r.boxes) - np.eye(len(r.boxes)) for r in records]
    assert np.mean([o.max(initial=0) > 0.1 for o in overlaps]) > 0.3


def test_ground_truth_is_what_the_records_say():
    dataset = data.ShapesDataset(8, 64, with_masks=True)
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(dataset.image_ids)
    assert [c["name"] for c in truth["categories"]] == list(dataset.class_names)
    assert [c["id"] for c in truth["categories"]] == list(dataset.category_ids)
    assert len({item["id"] for item in truth["annotations"]}) == len(truth["annotations"])
    for record in (dataset[i] for i in range(8)):
        items = [a for a in truth["annotations"] if a["image_id"] == record.image_id]
        boxes = np.array([a["bbox"] for a in items]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, record.boxes)
        assert [a["category_id"] for a in items] == [label + 1 for label in record.labels]
        for item, mask in zip(items, record.masks, strict=True):
            assert item["area"] == mask.sum()
            np.testing.assert_array_equal(rle.decode(item["segmentation"]), mask)


def test_without_masks_the_ground_truth_has_no_segmentation():
    truth = data.ShapesDataset(3, 64).ground_truth()
    assert truth["annotations"] and "segmentation" not in truth["annotations"][0]


def test_coco_tree(tmp_path):
    splits = {name: data.ShapesDataset(4, 64, split=name) for name in ("train", "val")}
    for dataset in splits.values():
        dataset.write_coco(tmp_path)
    for name, dataset in splits.items():
        truth = json.loads((tmp_path / "annotations" / f"instances_{name}.json").read_text())
        for ours, theirs in zip(
            dataset.ground_truth()["annotations"], truth["annotations"], strict=True
        ):
            assert theirs.pop("segmentation")
            assert ours == theirs
        for index, image in enumerate(truth["images"]):
            stored = np.asarray(Image.open(tmp_path / "images" / name / image["file_name"]))
            difference = stored.astype(int) - dataset[index].image
            assert np.abs(difference).mean() < 12, "JPEG changes a noisy picture a little"
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_reader_gives_back_what_was_written(tmp_path):
    written = data.ShapesDataset(6, 64, split="val", with_masks=True)
    written.write_coco(tmp_path)
    data.ShapesDataset(1, 64).write_coco(tmp_path)
    annotations, images = data.find_coco_splits(tmp_path)["val"]
    read = data.CocoDataset(annotations, images, with_masks=True)
    assert len(read) == 6 and read.class_names == written.class_names
    for ours, theirs in zip(written, read, strict=True):
        assert ours.image_id == theirs.image_id
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.masks, theirs.masks)


def test_voc_tree(tmp_path):
    for name in ("train", "val"):
        data.ShapesDataset(4, 64, split=name).write_voc(tmp_path)
    names = (tmp_path / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert names == (tmp_path / "ImageSets" / "Main" / "val.txt").read_text().split()
    dataset = data.ShapesDataset(4, 64, split="val", with_masks=True, with_semantic=True)
    assert names == [f"val_{i:06d}" for i in range(4)]
    for index, name in enumerate(names):
        record = dataset[index]
        root = ElementTree.parse(tmp_path / "Annotations" / f"{name}.xml").getroot()
        assert (tmp_path / "JPEGImages" / root.findtext("filename")).exists()
        found = [
            [int(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            for item in root.iter("object")
        ]
        expected = np.add(record.boxes, (1, 1, 0, 0))
        np.testing.assert_array_equal(np.array(found).reshape(-1, 4), expected)
        classes = Image.open(tmp_path / "SegmentationClass" / f"{name}.png")
        objects = np.asarray(Image.open(tmp_path / "SegmentationObject" / f"{name}.png"))
        assert classes.mode == "P"
        assert classes.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        classes = np.asarray(classes)
        np.testing.assert_array_equal(classes == 255, objects == 255)
        known = classes != 255
        np.testing.assert_array_equal(classes[known], record.semantic[known])
        for number, mask in enumerate(record.masks, start=1):
            assert not (objects == number)[~mask].any()
        edge = record.semantic[:, 1:] != record.semantic[:, :-1]
        assert (classes[:, 1:] == 255)[edge].all() and (classes[:, :-1] == 255)[edge].all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_images": 0}, "`num_images`"),
        ({"num_images": 1, "image_size": 16}, "`image_size`"),
        ({"num_images": 1, "seed": -1}, "`seed`"),
        ({"num_images": 1, "split": "test"}, "`split`"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.ShapesDataset(**arguments)


def test_an_index_outside_is_an_index_error():
    with pytest.raises(IndexError):
        data.ShapesDataset(3, 64)[3]
