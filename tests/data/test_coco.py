"""The COCO reader gives correct records, masks and ground truth, and finds common layouts."""

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as reference_masks

from keras_densepred.data import (
    DatasetError,
    ImageError,
    find_coco_splits,
    require_same_classes,
)
from tests.data.coco_files import (
    HEIGHT,
    SQUARE,
    WIDTH,
    loader,
    make_annotation,
    make_content,
    write_pictures,
)

pytestmark = pytest.mark.backend_free


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "images")


@pytest.fixture
def load(tmp_path, images):
    return loader(tmp_path / "instances.json", images)


def test_records(load):
    dataset = load(make_content())
    assert len(dataset) == 3
    assert dataset.image_ids == (7, 0, 90)
    assert dataset.category_ids == (0, 7, 300)
    assert dataset.class_names == ("dog", "never seen", "cat")
    record = dataset[0]
    assert record.image.shape == (HEIGHT, WIDTH, 3)
    assert record.image[0, 0].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(record.boxes, [[0, 0, 40, 30], [1.5, 2.25, 4.5, 6.75]])
    assert record.labels.tolist() == [2, 0]
    assert record.crowd.tolist() == [False, True]
    assert (record.image_id, record.file_name, record.masks) == (7, "a.png", None)
    assert dataset[1].boxes.shape == (0, 4)
    assert dataset[np.int64(-1)].image_id == 90
    with pytest.raises(IndexError):
        dataset[3]


def test_images_are_decoded_when_asked_for(load, images):
    dataset = load(make_content())
    (images / "c.png").write_bytes(b"gone bad")
    assert dataset[0].image_id == 7
    with pytest.raises(ImageError, match=r"c\.png is not an image file"):
        dataset[2]


def test_pickles_without_its_images(load):
    dataset = load(make_content(), with_masks=True)
    copy = pickle.loads(pickle.dumps(dataset))
    assert repr(copy) == repr(dataset)
    np.testing.assert_array_equal(copy[0].masks, dataset[0].masks)
    assert "instances.json" in repr(copy)


def test_ground_truth_is_the_file_cleaned(load):
    content = make_content()
    truth = load(content).ground_truth()
    assert [image["id"] for image in truth["images"]] == [7, 0, 90]
    assert [(c["id"], c["name"]) for c in truth["categories"]] == [
        (0, "dog"),
        (7, "never seen"),
        (300, "cat"),
    ]
    kept = {
        (a["image_id"], a["category_id"], tuple(a["bbox"]), a["area"], a["iscrowd"])
        for a in truth["annotations"]
    }
    assert kept == {
        (90, 0, (10, 10, 10, 10), 100, 0),
        (7, 300, (0, 0, 40, 30), 99.5, 0),
        (7, 0, (1.5, 2.25, 3.0, 4.5), 100, 1),
    }
    assert sorted(a["id"] for a in truth["annotations"]) == [1, 2, 3]
    json.dumps(truth)


def test_annotation_ids_need_not_be_unique_or_positive(load):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["id"] = 0
    dataset = load(content)
    assert [a["id"] for a in dataset.ground_truth()["annotations"]] == [1, 2, 3]
    (finding,) = dataset.summary().findings
    assert str(finding).startswith("2 annotations share their ids with another")


def test_whole_numbers_written_as_floats_and_missing_optional_fields(load):
    content = make_content()
    for entry in content["annotations"]:
        entry["category_id"] = float(entry["category_id"])
        del entry["area"], entry["iscrowd"], entry["segmentation"]
    content["images"][0]["width"] = float(WIDTH)
    truth = load(content).ground_truth()
    areas = {a["category_id"]: a["area"] for a in truth["annotations"] if a["image_id"] == 7}
    assert areas == {300: 1200, 0: 13.5}


@pytest.mark.parametrize(
    ("box", "expected", "found"),
    [
        ([5, 5, 0, 9], None, "no area"),
        ([25, 25, -20, 9], None, "no area"),
        ([5, 5, 9, -1], None, "no area"),
        ([-10, 5, 0, 3], None, "no area"),
        ([39.99999999, 5, 5, 5], None, "no area"),
        ([40, 5, 5, 5], None, "outside the image"),
        ([-5, 5, 5, 5], None, "outside the image"),
        ([900, 900, 5, 5], None, "outside the image"),
        ([30, 20, 100, 100], [30, 20, 40, 30], "clipped"),
        ([-5, -5, 20, 20], [0, 0, 15, 15], "clipped"),
        ([30, 20, 10.005, 10], [30, 20, 40, 30], None),
    ],
)
def test_boxes_are_dropped_or_clipped_and_counted(load, box, expected, found):
    content = make_content()
    content["annotations"].append(make_annotation(44, image_id=90, bbox=box))
    dataset = load(content)
    boxes = dataset[2].boxes.tolist()
    truth = [a["bbox"] for a in dataset.ground_truth()["annotations"] if a["image_id"] == 90]
    findings = dataset.summary().findings
    assert len(boxes) == len(truth) == 1 + (expected is not None)
    if expected is not None:
        assert boxes[1] == expected
        x, y, width, height = truth[1]
        np.testing.assert_allclose([x, y, x + width, y + height], expected)
    if found is None:
        assert not findings
    else:
        (finding,) = findings
        assert finding.count == 1
        assert found in finding.what
        assert "annotation id 44" in finding.example


