"""Data whose files are all in order, and that teach nothing: said before anything is built."""

import json

import numpy as np
import pytest

from keras_densepred import data
from tests.data.class_pictures import write_split
from tests.data.masks import write_image, write_mask

pytestmark = pytest.mark.backend_free

WIDTH, HEIGHT = 60, 40


def coco(root, boxes, **fields):
    """One object in each image."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(len(boxes))
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": list(map(float, box)), **fields}
        for i, box in enumerate(boxes)
    ]
    for i in range(len(boxes)):
        write_image(root / "images" / f"{i}.png", (HEIGHT, WIDTH))
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}]
    (root / "labels.json").write_text(json.dumps(content))
    return data.CocoDataset(root / "labels.json", root / "images")


def sizes(count=12):
    """Boxes as they should be, `[x, y, width, height]`."""
    rng = np.random.default_rng(0)
    side = rng.integers(8, 20, (count, 2))
    return np.concatenate([rng.integers(0, [WIDTH - 20, HEIGHT - 20], (count, 2)), side], 1)


def corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def masks(root, *labels):
    for number, values in enumerate(labels):
        write_image(root / "images" / f"{number}.png")
        write_mask(root / "masks" / f"{number}.png", np.resize(values, (2, 3)).astype(np.uint8))
    return data.MaskFolder(root / "images", root / "masks").summary()


def test_objects_that_are_all_crowd(tmp_path):
    summary = coco(tmp_path, sizes(), iscrowd=1).summary()
    with pytest.raises(data.DatasetError, match=r"all 12 objects are crowd regions \(iscrowd 1\)"):
        data.require_trainable_data(summary)
    good = coco(tmp_path / "good", sizes()).summary()
    with pytest.raises(data.DatasetError, match="iscrowd 0"):
        data.require_trainable_data(good, summary)
    assert data.require_trainable_data(good, good) == ()


def test_boxes_that_are_corners(tmp_path):
    with pytest.raises(data.DatasetError) as caught:
        coco(tmp_path, corners(sizes()))
    assert "as corners [x1, y1, x2, y2]: subtract x1 from x2" in str(caught.value)


def test_few_boxes_that_may_be_corners(tmp_path):
    (finding,) = (
        f for f in coco(tmp_path, corners(sizes(4))).summary().findings if "corners" in f.what
    )
    assert finding.count > 0 and finding.example.startswith("annotation id")


def test_boxes_at_the_edge_are_no_corners(tmp_path):
    boxes = sizes()
    boxes[0] = [50, 30, 30, 30]  # reaches outside the image
    findings = coco(tmp_path, boxes).summary().findings
    assert [finding.what for finding in findings] == [
        "object clipped: the box reached outside the image"
    ]


def test_boxes_that_are_shares_of_the_image(tmp_path):
    shares = sizes() / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    with pytest.raises(data.DatasetError, match="look like shares of the image: multiply them by"):
        coco(tmp_path, shares)
    mixed = sizes()
    mixed[:2] = [0, 0, 1, 1]
    (finding,) = coco(tmp_path / "mixed", mixed).summary().findings
    assert finding.count == 2 and "within one pixel" in finding.what


@pytest.mark.parametrize("area", [-42.0, 0, 1e12, 0.01])
def test_areas_that_cannot_be(tmp_path, area):
    """COCO's evaluation leaves out objects with such areas: AP was -1 for everything."""
    boxes = sizes()
    split = coco(tmp_path, boxes, area=area)
    (finding,) = split.summary().findings
    assert finding.count == 12 and "area that cannot be" in finding.what
    areas = [annotation["area"] for annotation in split.ground_truth()["annotations"]]
    np.testing.assert_allclose(areas, boxes[:, 2] * boxes[:, 3])


def test_one_small_area_may_be(tmp_path):
    boxes = sizes()
    split = coco(tmp_path, boxes)
    content = json.loads((tmp_path / "labels.json").read_text())
    content["annotations"][3]["area"] = 0.5
    (tmp_path / "labels.json").write_text(json.dumps(content))
    split = data.CocoDataset(tmp_path / "labels.json", tmp_path / "images")
    assert split.ground_truth()["annotations"][3]["area"] == 0.5 and not split.summary().findings


def test_polygons_that_are_shares_of_the_image(tmp_path):
    shares = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]]
    coco(tmp_path, sizes(), segmentation=shares)
    paths = (tmp_path / "labels.json", tmp_path / "images")
    with pytest.raises(data.DatasetError, match=r"no mask has a pixel .* not shares of the image"):
        data.CocoDataset(*paths, with_masks=True)
    content = json.loads(paths[0].read_text())
    content["annotations"][3]["segmentation"] = [[5, 5, 20, 5, 20, 20]]
    paths[0].write_text(json.dumps(content))
    findings = data.CocoDataset(*paths, with_masks=True).summary().findings
    assert [finding.count for finding in findings if "have no pixel" in finding.what] == [11]


def test_masks_of_one_label(tmp_path):
    with pytest.raises(data.DatasetError, match=r"hold 0 and 255 alone, and 255 means no class"):
        data.require_trainable_data(masks(tmp_path / "a", [0, 255]))
    with pytest.raises(
        data.DatasetError, match=r"every pixel of the masks has label 1 \(class_1\)"
    ):
        data.require_trainable_data(masks(tmp_path / "b", [1]))


def test_masks_of_gray_levels(tmp_path):
    (finding,) = data.require_trainable_data(masks(tmp_path, [0, 128, 255]))
    assert finding.count == 127 and finding.example == "class_1"
    assert "the masks hold 0, 128: if these are gray levels" in finding.what
    assert not data.require_trainable_data(masks(tmp_path / "good", [0, 1, 2, 255]))


def test_validation_masks(tmp_path):
    train = masks(tmp_path / "train", [0, 1, 255])
    (finding,) = data.require_trainable_data(train, masks(tmp_path / "val", [1]))
    assert "alone occurs" in finding.what and finding.example == "class_1"
    (finding,) = data.require_trainable_data(train, masks(tmp_path / "more", [0, 1, 2]))
    assert "never trained" in finding.what and finding.example == "class_2"
    empty = data.SegmentationSummary("val", 1, {"a": 0}, {"a": 0}, 9, (3, 3, 3), (3, 3, 3))
    with pytest.raises(data.DatasetError, match="val has no labelled pixel"):
        data.require_trainable_data(train, empty)


def test_one_class_folder(tmp_path):
    one = data.ImageFolder(write_split(tmp_path / "one", ["cat"])).summary()
    with pytest.raises(data.DatasetError, match=r"all images are of one class \(cat\)"):
        data.require_trainable_data(one)
    two = data.ImageFolder(write_split(tmp_path / "two")).summary()
    assert data.require_trainable_data(two, two) == ()
    with pytest.raises(data.DatasetError, match="val has no images"):
        data.require_trainable_data(two, data.ClassSummary("val", {"cat": 0, "dog": 0}))


def test_built_in_shapes_can_be_trained_on():
    for split in (
        data.ShapesDataset(8, 48),
        data.ShapesSegmentation(4, 48),
        data.ShapesClassification(12, 32),
    ):
        assert data.require_trainable_data(split.summary(), split.summary()) == ()
