"""The COCO reader gives correct records, or says in one sentence what is wrong with which file."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference_masks

from keras_densepred.data import (
    CocoDataset,
    DatasetError,
    ImageError,
    find_coco_splits,
    require_same_classes,
)

pytestmark = pytest.mark.backend_free

WIDTH, HEIGHT = 40, 30
SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def make_content():
    """Three images, the second without objects; category ids out of order, sparse, from 0."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 0, "file_name": "sub/b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 90, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [
            {"id": 300, "name": "cat"},
            {"id": 0, "name": "dog"},
            {"id": 7, "name": "never seen"},
        ],
        "annotations": [
            make_annotation(1, image_id=90, category_id=0),
            make_annotation(2, image_id=7, bbox=[0, 0, 40, 30], area=99.5),
            make_annotation(3, image_id=7, category_id=0, bbox=[1.5, 2.25, 3.0, 4.5], iscrowd=1),
        ],
    }


def make_annotation(identifier, **changes):
    annotation = {
        "id": identifier,
        "image_id": 7,
        "category_id": 300,
        "bbox": [10, 10, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return annotation | changes


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 10, 20)).save(folder / name)
    return folder


@pytest.fixture
def load(tmp_path, images):
    def load(content, **options):
        path = tmp_path / "instances.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoDataset(path, images, **options)

    return load


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


def set_annotation(**changes):
    return lambda content: content["annotations"][0].update(changes)


def set_image(**changes):
    return lambda content: content["images"][0].update(changes)


