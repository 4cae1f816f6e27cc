"""ADE20K's, Cityscapes' and COCO-Stuff's trees, and masks whose first class is 1."""

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.class_lists import (
    ADE20K_CLASS_NAMES,
    CITYSCAPES_CLASS_NAMES,
    COCO_STUFF_CLASS_NAMES,
    COCO_STUFF_IDS,
)
from keras_densepred.data.readers.mask_folders import is_segmentation_tree
from tests.data.masks import COLOURS, write_image, write_mask

pytestmark = pytest.mark.backend_free

GRAY = np.array([[0, 1, 2], [255, 150, 1]], np.uint8)


def gray(path, labels):
    write_mask(path, np.array(labels, np.uint8), palette=False)


def write_ade20k(root, labels=GRAY):
    for split, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{short}_{number:08d}"
            write_image(root / "images" / split / f"{name}.jpg")
            gray(root / "annotations" / split / f"{name}.png", labels)
    return root


def test_ade20k_is_found_by_itself(tmp_path):
    root = write_ade20k(tmp_path / "ADEChallengeData2016")
    assert is_segmentation_tree(root) and is_segmentation_tree(tmp_path)
    for place in (root, tmp_path):
        splits = data.find_segmentation_splits(place)
        assert isinstance(splits["train"], data.Ade20kSegmentation)
        assert [len(splits[name]) for name in ("train", "val")] == [2, 2]
        assert splits["val"].class_names == ADE20K_CLASS_NAMES
    record = splits["train"][1]
    assert record.semantic.tolist() == [[255, 0, 1], [255, 149, 0]]
    assert splits["train"].mask(0).tolist() == record.semantic.tolist()
    counts = splits["train"].summary().pixels_per_class
    assert counts["wall"] == 4 and counts["flag"] == 2 and sum(counts.values()) == 8
    # The habit is the tree's own: saying so changes nothing.
    again = data.find_segmentation_splits(tmp_path, reduce_zero_label=True)
    assert again["train"].mask(0).tolist() == record.semantic.tolist()


def test_the_names_are_those_of_the_data_sets():
    assert len(set(ADE20K_CLASS_NAMES)) == 150 and ADE20K_CLASS_NAMES[89] == "television receiver"
    assert len(CITYSCAPES_CLASS_NAMES) == 19
    assert len(set(COCO_STUFF_CLASS_NAMES)) == len(COCO_STUFF_IDS) == 171
    named = dict(zip(COCO_STUFF_IDS, COCO_STUFF_CLASS_NAMES, strict=True))
    assert [named[i] for i in (1, 13, 31, 67, 70, 90, 92, 182)] == [
        *("person", "stop sign", "handbag", "dining table", "toilet", "toothbrush"),
        *("banner", "wood"),
    ]


def test_label_151_of_ade20k_is_named(tmp_path):
    write_ade20k(tmp_path, [[0, 1, 151], [3, 151, 1]])
    split = data.Ade20kSegmentation(tmp_path, "val")
    with pytest.raises(data.DatasetError) as error:
        split[0]
    text = str(error.value)
    assert "ADE_val_00000001.png has label 151 at row 0, column 2 (2 pixels" in text
    assert "150 classes, labels 1 to 150, and 0 or 255 for none" in text


def test_a_mask_one_pixel_off_its_image_names_both_sizes(tmp_path):
    write_ade20k(tmp_path, np.ones((3, 3)))
    with pytest.raises(data.DatasetError, match=r"\.png is 3 x 3 pixels and its image .* 3 x 2:"):
        data.Ade20kSegmentation(tmp_path)[0]


@pytest.mark.parametrize("marker", ["images/ADE/training/x.jpg", "index_ade20k.pkl"])
def test_the_full_ade20k_is_refused(tmp_path, marker):
    write_image((tmp_path / "ADE20K_2021_17_01" / marker).with_suffix(".png"))
    (tmp_path / "ADE20K_2021_17_01" / "index_ade20k.pkl").touch()
    for place in (tmp_path, tmp_path / "ADE20K_2021_17_01"):
        with pytest.raises(data.DatasetError, match=r"is the full ADE20K.*ADEChallengeData2016"):
            data.find_segmentation_splits(place)


def test_tfds_scene_parsing_is_refused_before_anything_is_opened():
    for name in ("scene_parse150", "scene_parse150/default:1.0.0"):
        with pytest.raises(data.DatasetError, match="instances of 100 things"):
            data.find_tfds_segmentation(name)
        with pytest.raises(data.DatasetError, match="ADEChallengeData2016"):
            data.TfdsSegmentation(name, "train")


def write_cityscapes(root, kind, labels):
    for split in ("train", "val"):
        for city in ("aachen", "ulm"):
            stem = f"{city}_000001_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            gray(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", labels)


