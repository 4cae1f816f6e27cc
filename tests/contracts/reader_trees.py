"""A small data set of each format on disk, and the readers that open them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.unlabelled import UnlabelledClassImages, UnlabelledImages

HEIGHT, WIDTH = 40, 60  # of every image when it is upright
NAMES = ("cat", "dog")
TURNED = 6  # EXIF: to be turned by 90 degrees to be upright


def scene(number):
    """An image `(H, W, 3)`: red at the top, and as blue as its number."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, :, 0] = 220
    image[..., 2] = 40 * number
    return image


def write_photo(path, number, mode="RGB"):
    """As PNG, or as a JPEG that lies on its side and says so in its EXIF data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(scene(number)).convert(mode)
    if path.suffix == ".jpg":
        exif = picture.getexif()
        exif[0x0112] = TURNED
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        picture.save(path)


def write_labels(path, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.full((HEIGHT, WIDTH), first, np.uint8)
    labels[10:20, 10:30], labels[0] = first + 1, data.IGNORE_LABEL
    Image.fromarray(labels).save(path)


def coco(root, with_masks=False):
    """The second image has no object; a box reaches out of the first, one is a crowd region."""
    files = ["a.jpg", "sub/b.png", "c.png"]
    for number, name in enumerate(files):
        write_photo(root / "photos" / name, number, "RGBA" if number == 1 else "RGB")
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    given = [(7, 3, [50, 10, 20, 10], 0), (7, 9, [0, 0, 60, 40], 1), (90, 9, [1, 2, 3, 4], 0)]
    content = {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in zip((7, 0, 90), files, strict=True)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            dict(id=i, image_id=image, category_id=label, bbox=box, iscrowd=crowd, area=9)
            | {"segmentation": square}
            for i, (image, label, box, crowd) in enumerate(given)
        ],
    }
    (root / "labels.json").write_text(json.dumps(content))
    return data.CocoDataset(root / "labels.json", root / "photos", with_masks=with_masks)


def yolo(root, with_masks=False):
    """The second image has no object; a box reaches out of the first."""
    for number, name in enumerate(("a.jpg", "sub/b.png", "c.png")):
        write_photo(root / "images" / name, number, "RGBA" if number == 1 else "RGB")
    (root / "labels" / "sub").mkdir(parents=True)
    (root / "labels" / "sub" / "b.txt").write_text("")
    polygon = "1 0.1 0.1 0.9 0.1 0.9 0.9"
    (root / "labels" / "a.txt").write_text(f"{polygon}\n0 0.5 0.8 0.9 0.8 1.1 0.4\n")
    boxes = polygon if with_masks else "0 0.25 0.5 0.2 0.4\n1 0.5 0.5 1 1"
    (root / "labels" / "c.txt").write_text(boxes)
    return data.YoloDataset(root / "images", NAMES, with_masks=with_masks)


XML = "<annotation><filename>{}</filename>{}</annotation>"
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc_boxes(root):
    """The second image has no object; a box reaches out of the first, one is difficult."""
    objects = [
        OBJECT.format("dog", 0, 5, 6, 90, 20) + OBJECT.format("cat", 1, 1, 1, 60, 40),
        "",
        OBJECT.format("cat", 0, 2, 3, 4, 5),
    ]
    for number, name in enumerate(("a.jpg", "sub/b.png", "c.png")):
        write_photo(root / "JPEGImages" / name, number, "RGBA" if number == 1 else "RGB")
        path = (root / "Annotations" / name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(XML.format(name, objects[number]))
    return data.VocDetection(root / "Annotations", root / "JPEGImages")


def mask_folder(root):
    for number, name in enumerate(("a.jpg", "b.png", "c.png")):
        write_photo(root / "images" / name, number)
        write_labels(root / "masks" / f"{name[0]}.png")
    return data.MaskFolder(root / "images", root / "masks", NAMES)


def voc(root):
    for number, name in enumerate("abc"):
        write_photo(root / "JPEGImages" / f"{name}.jpg", number)
        write_labels(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("c\na\nb\n")
    return data.VocSegmentation(root)


def ade20k(root):
    for number, name in enumerate("abc"):
        write_photo(root / "images" / "training" / f"{name}.jpg", number)
        write_labels(root / "annotations" / "training" / f"{name}.png", first=1)
    return data.Ade20kSegmentation(root, class_names=NAMES)


def cityscapes(root):
    for number, name in enumerate("abc"):
        write_photo(root / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png", number)
        write_labels(root / "gtFine" / "train" / "ulm" / f"{name}_gtFine_labelTrainIds.png")
    return data.CityscapesSegmentation(root)


def coco_stuff(root):
    for number, name in enumerate("abc"):
        write_photo(root / "images" / "train2017" / f"{name}.jpg", number)
        write_labels(root / "annotations" / "train2017" / f"{name}.png")
    return data.CocoStuffSegmentation(root)


def sbd(root):
    scipy_io = pytest.importorskip("scipy.io")
    (root / "cls").mkdir()
    for number, name in enumerate("ab"):
        write_photo(root / "img" / f"{name}.jpg", number)
        labels = np.full((HEIGHT, WIDTH), 20, np.uint8)
        scipy_io.savemat(root / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
    (root / "train.txt").write_text("a\nb\n")
    return data.SbdSegmentation(root)


def class_folders(root):
    for number, name in enumerate(("cat/a.jpg", "cat/b.png", "dog/a.jpg")):
        write_photo(root / name, number)
    return data.ImageFolder(root)


def tfds_split(root, reader, **extra):
    """A split with the labels that `reader` needs; TFDS keeps images as they are in their file."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tests.data.tfds_sets import prepare

    label = tfds.features.ClassLabel(names=NAMES)
    box = {"bbox": tfds.features.BBoxFeature(), "label": label}
    found = {"bbox": tfds.features.BBox(0.1, 0.2, 0.5, 0.6), "label": 1}
    mask_feature = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    mask = np.ones((HEIGHT, WIDTH, 1), np.uint8)
    feature, value = {
        data.TfdsDetection: ({"objects": tfds.features.Sequence(box)}, {"objects": [found]}),
        data.TfdsClassification: ({"label": label}, {"label": 1}),
        data.TfdsSegmentation: ({"mask": mask_feature}, {"mask": mask}),
    }[reader]
    feature["image"] = tfds.features.Image(encoding_format="png")
    examples = [(number, {"image": scene(number), **value}) for number in range(3)]
    prepare("scenes", root, features=feature, generate=lambda: iter(examples))
    return reader("scenes", "train", data_dir=root, **extra)


