"""The same four pictures with two classes of boxes in each layout that users have."""

import json

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
NAMES = ("cat", "[x] größe")
BOXES = {  # xyxy, label
    "a": [([4, 6, 24, 26], 0), ([30, 10, 50, 30], 1)],
    "b": [([10, 10, 40, 38], 1)],
    "c": [],
    "d": [([2, 2, 12, 12], 0)],
}
SPLITS = {"train": ("a", "b", "c"), "val": ("d",)}


def write_picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def coco_content(names, file_name, categories):
    boxes = [(k, *entry) for k, name in enumerate(names) for entry in BOXES[name]]
    return {
        "images": [
            {"id": k, "file_name": file_name(name), "height": HEIGHT, "width": WIDTH}
            for k, name in enumerate(names)
        ],
        "categories": categories,
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
            for number, (image, (x1, y1, x2, y2), label) in enumerate(boxes, start=1)
        ],
    }


def plain_categories():
    return [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]


def write_coco(root, splits=SPLITS):
    for split, names in splits.items():
        for name in names:
            write_picture(root / "images" / split / f"{name}.png", ord(name))
        content = coco_content(names, lambda name: f"{name}.png", plain_categories())
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_roboflow(root, splits=SPLITS, parent="cat"):
    """With a parent category, here of the same name as one of its children."""
    categories = [{"id": 0, "name": parent, "supercategory": "none"}]
    categories += [c | {"supercategory": parent} for c in plain_categories()]
    for split, names in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        for name in names:
            write_picture(folder / f"{name}.png", ord(name))
        content = coco_content(names, lambda name: f"{name}.png", categories)
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_single(root):
    for name in BOXES:
        write_picture(root / "images" / f"{name}.png", ord(name))
    content = coco_content(list(BOXES), lambda name: f"{name}.png", plain_categories())
    (root / "labels.json").write_text(json.dumps(content))
    return root


def yolo_lines(name, polygons=False):
    lines = []
    for (x1, y1, x2, y2), label in BOXES[name]:
        if polygons:
            numbers = [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y1 / HEIGHT]
            numbers += [x2 / WIDTH, y2 / HEIGHT, x1 / WIDTH, y2 / HEIGHT]
        else:
            numbers = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
            numbers += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
        lines.append(" ".join(map(str, [label, *numbers])))
    return "\n".join(lines)


def write_yolo(root, splits=SPLITS, yaml="", polygons=False):
    for split, names in splits.items():
        for name in names:
            write_picture(root / "images" / split / f"{name}.png", ord(name))
            file = root / "labels" / split / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yolo_lines(name, polygons))
    yaml = yaml or f"train: images/train\nval: images/val\nnames: {json.dumps(NAMES)}\n"
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root


def write_voc(root, splits=SPLITS, from_one=True):
    for split, names in splits.items():
        for name in names:
            write_picture(root / "JPEGImages" / f"{name}.png", ord(name))
            objects = ""
            for (x1, y1, x2, y2), label in BOXES[name]:
                corners = (
                    (x1 + 1, y1 + 1, x2, y2) if from_one else (f"{v:.1f}" for v in (x1, y1, x2, y2))
                )
                tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
                box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
                objects += f"<object><name>{NAMES[label]}</name><bndbox>{box}</bndbox></object>"
            file = root / "Annotations" / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"<annotation>{objects}</annotation>", encoding="utf-8")
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in names))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    return root


def found(splits):
    """`{"train": {"a": [(box, label), ...]}}` of opened splits, in the form of `BOXES`."""
    return {
        name: {
            record.file_name.rpartition("/")[2][0]: [
                (box.round(3).tolist(), label)
                for box, label in zip(record.boxes, record.labels.tolist(), strict=True)
            ]
            for record in (split[index] for index in range(len(split)))
        }
        for name, split in splits.items()
    }


EXPECTED = {split: {name: BOXES[name] for name in names} for split, names in SPLITS.items()}
