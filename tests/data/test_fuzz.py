"""Valid data sets with random faults: each ends in data or in one sentence, and all is counted."""

import dataclasses
import io
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    UNREAD_SUFFIXES,
    composed,
)

pytestmark = pytest.mark.backend_free

HEIGHT, WIDTH = 12, 16
FEW, MANY = 200, 2_000  # data sets a format, in every run of the tests and in the slow ones

Tree = dict[str, bytes]


def picture(number, suffix=".png"):
    pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return encoded(pixels, suffix)


def mask(number):
    labels = np.random.default_rng(number).choice([0, 1, 2, 255], (HEIGHT, WIDTH))
    return encoded(labels.astype(np.uint8), ".png")


def encoded(pixels, suffix):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={".png": "PNG", ".jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def coco_tree() -> Tree:
    square = [2, 2, 9, 2, 9, 8, 2, 8]
    segmentations = [[square], {"size": [HEIGHT, WIDTH], "counts": [30, 12, HEIGHT * WIDTH - 42]}]
    content = {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in enumerate(("a.png", "café.jpg", "sub/c.png"), start=1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1 + number % 3,
                "category_id": (3, 9)[number % 2],
                "bbox": [number % 5, 2, 7, 6],
                "area": 42,
                "iscrowd": int(number == 4),
                "segmentation": segmentations[number % 2],
            }
            for number in range(6)
        ],
    }
    return {
        "labels.json": json.dumps(content).encode(),
        "images/a.png": picture(0),
        "images/café.jpg": picture(1, ".jpg"),
        "images/sub/c.png": picture(2),
    }


def roboflow_tree() -> Tree:
    tree = coco_tree()
    content = json.loads(tree["labels.json"])
    parent = {"id": 0, "name": "pets", "supercategory": "none"}
    content["categories"] = [
        parent,
        *(c | {"supercategory": "pets"} for c in content["categories"]),
    ]
    split = {name[7:]: content for name, content in tree.items() if name.startswith("images/")}
    split["_annotations.coco.json"] = json.dumps(content).encode()
    return {f"{name}/{file}": split[file] for name in ("train", "valid") for file in split}


YOLO_LINES = {
    "a": "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9\n\n0 0.5 0.5 1 1\n",
    "café": "1 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n",
    "sub/c": "",
}


def yolo_tree() -> Tree:
    tree = {f"images/{name}.png": picture(k) for k, name in enumerate(YOLO_LINES)}
    tree |= {f"labels/{name}.txt": lines.encode() for name, lines in YOLO_LINES.items()}
    return tree | {"data.yaml": b"names: [cat, no]\nnc: 2\ntrain: images\nval: images\n"}


def yolo_polygon_tree() -> Tree:
    polygons = b"1 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n0 0.1 0.1 0.9 0.1 0.9 0.9\n"
    return {
        name: polygons if name.endswith(".txt") and content else content
        for name, content in yolo_tree().items()
    }


OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>2</xmin><ymin>3</ymin>
<xmax>9</xmax><ymax>8</ymax></bndbox></object>
"""


def voc_box_tree() -> Tree:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    objects = {
        "a": OBJECT.format("cat", 0) + OBJECT.format("grün", 1),
        "café": OBJECT.format("cat", 0),
        "c": "",
    }
    tree = {f"JPEGImages/{name}.jpg": picture(3, ".jpg") for name in objects}
    tree |= {
        f"Annotations/{name}.xml": (
            f"<annotation><filename>{name}.jpg</filename>{size if name != 'a' else ''}{text}"
            "</annotation>"
        ).encode()
        for name, text in objects.items()
    }
    return tree | {"ImageSets/Main/train.txt": "a\ncafé\nc\n".encode()}


def mask_tree() -> Tree:
    tree = {f"images/{name}": picture(3) for name in ("a.png", "café.png", "c.png")}
    tree |= {f"masks/{name}.png": mask(k) for k, name in enumerate(("a", "café", "c"))}
    return tree | {"classes.txt": "none\nred\ngrün\n".encode()}


def voc_tree() -> Tree:
    tree = {f"JPEGImages/{name}.jpg": picture(3, ".jpg") for name in ("a", "café", "c")}
    tree |= {f"SegmentationClass/{name}.png": mask(k) for k, name in enumerate(("a", "café", "c"))}
    return tree | {"ImageSets/Segmentation/train.txt": "a\ncafé\nc\n".encode()}


def class_tree() -> Tree:
    names = ("cat/a.png", "cat/b.jpg", "größe/a.png", "größe/c.png")
    return {name: picture(k, name[-4:]) for k, name in enumerate(names)}


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


# What exporters, editors and damage leave where another value should be.
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 3, 2.5, -0.0, 1e-9, 1e30, 10**400, float("nan"), float("inf")),
    *("", " ", "x", "3", "a.png", "../x.png", "/etc/x", "C:\\x", "sub\\c.png", "a\nb", "\0", "[x]"),
    *("\ud800", "cafe\u0301.jpg", [], {}, [[]], [0, 0, 1, 1], [1, 2, 3], [1, 1, -4, 4], {"a": 1}),
    *([-5, -5, 100, 100], [0.1, 0.2, 0.3, 0.4], {"size": [1, 1], "counts": "1"}, [0.5] * 6),
)


def places(value, path=()):
    """All places in a JSON value."""
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def change_json(rng, content):
    *path, key = pick(rng, list(places(content)))
    parent = content
    for step in path:
        parent = parent[step]
    action = rng.integers(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif action == 2 and isinstance(parent[key], int | float):
        parent[key] = pick(rng, [-parent[key], parent[key] * 1000, parent[key] / 1000, 0])
    else:
        parent[key] = json.loads(json.dumps(pick(rng, ODD_VALUES)))


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def change_bytes(rng, content):
    """Damage of one file."""
    action = rng.integers(5)
    if action == 0 or not content:
        return pick(rng, [b"", b"no image", b"\xff\xfe", b"\0" * 50, b"<html>", b"[]", b"{}"])
    position = int(rng.integers(len(content)))
    if action == 1:
        return content[:position]
    if action == 2:
        return content[:position] + rng.bytes(4) + content[position + 4 :]
    if action == 3:
        return content + rng.bytes(30)
    return content[:position] + content[position + 1 :]


def change_labels(rng, content):
    """A line of YOLO's as exporters, other programs and damage leave it."""
    odd = [
        *("", "0 0.5 0.5 0.2 0.2", "9 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 -0.2"),
        *("0 nan 0 1 1", "0 1e400 1 1 1", "0 0.5 0.5 0.2", "0 .1 .1 .9 .1 .9 .9", "cat 1 1 1 1"),
        *("0 50 60 20 20", "0 0.5 0.5 0.2 0.2 0.99", "1.0 0.5 0.5 0.2 0.2", "0,0.5,0.5,0.2,0.2"),
        *(
            "0 2 2 0.1 0.1",
            "\ufeff",
            "0 0.5 0.5 0 0",
            "1.5 0.5 0.5 0.2 0.2",
            "0 0.1 0.1 0.1 0.1 0.1 0.1",
        ),
    ]
    lines = content.decode(errors="replace").splitlines()
    lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, odd))
    return "\n".join(lines).encode()


