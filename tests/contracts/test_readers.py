"""What every reader promises. A new one joins by a `Reader` in `reader_trees.READERS`."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest

from keras_densepred import data
from tests.contracts.reader_trees import (
    HEIGHT,
    NAMES,
    READERS,
    WIDTH,
    XML,
    class_folders,
    coco,
    sbd,
    voc,
    voc_boxes,
    write_photo,
    yolo,
)

pytestmark = pytest.mark.backend_free

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
