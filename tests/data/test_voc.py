"""VOC's layout with its lists, and SBD's annotations in both of the forms they come in."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.readers.voc import find_voc_root
from tests.data.masks import LABELS, write_image, write_list, write_mask, write_voc

pytestmark = pytest.mark.backend_free


def test_a_split_in_the_order_of_its_list(tmp_path):
    write_voc(tmp_path, {"train": ["b", "a"], "val": ["c"]})
    dataset = data.VocSegmentation(tmp_path, "train")
    assert [record.file_name for record in (dataset[i] for i in range(2))] == ["b.jpg", "a.jpg"]
    np.testing.assert_array_equal(dataset[1].semantic, LABELS)
    assert dataset.class_names == data.VOC_CLASS_NAMES and dataset.num_classes == 21
    assert len(data.VocSegmentation(tmp_path, "val")) == 1
    assert repr(dataset) != repr(data.VocSegmentation(tmp_path, "val"))


def test_the_shapes_as_a_voc_tree_come_back(tmp_path):
    for split in ("train", "val"):
        data.ShapesDataset(3, 64, split=split).write_voc(tmp_path)
    splits = data.find_segmentation_splits(tmp_path)
    shapes = data.ShapesSegmentation(3, 64)
    assert splits["train"].class_names == shapes.class_names
    for index in range(3):
        read, drawn = splits["train"][index], shapes[index]
        known = read.semantic != data.IGNORE_LABEL
        np.testing.assert_array_equal(read.semantic[known], drawn.semantic[known])
        assert 0.5 < known.mean() < 1
        assert np.abs(read.image.astype(int) - drawn.image).mean() < 12  # JPEG


def test_train_aug_takes_its_own_masks(tmp_path):
    write_voc(tmp_path, {"train": ["a"], "val": ["c"]})
    write_voc(tmp_path, {"train_aug": ["a", "b"]}, masks="SegmentationClassAug")
    write_mask(tmp_path / "SegmentationClassAug" / "a.png", np.full((2, 3), 5, np.uint8))
    assert (data.VocSegmentation(tmp_path, "train_aug")[0].semantic == 5).all()
    assert data.VocSegmentation(tmp_path, "train")[0].semantic[0, 1] == 1
    splits = data.find_segmentation_splits(tmp_path)
    assert (len(splits["train"]), len(splits["val"])) == (2, 1)


def test_a_list_of_pairs_of_paths(tmp_path):
    write_voc(tmp_path, {"train": ["a", "b"]}, masks="SegmentationClassAug")
    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
    write_list(tmp_path, "train_aug", line.format("b") + line.format("a"))
    dataset = data.VocSegmentation(tmp_path, "train_aug")
    assert [dataset[i].file_name for i in range(2)] == ["b.jpg", "a.jpg"]


def test_class_names_of_the_tree_or_given(tmp_path):
    write_voc(tmp_path, {"train": ["a"]})
    (tmp_path / "classes.txt").write_text("void\ncat\ndog \n\n")
    assert data.VocSegmentation(tmp_path).class_names == ("void", "cat", "dog")
    assert data.VocSegmentation(tmp_path, class_names="xyz").class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    "text, names",
    [
        ('["a", "b"]', ("a", "b")),
        ('{"1": "b", "0": "a"}', ("a", "b")),
        ('[{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]', ("a", "b")),
        ('{"1": "a", "2": "b"}', None),
        ("[1, 2]", None),
        ("3", None),
        ("[", None),
    ],
)
def test_class_names_in_json(tmp_path, text, names):
    write_voc(tmp_path, {"train": ["a"]})
    (tmp_path / "classes.json").write_text(text)
    if names is None:
        with pytest.raises(data.DatasetError, match=r"classes\.json"):
            data.VocSegmentation(tmp_path)
    else:
        assert data.VocSegmentation(tmp_path).class_names == names


def test_repeated_lines_are_read_once_and_told_of(tmp_path):
    write_voc(tmp_path, {"train": ["a", "b", "a"]})
    dataset = data.VocSegmentation(tmp_path)
    assert len(dataset) == 2
    assert [finding.count for finding in dataset.summary().findings] == [1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("../secret", r"has the line '\.\./secret'"),
        ("sub/a", "without folder"),
        ("C:a", "without folder"),
        ("a 1", "one name of an image"),
        ("gone", r"names gone, and .*JPEGImages has no such file"),
        ("/../x.jpg /y/a.png", "inside of the data set's folder"),
        ("/JPEGImages/a.jpg /SegmentationClass/../../a.png", "inside of the data set's folder"),
        ("/JPEGImages/a.jpg /SegmentationClass/gone.png", r"gone\.png"),
        ("", "is empty"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, message):
    root = tmp_path / "voc"
    write_voc(root, {"train": ["a"]})
    write_image(tmp_path / "secret.jpg")
    write_list(root, "train", line)
    with pytest.raises(data.DatasetError, match=message):
        data.VocSegmentation(root)


def test_what_is_missing_is_named(tmp_path):
    write_voc(tmp_path, {"train": ["a"], "val": ["a"]})
    with pytest.raises(data.DatasetError, match=r"test\.txt does not exist.*\(train, val\)"):
        data.VocSegmentation(tmp_path, "test")
    with pytest.raises(data.DatasetError, match="not the name of a split"):
        data.VocSegmentation(tmp_path, "../train")
    (tmp_path / "SegmentationClass" / "a.png").rename(tmp_path / "SegmentationClass" / "b.png")
    with pytest.raises(data.DatasetError, match=r"names a, and .*SegmentationClass has no such"):
        data.VocSegmentation(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(data.DatasetError, match="is not a text file"):
        data.VocSegmentation(tmp_path)


def test_the_root_is_found_below_the_folder_given(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write_voc(root, {"train": ["a"], "val": ["b"]})
    assert find_voc_root(tmp_path) == root
    assert len(data.find_segmentation_splits(tmp_path)["val"]) == 1


def write_sbd(root, content):
    scipy_io = pytest.importorskip("scipy.io")
    (root / "cls").mkdir(parents=True)
    write_image(root / "img" / "a.jpg")
    (root / "train.txt").write_text("a\n")
    if isinstance(content, bytes):
        (root / "cls" / "a.mat").write_bytes(content)
    else:
        scipy_io.savemat(root / "cls" / "a.mat", content)


def test_sbd_in_its_own_layout(tmp_path):
    labels = np.where(LABELS == 255, 20, LABELS).astype(np.uint8)
    write_sbd(tmp_path / "dataset", {"GTcls": {"Segmentation": labels, "Boundaries": [1]}})
    dataset = data.SbdSegmentation(tmp_path)
    np.testing.assert_array_equal(dataset[0].semantic, labels)
    assert dataset.summary().pixels_per_class["tvmonitor"] == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ({"GTinst": {"Segmentation": LABELS}}, "is not an annotation of SBD"),
        ({"GTcls": {"Boundaries": LABELS}}, "is not an annotation of SBD"),
        ({"GTcls": {"Segmentation": LABELS.astype(float)}}, "must be .* of 8 bits"),
        (b"MATLAB 5.0 MAT-file" + b" " * 200, "is not an annotation of SBD"),
        (b"", "is not an annotation of SBD"),
    ],
)
def test_a_bad_annotation_of_sbd_is_named(tmp_path, content, message):
    write_sbd(tmp_path, content)
    with pytest.raises(data.ImageError, match=message) as caught:
        data.SbdSegmentation(tmp_path)[0]
    assert "a.mat" in str(caught.value)