def change_xml(rng, content):
    """Another text in an element, an element twice or gone, a document type."""
    odd = [
        "",
        "-1",
        "0",
        "nan",
        "1e400",
        "12.5",
        "x",
        "é",
        "&amp;",
        "&x;",
        "<a/>",
        "../a.jpg",
        "9" * 30,
    ]
    text = content.decode(errors="replace")
    found = list(re.finditer(r">([^<]*)<", text))
    action = rng.integers(4)
    if action == 0:
        return b'<!DOCTYPE annotation [<!ENTITY x "cat">]>' + content
    if action == 1 and OBJECT[:8] in text:
        return text.replace("<object>", pick(rng, ["<object><part>", "<Object>", ""]), 1).encode()
    if not found:
        return content
    place = pick(rng, found)
    return (text[: place.start(1)] + pick(rng, odd) + text[place.end(1) :]).encode()


def change_lines(rng, content):
    lines = content.decode(errors="replace").splitlines()
    odd = ["", "a", "../a", "a b", "\t", "\0", "/a", "cafe\u0301", "[x]", "\ufeff", "b.png"]
    lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, odd))
    if rng.integers(3) == 0:
        lines.pop(int(rng.integers(len(lines))))
    return "\n".join(lines).encode()


def change_name(rng, name):
    """Another name for a file, in the same folder or one that looks like it."""
    folder, base = os.path.split(name)
    stem, suffix = os.path.splitext(base)
    new = pick(
        rng,
        [
            stem,
            stem.upper() + suffix,
            *(stem + other for other in (".jpg", ".gif", ".heic", ".txt", ".PNG", ".tif", ".json")),
            "." + base,
            unicodedata.normalize("NFD", base),
            "[x] é" + suffix,
            "a\nb" + suffix,
            os.fsdecode(b"a\xff") + suffix,
            f"deep/{base}",
        ],
    )
    return os.path.join(folder, new)


def change_tree(rng, tree: Tree) -> str:
    """Changes a tree in place; returns what was done, for a test that fails."""
    name = pick(rng, sorted(tree))
    action = pick(rng, ["json", "json", "bytes", "lines", "name", "copy", "gone", "folder", "swap"])
    if action == "json" and name.endswith(".json") and tree[name]:
        try:
            content = json.loads(tree[name])
            change_json(rng, content)
            tree[name] = json.dumps(content).encode()
        except (ValueError, IndexError):  # damaged before
            action = "json not changed"
    elif action in ("lines", "json") and name.startswith("labels/"):
        tree[name] = change_labels(rng, tree[name])
    elif action in ("lines", "json") and name.endswith(".xml"):
        tree[name] = change_xml(rng, tree[name])
    elif action == "lines" and name.endswith((".txt", ".yaml")):
        tree[name] = change_lines(rng, tree[name])
    elif action == "name":
        tree[change_name(rng, name)] = tree.pop(name)
    elif action == "copy":
        tree[change_name(rng, name)] = tree[name]
    elif action == "gone":
        del tree[name]
    elif action == "folder":
        tree[f"{name}/inside.png"] = tree.pop(name)
    elif action == "swap":
        other = pick(rng, sorted(tree))
        tree[name], tree[other] = tree[other], tree[name]
    else:
        tree[name] = change_bytes(rng, tree[name])
    return f"{action} {name!a}"


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
