"""What every reader promises. A new one joins by a `Reader` in `READERS`."""

import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.unlabelled import UnlabelledClassImages, UnlabelledImages

pytestmark = pytest.mark.backend_free

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
OF_FILES = [name for name, reader in READERS.items() if reader.image_file]
LABELLED = [name for name, reader in READERS.items() if reader.has_labels]
WITH_OBJECTS = [
    name for name in LABELLED if hasattr(getattr(data, name.split()[0]), "ground_truth")
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens each reader once."""
    known = {}

    def open_reader(name):
        if name not in known:
            known[name] = READERS[name].open(tmp_path_factory.mktemp("data"))
        return known[name]

    return open_reader


def arrays(item):
    """All that an item holds, comparable."""
    fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {
        key: (str(value.dtype), value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else value
        for key, value in fields.items()
    }


def test_all_public_readers_are_here():
    """A data set class that `keras_densepred.data` exports is in `READERS`."""
    public = {
        name
        for name in data.__all__
        if isinstance(getattr(data, name), type)
        and {"__getitem__", "__len__", "summary"} <= set(dir(getattr(data, name)))
    }
    assert public <= {name.split()[0] for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_items_are_what_they_promise(opened, name):
    dataset = opened(name)
    items = [dataset[index] for index in range(len(dataset))]
    assert len(items) > 1
    assert {type(item) for item in items} <= {data.Record, data.LabelledImage}
    num_classes = len(dataset.class_names)
    for item in items:
        item.__post_init__()  # records check their own shapes and dtypes
        assert item.image.shape == (HEIGHT, WIDTH, 3) and item.image.dtype == np.uint8
        assert isinstance(item.image_id, int) and isinstance(item.file_name, str)
        if isinstance(item, data.LabelledImage):
            assert 0 <= item.label < num_classes
            continue
        assert ((item.labels >= 0) & (item.labels < num_classes)).all()
        x1, y1, x2, y2 = item.boxes.T
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= WIDTH) & (y1 >= 0) & (y1 < y2)).all()
        assert (y2 <= HEIGHT).all()
        if item.semantic is not None:
            assert set(np.unique(item.semantic)) <= {*range(num_classes), data.IGNORE_LABEL}
    assert len({item.image_id for item in items}) == len(items)


@pytest.mark.parametrize("name", [name for name in READERS if not READERS[name].is_generated])
def test_images_are_upright_rgb(opened, name):
    dataset = opened(name)
    blue = []
    for index in range(len(dataset)):
        top, bottom = np.split(dataset[index].image.astype(int), 2)
        assert top[:-2, :, 0].min() > 200 and bottom[2:, :, 0].max() < 20
        blue.append(round(dataset[index].image[..., 2].mean() / 40))
    assert sorted(blue) == list(range(len(dataset)))


@pytest.mark.parametrize("name", READERS)
def test_access_is_random_and_repeatable(opened, name):
    dataset = opened(name)
    in_order = [arrays(dataset[index]) for index in range(len(dataset))]
    backwards = [arrays(dataset[index]) for index in reversed(range(len(dataset)))]
    assert backwards[::-1] == in_order
    assert arrays(dataset[np.int64(1)]) == in_order[1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("name", READERS)
def test_it_pickles_to_worker_processes(opened, name):
    dataset = opened(name)
    expected = arrays(dataset[1])
    content = pickle.dumps(dataset)
    assert len(content) < HEIGHT * WIDTH * 3  # images stay where they are
    copy = pickle.loads(content)
    assert len(copy) == len(dataset) and arrays(copy[1]) == expected


@pytest.mark.parametrize("name", LABELLED)
def test_classes_and_summary(opened, name):
    dataset = opened(name)
    assert isinstance(dataset.class_names, tuple) and len(set(dataset.class_names)) > 1
    assert len(dataset.category_ids) == len(dataset.class_names)
    assert list(dataset.category_ids) == sorted(dataset.category_ids)
    summary = dataset.summary()
    assert summary.images == len(dataset)
    assert f"{len(dataset)} images" in str(summary) and summary.name in str(summary)
    counts = next(
        getattr(summary, field)
        for field in ("boxes_per_class", "pixels_per_class", "images_per_class")
        if hasattr(summary, field)
    )
    assert tuple(counts) == dataset.class_names


@pytest.mark.parametrize("name", LABELLED)
def test_repr_names_the_data_without_addresses(opened, name):
    """Grain compares it when a position is restored, in another process."""
    assert type(opened(name)).__name__ in repr(opened(name))
    assert " at 0x" not in repr(opened(name))


@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_ground_truth_agrees_with_the_records(opened, name):
    dataset = opened(name)
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(dataset.image_ids)
    by_label = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    assert {entry["id"]: entry["name"] for entry in truth["categories"]} == by_label
    for index in range(len(dataset)):
        record = dataset[index]
        of_image = [a for a in truth["annotations"] if a["image_id"] == record.image_id]
        boxes = np.array([a["bbox"] for a in of_image], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, record.boxes, atol=1e-4)
        labels = [dataset.category_ids[label] for label in record.labels]
        assert [a["category_id"] for a in of_image] == labels
        assert [a["iscrowd"] for a in of_image] == record.crowd.tolist()
    numbers = [a["id"] for a in truth["annotations"]]
    assert len(set(numbers)) == len(numbers) and min(numbers) > 0  # 0 is "no match" to pycocotools


@pytest.mark.parametrize("fault", ["gone", "empty", "text", "cut"])
@pytest.mark.parametrize("name", OF_FILES)
def test_a_broken_image_is_one_sentence_that_names_it(tmp_path, name, fault):
    reader = READERS[name]
    dataset = reader.open(tmp_path)
    path = reader.image_file(tmp_path)
    content = path.read_bytes()
    path.unlink()
    broken = {"empty": b"", "text": b"no image", "cut": content[: len(content) // 2]}
    if fault in broken:
        path.write_bytes(broken[fault])
    with pytest.raises((data.ImageError, data.DatasetError)) as caught:
        for index in range(len(dataset)):
            dataset[index]
    message = str(caught.value)
    assert path.name in message and "\n" not in message and message.endswith(".")


def coco_outside(root, name):
    coco(root)
    content = json.loads((root / "labels.json").read_text())
    content["images"][0]["file_name"] = name
    (root / "labels.json").write_text(json.dumps(content))
    data.CocoDataset(root / "labels.json", root / "photos")


def yolo_list_outside(root, name):
    yolo(root)
    (root / "train.txt").write_text(f"{name}.jpg\n")
    data.YoloDataset(root / "train.txt", NAMES)


def yolo_yaml_outside(root, name):
    yolo(root)
    (root / "data.yaml").write_text(f"names: [cat, dog]\ntrain: {name}\nval: images\n")
    data.find_layout(root)


def voc_list_outside(root, name):
    voc_boxes(root)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{name}\n")
    data.open_splits(data.DetectionFiles(root), only="train")


def voc_xml_outside(root, name):
    voc_boxes(root)
    (root / "Annotations" / "d.xml").write_text(XML.format(f"{name}.jpg", ""))
    data.VocDetection(root / "Annotations", root / "JPEGImages")


def voc_outside(root, name):
    voc(root)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(f"{name}\n")
    data.VocSegmentation(root)


def sbd_outside(root, name):
    sbd(root)
    (root / "train.txt").write_text(f"{name}\n")
    data.SbdSegmentation(root)


def class_outside(root, name):
    class_folders(root)
    data.ImageFolder(root, class_names=["cat", name])


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "..\\outside"])
@pytest.mark.parametrize(
    "open_with",
    [
        *(coco_outside, yolo_list_outside, yolo_yaml_outside, voc_list_outside, voc_xml_outside),
        *(voc_outside, sbd_outside, class_outside),
    ],
)
def test_names_stay_inside_their_folder(tmp_path, open_with, name):
    root = tmp_path / "root"
    root.mkdir()
    write_photo(tmp_path / "outside.jpg", 0)
    with pytest.raises(data.DatasetError) as caught:
        open_with(root, name)
    assert re.escape("outside") in str(caught.value) and "\n" not in str(caught.value)