FAULTS = {
    "box missing": (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 .*no bbox"),
    "box nan": (set_annotation(bbox=[float("nan"), 1, 2, 3]), r"bbox \[NaN, 1, 2, 3\]"),
    "box infinite": (set_annotation(bbox=[1, 1, float("inf"), 3]), "four finite numbers"),
    "box of texts": (set_annotation(bbox=["1", "2", "3", "4"]), "four finite numbers"),
    "box of booleans": (set_annotation(bbox=[True, 1, 2, 3]), "four finite numbers"),
    "box of three": (set_annotation(bbox=[1, 2, 3]), "four finite numbers"),
    "box null": (set_annotation(bbox=None), "four finite numbers"),
    "huge number": (set_annotation(bbox=[10**400, 1, 2, 3]), "four finite numbers"),
    "area text": (set_annotation(area="large"), 'area "large"'),
    "crowd two": (set_annotation(iscrowd=2), "iscrowd 2"),
    "unknown image": (set_annotation(image_id=9999), "image_id 9999, which `images` does not"),
    "unknown category": (set_annotation(category_id=99), "category_id 99, which `categories`"),
    "no image id": (lambda c: c["annotations"][0].pop("image_id"), "image_id null"),
    "category id text": (set_annotation(category_id="1"), 'category_id "1", not an integer'),
    "duplicate image id": (set_image(id=90), "image id 90 is used twice"),
    "image id text": (set_image(id="7"), 'image number 0 has id "7", not an integer'),
    "huge image id": (set_image(id=2**70), "not an integer"),
    "no width": (lambda c: c["images"][0].pop("width"), "image id 7 .*no width"),
    "negative height": (set_image(height=-4), "height -4"),
    "missing file": (set_image(file_name="gone.png"), r"image id 7 is gone\.png, not in .*images"),
    "no file name": (set_image(file_name=None), "file_name null"),
    "leads out": (set_image(file_name="../../etc/passwd"), "leads out of the image folder"),
    "hidden way out": (set_image(file_name="sub/../../x.png"), "leads out of the image folder"),
    "backslashes": (set_image(file_name="..\\x.png"), "leads out of the image folder"),
    "absolute": (set_image(file_name="/etc/passwd"), "leads out of the image folder"),
    "drive letter": (set_image(file_name="C:\\x.png"), "leads out of the image folder"),
    "nul": (set_image(file_name="a\0.png"), "not the name of a file"),
    "duplicate category": (lambda c: c["categories"][0].update(id=0), "category id 0 is used twi"),
    "category without name": (lambda c: c["categories"][0].pop("name"), "category id 300 has name"),
    "no categories": (lambda c: c.pop("categories"), "`categories` is missing"),
    "empty images": (lambda c: c["images"].clear(), "`images` is empty"),
    "empty annotations": (lambda c: c["annotations"].clear(), "`annotations` is empty"),
    "images a dict": (lambda c: c.update(images={}), "`images` is not a list"),
    "annotation a number": (lambda c: c["annotations"].append(5), "entry 3 of `annotations` is 5"),
    "only useless boxes": (
        lambda c: [a.update(bbox=[1, 1, 0, 0]) for a in c["annotations"]],
        "none of its 3 boxes has an area",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_one_sentence(load, tmp_path, fault):
    change, expected = FAULTS[fault]
    content = make_content()
    change(content)
    with pytest.raises(DatasetError, match=expected) as caught:
        load(content)
    assert_one_sentence(caught.value, tmp_path / "instances.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [', "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[1, 2]", "top level is a list"),
        ("null", "top level is a NoneType"),
    ],
)
def test_files_that_are_not_coco(load, tmp_path, text, expected):
    with pytest.raises(DatasetError, match=expected) as caught:
        load(text)
    assert_one_sentence(caught.value, tmp_path / "instances.json")


def assert_one_sentence(error, path):
    message = str(error)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert not re.search(r"\. [A-Z]|\n", message)


def test_missing_paths(tmp_path, images):
    with pytest.raises(DatasetError, match=r"nope\.json does not exist"):
        CocoDataset(tmp_path / "nope.json", images)
    (tmp_path / "a.json").write_text(json.dumps(make_content()))
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        CocoDataset(tmp_path / "a.json", tmp_path / "nowhere")


def test_many_faults_are_one_sentence(load):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = None
    with pytest.raises(DatasetError, match=r"annotation id 1 .*\(2 more entries have faults\)"):
        load(content)


def test_byte_order_mark_is_no_fault(tmp_path, images):
    (tmp_path / "a.json").write_text(json.dumps(make_content()), encoding="utf-8-sig")
    assert len(CocoDataset(tmp_path / "a.json", images)) == 3


@pytest.mark.parametrize(
    ("size", "hint"), [((WIDTH + 1, HEIGHT), ""), ((HEIGHT, WIDTH), "sides are swapped")]
)
def test_another_image_size_than_stated_names_both(load, images, size, hint):
    Image.new("RGB", size).save(images / "a.png")
    dataset = load(make_content())
    pattern = rf"a\.png is {size[0]} x {size[1]} pixels.*width of 40 and a height of 30.*{hint}"
    with pytest.raises(DatasetError, match=pattern):
        dataset[0]


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


BAD_SEGMENTATIONS = {
    "missing": (None, "has no segmentation"),
    "empty": ([], "has no segmentation"),
    "odd polygon": ([[1, 2, 3]], "at least three points"),
    "box as polygon": ([[1, 2, 3, 4]], "at least three points"),
    "nan polygon": ([[1, 2, float("nan"), 4, 5, 6]], "at least three points"),
    "text polygon": ([["1", 2, 3, 4, 5, 6]], "at least three points"),
    "flat polygon": ([1, 2, 3, 4, 5, 6], "at least three points"),
    "huge polygon": ([[1, 2, 1e12, 4, 5, 6]], "at least three points"),
    "text": ("mask.png", "neither polygons nor RLE"),
    "other size": ({"size": [10, 10], "counts": [50, 10, 40]}, r"size \[10, 10\].*\[30, 40\]"),
    "short": ({"size": [HEIGHT, WIDTH], "counts": [50, 10]}, "RLE of 60 pixels.*1200"),
    "negative run": ({"size": [HEIGHT, WIDTH], "counts": [1300, -100]}, "not whole numbers"),
    "text run": ({"size": [HEIGHT, WIDTH], "counts": ["1200"]}, "not whole numbers"),
    "infinite run": ({"size": [HEIGHT, WIDTH], "counts": [float("inf")]}, "not whole numbers"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "neither a list nor COCO's text"),
    "not ascii": ({"size": [HEIGHT, WIDTH], "counts": "é"}, "neither a list nor COCO's text"),
    "garbled": ({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, "damaged compressed RLE"),
    "cut off": ({"size": [HEIGHT, WIDTH], "counts": "oooo"}, "damaged compressed RLE"),
}


@pytest.mark.parametrize("fault", BAD_SEGMENTATIONS)
def test_bad_segmentations_stop_masks_but_not_boxes(load, fault):
    segmentation, expected = BAD_SEGMENTATIONS[fault]
    content = make_content()
    content["annotations"][1]["segmentation"] = segmentation
    instead = r"train boxes alone \(other --detector, with_masks=False\)"
    message = rf"annotation id 2 .*{expected}.*{instead}\.$"
    with pytest.raises(DatasetError, match=message):
        load(content, with_masks=True)
    dataset = load(content)
    assert len(dataset[0].boxes) == 2
    findings = [str(finding) for finding in dataset.summary().findings]
    # What takes decoding to find, or is simply not there, is not looked for without masks.
    if fault not in ("missing", "empty", "garbled", "cut off"):
        assert len(findings) == 1
        assert "not needed for boxes" in findings[0]


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
