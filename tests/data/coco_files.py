"""A small COCO annotation file and its pictures, for tests that spoil them."""

import json

from PIL import Image

from keras_densepred.data import CocoDataset

WIDTH, HEIGHT = 40, 30
SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def make_content():
    """Three images, the second without objects; category ids out of order, sparse, from 0."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 0, "file_name": "sub/b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 90, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [
            {"id": 300, "name": "cat"},
            {"id": 0, "name": "dog"},
            {"id": 7, "name": "never seen"},
        ],
        "annotations": [
            make_annotation(1, image_id=90, category_id=0),
            make_annotation(2, image_id=7, bbox=[0, 0, 40, 30], area=99.5),
            make_annotation(3, image_id=7, category_id=0, bbox=[1.5, 2.25, 3.0, 4.5], iscrowd=1),
        ],
    }


def make_annotation(identifier, **changes):
    annotation = {
        "id": identifier,
        "image_id": 7,
        "category_id": 300,
        "bbox": [10, 10, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return annotation | changes


def write_pictures(folder):
    """Writes the pictures that `make_content` names; returns their folder."""
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 10, 20)).save(folder / name)
    return folder


def loader(path, images):
    """What opens a content, or the text of a file, written to `path`."""

    def load(content, **options):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoDataset(path, images, **options)

    return load