def test_cityscapes_train_ids_and_ids_mean_the_same(tmp_path):
    write_cityscapes(tmp_path / "a", "labelTrainIds", [[0, 18, 255], [13, 255, 0]])
    write_cityscapes(tmp_path / "b", "labelIds", [[7, 33, 0], [26, 10, 7]])
    masks = []
    for root in (tmp_path / "a", tmp_path / "b"):
        splits = data.find_segmentation_splits(root)
        assert isinstance(splits["val"], data.CityscapesSegmentation) and len(splits["val"]) == 2
        assert splits["train"].class_colours[0] == (128, 64, 128)
        masks.append(splits["train"][1].semantic.tolist())
    assert masks[0] == masks[1]
    write_cityscapes(tmp_path / "b", "labelIds", [[7, 34, 0], [26, 10, 7]])
    with pytest.raises(data.DatasetError, match="has the value 34 at row 0, column 1"):
        data.CityscapesSegmentation(tmp_path / "b")[0]
    with pytest.raises(data.DatasetError, match="leave --reduce-zero-label out"):
        data.find_segmentation_splits(tmp_path / "a", reduce_zero_label=True)


def test_cityscapes_without_a_mask_names_it(tmp_path):
    write_cityscapes(tmp_path, "labelIds", GRAY)
    (tmp_path / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(data.DatasetError, match=r"ulm_000001_000019_gtFine_labelIds\.png"):
        data.find_segmentation_splits(tmp_path)
    with pytest.raises(data.DatasetError, match="'test' is not the name of a split"):
        data.CityscapesSegmentation(tmp_path, "test")


@pytest.mark.parametrize(
    "images, masks", [("images/{}", "annotations/{}"), ("{}", "stuffthingmaps/{}")]
)
def test_coco_stuff(tmp_path, images, masks):
    for split in ("train2017", "val2017"):
        write_image(tmp_path / images.format(split) / "000000000139.jpg")
        gray(tmp_path / masks.format(split) / "000000000139.png", [[0, 12, 181], [255, 91, 0]])
    splits = data.find_segmentation_splits(tmp_path)
    assert isinstance(splits["train"], data.CocoStuffSegmentation)
    assert splits["val"][0].semantic.tolist() == [[0, 11, 170], [255, 80, 0]]
    gray(tmp_path / masks.format("val2017") / "000000000139.png", [[0, 11, 0], [0, 0, 0]])
    with pytest.raises(data.DatasetError, match="has the value 11 at row 0, column 1"):
        splits["val"][0]


@pytest.mark.parametrize("names", [None, ("cat", "dog")])
def test_folders_whose_first_class_is_1(tmp_path, names):
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "a.png")
        gray(tmp_path / "masks" / split / "a.png", [[0, 1, 2], [255, 2, 1]])
    if names:
        (tmp_path / "classes.txt").write_text("\n".join(names))
    split = data.find_segmentation_splits(tmp_path, reduce_zero_label=True)["train"]
    assert split.class_names == (names or ("class_1", "class_2"))
    assert split[0].semantic.tolist() == [[255, 0, 1], [255, 1, 0]]
    assert "first_label=1" in repr(split)


def test_palettes_that_differ_are_refused(tmp_path):
    other = list(COLOURS)
    other[3:6] = 9, 9, 200
    for name, palette in (("a", COLOURS), ("b", other), ("c", COLOURS)):
        write_image(tmp_path / "images" / f"{name}.png")
        mask = Image.fromarray(np.array([[0, 1, 2], [2, 2, 1]], np.uint8))
        mask.putpalette(palette)
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / f"{name}.png")
    split = data.MaskFolder(tmp_path / "images", tmp_path / "masks", ("x", "y", "z"))
    assert split.class_colours == ((0, 255, 7), (1, 254, 7), (2, 253, 7))
    split[0], split[2]
    with pytest.raises(data.DatasetError) as error:
        split[1]
    text = str(error.value)
    assert (
        "b.png shows label 1 in the colour (9, 9, 200)" in text and "a.png in (1, 254, 7)" in text
    )
    # A colour that no pixel has may be another.
    mask = Image.fromarray(np.array([[0, 2, 2], [2, 2, 0]], np.uint8))
    mask.putpalette(other)
    mask.save(tmp_path / "masks" / "b.png")
    assert split[1].semantic.max() == 2


def test_gray_masks_and_ramps_have_no_colours(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    gray(tmp_path / "masks" / "a.png", [[0, 1, 0], [0, 0, 0]])
    split = data.MaskFolder(tmp_path / "images", tmp_path / "masks", ("x", "y"))
    assert split.class_colours is None
    ramp = Image.fromarray(np.array([[0, 1, 0], [0, 0, 0]], np.uint8))
    ramp.putpalette([value for number in range(256) for value in (number,) * 3])
    ramp.save(tmp_path / "masks" / "a.png")
    split = data.MaskFolder(tmp_path / "images", tmp_path / "masks", ("x", "y"))
    assert split.class_colours is None and split[0].semantic[0, 1] == 1
