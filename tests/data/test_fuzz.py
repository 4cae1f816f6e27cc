"""Valid data sets with random faults: each ends in data or in one sentence, and all is counted."""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    UNREAD_SUFFIXES,
    composed,
)
from tests.data.fuzz_changes import change_tree
from tests.data.fuzz_trees import (
    Tree,
    class_tree,
    coco_tree,
    mask_tree,
    roboflow_tree,
    voc_box_tree,
    voc_tree,
    yolo_polygon_tree,
    yolo_tree,
)

pytestmark = pytest.mark.backend_free

FEW, MANY = 200, 2_000  # data sets a format, in every run of the tests and in the slow ones


def read_all(dataset):
    """Everything that training and evaluation ask of a split; its summary."""
    summary = dataset.summary()
    assert len(repr(dataset)) > 0
    str(summary).encode()  # can be printed
    for index in range(len(dataset)):
        dataset[index]
    if hasattr(dataset, "ground_truth"):
        dataset.ground_truth()
    data.require_trainable_data(summary)
    return summary


def counted(summary, *words):
    """How many things the findings with one of these words count."""
    return sum(f.count for f in summary.findings if any(word in f.what for word in words))


def read_coco(root, with_masks=False):
    summary = read_all(data.CocoDataset(root / "labels.json", root / "images", with_masks))
    content = json.loads((root / "labels.json").read_text("utf-8-sig"))
    assert summary.images == len(content["images"])
    assert summary.boxes + summary.crowd + counted(summary, "dropped") == len(
        content["annotations"]
    )


def open_train(root, with_masks=False):
    files_of_user = data.DetectionFiles(root)
    return data.open_splits(files_of_user, only="train", with_masks=with_masks)["train"]


def below(folder):
    """Names of the files below a folder that are not hidden, relative to it."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]


def stem(name):
    return composed(os.path.splitext(name)[0])


def read_yolo(root, with_masks=False):
    summary = read_all(open_train(root, with_masks))
    images = [n for n in below(root / "images") if n.lower().endswith(IMAGE_SUFFIXES)]
    assert summary.images == len(images)
    stems = {stem(name) for name in images}
    lines = [
        line
        for name in below(root / "labels")
        if name.lower().endswith(".txt") and stem(name) in stems
        for line in (root / "labels" / name).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        if line.strip()
    ]
    assert summary.boxes + counted(summary, "dropped") == len(lines)


def read_voc_boxes(root):
    summary = read_all(open_train(root))
    lists = root / "ImageSets/Main/train.txt"
    files_by_stem = {
        stem(name): root / "Annotations" / name
        for name in below(root / "Annotations")
        if name.lower().endswith(".xml")
    }
    names = list(files_by_stem)
    if lists.is_file():
        names = [
            line.split()[0] for line in lists.read_text("utf-8-sig").splitlines() if line.strip()
        ]
        assert summary.images + counted(summary, "repeat") == len(names)
    objects = sum(
        len(ElementTree.parse(files_by_stem[name]).getroot().findall("object"))
        for name in {composed(name) for name in names}
    )
    assert summary.boxes + summary.crowd + counted(summary, "dropped") == objects


def read_roboflow(root):
    summary = read_all(open_train(root))
    content = json.loads((root / "train" / "_annotations.coco.json").read_text("utf-8-sig"))
    assert summary.images == len(content["images"])
    dropped = counted(summary, "object dropped", "objects dropped")
    assert summary.boxes + summary.crowd + dropped == len(content["annotations"])


def files(folder, suffixes):
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return [name for name in names if os.path.splitext(name)[1].lower() in suffixes]


def read_masks(root):
    summary = read_all(data.MaskFolder(root / "images", root / "masks"))
    unread = files(root / "images", UNREAD_SUFFIXES)
    assert summary.images == len(files(root / "images", IMAGE_SUFFIXES))
    assert counted(summary, "left out") == len(unread)
    unused = len(files(root / "masks", MASK_SUFFIXES)) - summary.images
    assert counted(summary, "no image") == unused


def read_voc(root):
    summary = read_all(data.VocSegmentation(root))
    lines = (root / "ImageSets/Segmentation/train.txt").read_text("utf-8-sig").splitlines()
    lines = [line for line in lines if line.strip()]
    assert summary.images + counted(summary, "repeat") == len(lines)


def read_classes(root, on_bad_image="raise"):
    summary = read_all(data.ImageFolder(root, on_bad_image=on_bad_image))
    listed = [
        entry
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    ]
    assert summary.images + counted(summary, "skipped") == len(listed)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is put to the test.

    Args:
        tree: a valid data set: path -> content.
        read: opens the folder that it was written to, reads everything and counts what is there.
        more_json: a file that is changed more often than others, of formats that are one big file.
    """

    tree: Callable[[], Tree]
    read: Callable[[Path], None]
    more_json: str = ""


FORMATS = {
    "COCO": Format(coco_tree, read_coco, "labels.json"),
    "COCO with masks": Format(coco_tree, lambda root: read_coco(root, True), "labels.json"),
    "Roboflow": Format(roboflow_tree, read_roboflow, "train/_annotations.coco.json"),
    "YOLO": Format(yolo_tree, read_yolo),
    "YOLO with masks": Format(yolo_polygon_tree, lambda root: read_yolo(root, True)),
    "VOC XML": Format(voc_box_tree, read_voc_boxes),
    "mask folders": Format(mask_tree, read_masks),
    "VOC": Format(voc_tree, read_voc),
    "class folders": Format(class_tree, read_classes),
    "class folders, skipping": Format(class_tree, lambda root: read_classes(root, "skip")),
}


def write_tree(root, tree):
    for name, content in tree.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file of the tree has taken the place


def fuzz(name, root, count):
    form = FORMATS[name]
    original = form.tree()
    read = 0
    for number in range(count):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        tree = dict(original)
        done = []
        for _ in range(int(rng.integers(1, 4))):
            if form.more_json and rng.integers(2) and form.more_json in tree:
                one = {form.more_json: tree[form.more_json]}
                done.append(change_tree(rng, one))
                tree = {k: v for k, v in tree.items() if k != form.more_json} | one
            elif tree:
                done.append(change_tree(rng, tree))
        folder = root / f"{number:04d}"
        folder.mkdir()
        write_tree(folder, tree)
        try:
            form.read(folder)
            read += 1
        except (data.DatasetError, data.ImageError) as error:
            message = str(error)
            case = f"{name}, number {number}: {done}: {message!a}"
            assert "\n" not in message and message.endswith("."), case
            assert str(folder) in message, f"names no file: {case}"
            message.encode()  # can be printed
        except Exception as error:
            raise AssertionError(f"{name}, number {number}: {done}") from error
    assert count * 0.05 < read < count * 0.95, "the changes are too many or too few to tell"


@pytest.mark.parametrize("name", FORMATS)
def test_the_unchanged_data_are_read(name, tmp_path):
    write_tree(tmp_path, FORMATS[name].tree())
    FORMATS[name].read(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_few(name, tmp_path):
    fuzz(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many(name, tmp_path):
    fuzz(name, tmp_path, MANY)


def test_names_in_both_unicode_forms_are_one():
    assert composed("cafe\u0301") == composed("caf\u00e9") == "caf\u00e9"