def unlabelled(root, reader):
    names = ("a.jpg", "b.png", "c.png")
    for number, name in enumerate(names):
        write_photo(root / name, number)
    return reader([root / name for name in names])


def first_file(*patterns):
    """Breaks a reader's files: the first that matches."""

    def find(root):
        return next(path for pattern in patterns for path in sorted(root.rglob(pattern)))

    return find


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a reader is put to the test.

    Args:
        open: an empty folder -> the data set, its files written there.
        image_file: the folder -> an image file of the data set; None where it has none.
        is_generated: whether its images are its own, not those of `scene`.
        has_labels: whether it knows classes.
    """

    open: Callable[[Path], Any]
    image_file: Callable[[Path], Path] | None = None
    is_generated: bool = False
    has_labels: bool = True


READERS = {
    "CocoDataset": Reader(coco, first_file("a.jpg")),
    "CocoDataset with masks": Reader(lambda root: coco(root, True), first_file("a.jpg")),
    "YoloDataset": Reader(yolo, first_file("a.jpg")),
    "YoloDataset with masks": Reader(lambda root: yolo(root, True), first_file("a.jpg")),
    "VocDetection": Reader(voc_boxes, first_file("a.jpg")),
    "MaskFolder": Reader(mask_folder, first_file("a.jpg")),
    "VocSegmentation": Reader(voc, first_file("c.jpg")),
    "Ade20kSegmentation": Reader(ade20k, first_file("a.jpg")),
    "CityscapesSegmentation": Reader(cityscapes, first_file("a_leftImg8bit.png")),
    "CocoStuffSegmentation": Reader(coco_stuff, first_file("a.jpg")),
    "SbdSegmentation": Reader(sbd, first_file("a.jpg")),
    "ImageFolder": Reader(class_folders, first_file("a.jpg")),
    "TfdsDetection": Reader(lambda root: tfds_split(root, data.TfdsDetection)),
    "TfdsClassification": Reader(lambda root: tfds_split(root, data.TfdsClassification)),
    "TfdsSegmentation": Reader(
        lambda root: tfds_split(root, data.TfdsSegmentation, class_names=NAMES)
    ),
    "ShapesDataset": Reader(
        lambda root: data.ShapesDataset(3, (HEIGHT, WIDTH), with_masks=True), is_generated=True
    ),
    "ShapesSegmentation": Reader(
        lambda root: data.ShapesSegmentation(3, (HEIGHT, WIDTH)), is_generated=True
    ),
    "ShapesClassification": Reader(
        lambda root: data.ShapesClassification(7, (HEIGHT, WIDTH)), is_generated=True
    ),
    "UnlabelledImages": Reader(
        lambda root: unlabelled(root, UnlabelledImages), first_file("a.jpg"), has_labels=False
    ),
    "UnlabelledClassImages": Reader(
        lambda root: unlabelled(root, UnlabelledClassImages), first_file("a.jpg"), has_labels=False
    ),
}
