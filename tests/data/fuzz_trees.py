"""Valid data sets of every format, as the content of their files."""

import io
import json

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 12, 16

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
