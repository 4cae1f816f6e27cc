"""Names of classes and files as people have them: accents, brackets, `~`, names twice."""

import json
import unicodedata

import numpy as np
import pytest
from rich.console import Console

from keras_densepred import data
from keras_densepred.data.readers.listing import read_class_names
from tests.data.class_pictures import write_split
from tests.data.masks import write_image, write_list, write_mask, write_voc

pytestmark = pytest.mark.backend_free

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
FORMS = pytest.mark.parametrize(
    "on_disk, in_list", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)]
)


def coco(root, file_name="a.png", written=None, names=("cat", "dog")):
    write_image(root / "images" / (written or file_name), (20, 30))
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": 30, "height": 20}],
        "categories": [{"id": 5 + k, "name": name} for k, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 2, 9, 9]}],
    }
    (root / "labels.json").write_text(json.dumps(content))
    return data.CocoDataset(root / "labels.json", root / "images")


@FORMS
def test_coco_finds_files_in_the_other_unicode_form(tmp_path, on_disk, in_list):
    split = coco(tmp_path, f"{in_list}/{in_list}.png", f"{on_disk}/{on_disk}.png")
    assert split[0].image.shape == (20, 30, 3)


def test_coco_finds_files_in_folders_divided_by_backslashes(tmp_path):
    assert coco(tmp_path, "sub\\a.png", "sub/a.png")[0].file_name == "sub/a.png"


@FORMS
def test_masks_and_images_in_two_unicode_forms_belong_together(tmp_path, on_disk, in_list):
    write_image(tmp_path / "images" / f"{on_disk}.jpg")
    write_mask(tmp_path / "masks" / f"{in_list}.png")
    assert len(data.MaskFolder(tmp_path / "images", tmp_path / "masks")) == 1


@FORMS
@pytest.mark.parametrize("line", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png"])
def test_voc_finds_files_in_the_other_unicode_form(tmp_path, on_disk, in_list, line):
    write_voc(tmp_path, {"train": [on_disk]})
    write_list(tmp_path, "train", line.format(in_list) + "\n")
    assert data.VocSegmentation(tmp_path)[0].image.shape == (2, 3, 3)


@FORMS
def test_class_folders_in_two_unicode_forms_are_one_class(tmp_path, on_disk, in_list):
    train = data.ImageFolder(write_split(tmp_path / "train", ["ape", on_disk]))
    val = data.ImageFolder(write_split(tmp_path / "val", ["ape", in_list]), train.class_names)
    data.require_same_class_names({"train": train, "val": val})
    assert train.class_names == ("ape", COMPOSED)
    assert train[5].image.shape == val[5].image.shape == (24, 32, 3)


def test_two_folders_of_one_class_are_refused(tmp_path):
    write_split(tmp_path, [COMPOSED, DECOMPOSED])
    with pytest.raises(data.DatasetError, match="two Unicode forms"):
        data.ImageFolder(tmp_path)


def test_categories_of_one_name_stay_apart(tmp_path):
    split = coco(tmp_path, names=("cat", "dog", "cat", DECOMPOSED))
    assert split.class_names == ("cat (id 5)", "dog", "cat (id 7)", COMPOSED)
    assert split.summary().boxes_per_class["cat (id 5)"] == 1
    (finding,) = split.summary().findings
    assert finding.count == 2 and "share their name" in finding.what
    with pytest.raises(data.DatasetError, match=r"calls both label 0 and label 1 'cat \(id 5\)'"):
        coco(tmp_path, names=("cat", "cat (id 5)", "cat"))


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\ud800"])
def test_names_that_cannot_be_shown(tmp_path, name):
    with pytest.raises(data.DatasetError, match="not a readable text") as caught:
        coco(tmp_path, names=(name, "dog"))
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("classes.txt", "bg\nred\n\nblue\n", "line 3 is empty"),
        ("classes.txt", "\nred\nblue\n", "line 1 is empty"),
        ("classes.txt", "bg\nred\nred\n", "calls both label 1 and label 2 'red'"),
        ("classes.txt", f"{COMPOSED}\n{DECOMPOSED}\n", "calls both label 0 and label 1"),
        ("classes.json", '["bg", "red", "red"]', "calls both label 1 and label 2 'red'"),
        ("classes.json", '{"0": "a", "1": "a"}', "calls both label 0 and label 1 'a'"),
        ("classes.json", '["bg", " "]', "does not name the classes"),
        ("classes.json", '[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]', "entry 0 has id 1"),
    ],
)
def test_lists_of_classes_that_would_shift_or_merge(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(data.DatasetError) as caught:
        read_class_names(tmp_path / file)
    assert said in str(caught.value) and file in str(caught.value)


def test_lists_of_classes_that_are_good(tmp_path):
    (tmp_path / "classes.txt").write_text(f"bg\n[x] red\n{DECOMPOSED}\n\n \n")
    assert read_class_names(tmp_path / "classes.txt") == ("bg", "[x] red", COMPOSED)
    (tmp_path / "classes.json").write_text('[{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]')
    assert read_class_names(tmp_path / "classes.json") == ("a", "b")


def test_names_given_twice(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png")
    with pytest.raises(data.DatasetError, match="calls both label 0 and label 2 'a'"):
        data.MaskFolder(tmp_path / "images", tmp_path / "masks", ("a", "b", "a"))


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    coco(tmp_path)
    assert len(data.CocoDataset("~/labels.json", "~/images")) == 1
    write_mask(tmp_path / "masks" / "a.png")
    assert len(data.MaskFolder("~/images", "~/masks")) == 1
    write_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    assert len(data.VocSegmentation("~/voc")) == 1
    assert set(data.find_segmentation_splits("~/voc")) == {"train", "val"}
    for split in ("train", "val"):
        write_split(tmp_path / "folders" / split)
    assert data.find_class_folders("~/folders")["val"] == tmp_path / "folders" / "val"
    assert len(data.ImageFolder("~/folders/val")) == 6
    with pytest.raises(data.DatasetError, match=str(tmp_path)):
        data.find_coco_splits("~/folders")


@pytest.mark.parametrize("name", ["[x]", "[/x]", "[red]a[/]", "\\[b]"])
def test_brackets_in_names_are_shown_as_they_are(tmp_path, name):
    summaries = [coco(tmp_path, names=(name, "dog")).summary()]
    summaries.append(data.ClassSummary(name, {name: 2, "b": 1}))
    summaries.append(
        data.SegmentationSummary(name, 1, {name: 3}, {name: 1}, 0, (1, 1, 1), (3, 3, 3))
    )
    for summary in summaries:
        assert name in str(summary)
        console = Console(width=88)
        with console.capture() as shown:
            console.print(summary)  # a user's console, which has markup
        assert name in shown.get()


def test_arrays_of_names_are_taken(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", np.zeros((2, 3), np.uint8))
    names = np.array(["a", "b"])
    assert data.MaskFolder(tmp_path / "images", tmp_path / "masks", names).class_names == ("a", "b")
