"""Of a faulty COCO file one sentence says what is wrong with which entry."""

import json
import re

import pytest
from PIL import Image

from keras_densepred.data import CocoDataset, DatasetError
from tests.data.coco_files import HEIGHT, WIDTH, loader, make_content, write_pictures

pytestmark = pytest.mark.backend_free


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "images")


@pytest.fixture
def load(tmp_path, images):
    return loader(tmp_path / "instances.json", images)


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
    instead = r"train boxes alone \(by coco_dense, --detector faster, or with_masks=False .*\)"
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