def test_random_boxes_keep_the_promise_of_a_record(load):
    rng = np.random.default_rng(3)
    content = make_content()
    boxes = np.concatenate([rng.uniform(-20, 50, (300, 2)), rng.uniform(-2, 40, (300, 2))], axis=1)
    content["annotations"] += [
        make_annotation(10 + i, image_id=7, bbox=box.tolist()) for i, box in enumerate(boxes)
    ]
    x1, y1, x2, y2 = load(content)[0].boxes.T
    assert len(x1) > 100
    assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= WIDTH).all()
    assert (y1 >= 0).all() and (y1 < y2).all() and (y2 <= HEIGHT).all()


def test_masks_are_cocos(load):
    """Polygons (several an object), uncompressed and compressed RLE, against pycocotools."""
    triangle = [22.5, 3.25, 37.1, 8.8, 25.0, 27.3]
    counts = [35, 20, 500, 45, 600]
    region = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    region[4:9, 11:30] = 1
    compressed = reference_masks.encode(region)
    compressed["counts"] = compressed["counts"].decode()
    segmentations = [
        [*SQUARE, triangle],
        {"size": [HEIGHT, WIDTH], "counts": counts},
        compressed,
    ]
    content = make_content()
    content["annotations"] = [
        make_annotation(i, segmentation=segmentation, iscrowd=int(i == 1))
        for i, segmentation in enumerate(segmentations)
    ]
    content["annotations"].insert(1, make_annotation(9, bbox=[5, 5, 0, 0]))
    dataset = load(content, with_masks=True)
    masks = dataset[0].masks
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert masks.dtype == bool
    union = reference_masks.merge(reference_masks.frPyObjects(segmentations[0], HEIGHT, WIDTH))
    np.testing.assert_array_equal(masks[0], reference_masks.decode(union))
    runs = np.repeat(np.arange(len(counts)) % 2, counts).reshape(WIDTH, HEIGHT).T
    np.testing.assert_array_equal(masks[1], runs)
    np.testing.assert_array_equal(masks[2], region)
    assert dataset[1].masks.shape == (0, HEIGHT, WIDTH)
    for annotation, mask in zip(dataset.ground_truth()["annotations"], masks, strict=True):
        np.testing.assert_array_equal(reference_masks.decode(annotation["segmentation"]), mask)


def make_tree(root, annotation_names, folders):
    (root / "annotations").mkdir()
    for name in annotation_names:
        (root / "annotations" / name).write_text("{}")
    for folder in folders:
        (root / folder).mkdir(parents=True)


@pytest.mark.parametrize(
    ("suffix", "parent"), [("2017", "."), ("2017", "images"), ("", "images"), ("2014", ".")]
)
def test_layouts_that_are_found(tmp_path, suffix, parent):
    names = [f"instances_{split}{suffix}.json" for split in ("train", "val")]
    make_tree(tmp_path, names, [f"{parent}/{split}{suffix}" for split in ("train", "val")])
    splits = find_coco_splits(tmp_path)
    assert set(splits) == {"train", "val"}
    for split, (annotations, folder) in splits.items():
        assert annotations == tmp_path / "annotations" / f"instances_{split}{suffix}.json"
        assert folder == tmp_path / parent / f"{split}{suffix}"


def test_layouts_that_are_not_found_say_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match="not a folder"):
        find_coco_splits(tmp_path / "nope")
    with pytest.raises(DatasetError, match=r"no train .*instances_train2017\.json"):
        find_coco_splits(tmp_path)
    make_tree(tmp_path, ["instances_train.json"], ["images/train"])
    with pytest.raises(DatasetError, match=r"no val annotations"):
        find_coco_splits(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"no folder of images.*images/val"):
        find_coco_splits(tmp_path)


def test_splits_must_agree_on_their_classes(load):
    first = load(make_content())
    content = make_content()
    content["categories"].reverse()
    require_same_classes({"train": first, "val": load(content)})
    content["categories"][0]["name"] = "lynx"
    with pytest.raises(DatasetError, match=r"val .*category id 7 is 'lynx'.*'never seen'"):
        require_same_classes({"train": first, "val": load(content)})
    content["categories"].pop(0)
    with pytest.raises(DatasetError, match="'missing'"):
        require_same_classes({"train": first, "val": load(content)})
