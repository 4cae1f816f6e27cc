"""Plain folders of images and masks, in the layouts that people have."""

import numpy as np
import pytest

from keras_densepred import data
from tests.data.masks import LABELS, write_image, write_mask

pytestmark = pytest.mark.backend_free


def write_pair(images, masks, name, labels=LABELS):
    write_image(images / f"{name}.jpg")
    write_mask(masks / f"{name}.png", labels)


def test_files_belong_together_by_their_names(tmp_path):
    for name in ("b", "a"):
        write_pair(tmp_path / "images", tmp_path / "masks", name)
    write_image(tmp_path / "images" / "c.PNG")
    write_mask(tmp_path / "masks" / "c.bmp")
    (tmp_path / "images" / "readme.txt").write_text("not an image")
    (tmp_path / "images" / ".hidden.jpg").write_text("not an image")
    dataset = data.MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert [dataset[i].file_name for i in range(3)] == ["a.jpg", "b.jpg", "c.PNG"]
    np.testing.assert_array_equal(dataset[2].semantic, LABELS)
    assert dataset.class_names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    "pattern", ["images/{0} masks/{0}", "{0}/images {0}/masks"], ids=["split below", "split above"]
)
@pytest.mark.parametrize("val", ["val", "validation"])
def test_splits_in_folders(tmp_path, pattern, val):
    labels = {"train": LABELS, val: np.full((2, 3), 4, np.uint8)}
    for split, mask in labels.items():
        images, masks = (tmp_path / part for part in pattern.format(split).split())
        write_pair(images, masks, f"a_{split}", mask)
    splits = data.find_segmentation_splits(tmp_path)
    assert list(splits) == ["train", "val"]
    assert splits["val"][0].file_name == f"a_{val}.jpg"
    # The names reach up to the highest label of both splits.
    assert all(split.num_classes == 5 for split in splits.values())
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert data.find_segmentation_splits(tmp_path)["train"].num_classes == 6
    images, masks = (tmp_path / part for part in pattern.format("train").split())
    assert data.MaskFolder(images, masks).num_classes == 6, "named above the folders"


def test_a_folder_without_splits_is_split(tmp_path):
    for number in range(23):
        write_pair(tmp_path / "images", tmp_path / "masks", f"{number:02d}")
    splits = data.find_segmentation_splits(tmp_path)
    files = {
        name: [split[i].file_name for i in range(len(split))] for name, split in splits.items()
    }
    assert files["val"] == ["05.jpg", "15.jpg"]
    assert len(files["train"]) == 21 and not set(files["train"]) & set(files["val"])
    assert not splits["train"].summary().findings


def test_two_images_are_enough_and_one_is_not(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    with pytest.raises(data.DatasetError, match="has one image"):
        data.find_segmentation_splits(tmp_path)
    write_pair(tmp_path / "images", tmp_path / "masks", "b")
    splits = data.find_segmentation_splits(tmp_path)
    assert [len(splits[name]) for name in ("train", "val")] == [1, 1]


def test_a_mask_without_image_is_told_of(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    write_mask(tmp_path / "masks" / "z.png")
    dataset = data.MaskFolder(tmp_path / "images", tmp_path / "masks")
    (finding,) = dataset.summary().findings
    assert finding.count == 1 and finding.example.endswith("z.png")


def test_what_is_missing_is_named(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    with pytest.raises(data.DatasetError, match="images is not a folder"):
        data.MaskFolder(images, masks)
    write_image(images / "a.jpg")
    masks.mkdir()
    with pytest.raises(data.DatasetError, match="masks has no masks"):
        data.MaskFolder(images, masks)
    write_mask(masks / "b.png")
    with pytest.raises(data.DatasetError, match=r"names a\.png, and .*masks has no such file"):
        data.MaskFolder(images, masks)
    write_mask(masks / "a.png")
    write_image(images / "a.png")
    with pytest.raises(data.DatasetError, match=r"has both a\.jpg and a\.png"):
        data.MaskFolder(images, masks)


def test_masks_without_any_label_give_no_classes(tmp_path):
    empty = np.full((2, 3), 255, np.uint8)
    write_pair(tmp_path / "images", tmp_path / "masks", "a", empty)
    with pytest.raises(data.DatasetError, match="nothing to learn"):
        data.MaskFolder(tmp_path / "images", tmp_path / "masks")


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    with pytest.raises(data.DatasetError, match="gone is not a folder"):
        data.find_segmentation_splits(tmp_path / "gone")
    with pytest.raises(data.DatasetError, match="images/train with masks/train"):
        data.find_segmentation_splits(tmp_path)
    write_pair(tmp_path / "images" / "train", tmp_path / "masks" / "train", "a")
    with pytest.raises(data.DatasetError, match="known layout"):  # no validation split
        data.find_segmentation_splits(tmp_path)
