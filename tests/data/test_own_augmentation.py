"""A user's own augmentation: what a transform may be, and the function that names them."""

import re
from typing import ClassVar

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.augment.lazy_image import LazyImage
from keras_densepred.data.augment.transform import as_transforms
from tests.data.class_pictures import Labelled
from tests.data.pictures import assert_same, run_script, take

pytestmark = pytest.mark.backend_free


class Brighter(data.Transform):
    """Notes what it is given."""

    geometric: ClassVar[bool] = False

    def __init__(self):
        self.seen = set()

    def __call__(self, record, rng):
        self.seen.add(type(record.image))
        return record.replace(image=record.image // 2 + 100)


class Looks(Brighter):
    """Does not need the pixels."""

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record, rng):
        self.seen.add(type(record.image))
        return record


def bytes_of(dataset, **arguments):
    options = dict(batch_size=4, image_size=64, seed=0, mean=None, std=None)
    return data.train_batches(dataset, **options, **arguments)


def test_the_published_transforms_say_what_they_are():
    color = [data.JitterColors(), data.PhotometricDistortion(), data.RandomErasing()]
    assert not any(transform.geometric for transform in color)
    coco = data.coco_augmentation(64)
    assert all(transform.takes_lazy_image and transform.geometric for transform in coco)
    assert not data.MaskCopyPaste().takes_lazy_image and data.MaskCopyPaste().num_others == 1
    assert [step.num_others for step in data.yolo_augmentation(64, mosaic=True)][-1] == 3
    assert data.RandomResizedCrop(8).takes_lazy_image and not data.RandAugment().takes_lazy_image


def test_a_plain_function_has_the_safe_defaults():
    (step,) = as_transforms([lambda record, rng: record])
    assert step.geometric and not step.takes_lazy_image and not step.num_others
    with pytest.raises(ValueError, match="its entry 1 is 3"):
        as_transforms([step, 3])


def test_whoever_overrides_a_call_declares_anew():
    class Own(data.RandomFlip):
        def __call__(self, record, rng):
            return record

    class Renamed(data.RandomFlip):
        pass

    assert not Own().takes_lazy_image and Renamed().takes_lazy_image


@pytest.mark.parametrize(("kind", "expected"), [(Brighter, np.ndarray), (Looks, LazyImage)])
def test_images_come_as_declared(kind, expected):
    step = kind()
    with bytes_of(data.ShapesDataset(6, 64), augment=[*data.coco_augmentation(64), step]) as stream:
        stream.batch(0)
    assert step.seen == {expected}


def wrong_kind(record, rng):
    return record.image


class Shrinks(data.Transform):
    geometric: ClassVar[bool] = False

    def __call__(self, record, rng):
        return data.ResizeToFit(16)(record, rng)


@pytest.mark.parametrize(
    ("step", "message"),
    [(wrong_kind, "wrong_kind returned a ndarray"), (Shrinks(), "`geometric = False`")],
)
def test_what_a_transform_breaks_is_named(step, message):
    with (
        bytes_of(data.ShapesDataset(6, 64), augment=[step]) as stream,
        pytest.raises(ValueError, match=message),
    ):
        next(stream)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda image, rng: None, "returned a NoneType"),
        (lambda image, rng: image / 255, "must return an image"),
        (data.Mosaic(), "use `mixing`"),
    ],
)
def test_transforms_of_classification_are_checked_too(step, message):
    options = dict(batch_size=2, image_size=32, seed=0, mean=None, std=None)
    with pytest.raises(ValueError, match=message):
        next(data.train_class_batches(Labelled(4), augment=[step], **options))


MODULE = """
import numpy as np

not_callable = 3

def darker(record, rng):
    return record.replace(image=(record.image * rng.uniform(0.2, 0.5)).astype(np.uint8))

def darker_image(image, rng):
    return (image * rng.uniform(0.2, 0.5)).astype(np.uint8)

def first(image_size, default):
    return [darker, *default]

def alone(image_size, default):
    return (darker,)

def of_classes(image_size, default):
    return [*default, darker_image]

def size(image_size):
    return []

def nothing(image_size, default):
    default.append(darker)

def number(image_size, default):
    return [*default, 3]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder, another one for each test."""
    name = f"own_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"broken_{name}.py").write_text("import there_is_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return name


def test_the_function_gets_the_default_and_decides(module):
    default = data.coco_augmentation(64)
    augment = data.load_augmentation(f"{module}:first")
    steps = augment(64, default)
    assert steps[1:] == default and len(default) == 6
    assert len(data.load_augmentation(f"{module}:alone")(64, default)) == 1
    dataset = data.ShapesDataset(6, 64)
    with bytes_of(dataset, augment=steps) as ours, bytes_of(dataset, augment=default) as theirs:
        batches = take(ours, 3)
        assert batches[2]["images"].mean() < theirs.batch(2)["images"].mean() - 20
        assert_same([ours.batch(2), ours.batch(0)], [batches[2], batches[0]])


def test_the_function_for_classifiers(module):
    steps = data.load_augmentation(f"{module}:of_classes")(32, data.imagenet_augmentation(32))
    options = dict(batch_size=2, image_size=32, seed=0, mean=None, std=None)
    with data.train_class_batches(data.ShapesClassification(4, 48), augment=steps, **options) as s:
        assert next(s)["images"].max() <= 128


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{module}", "named as module:function"),
        ("{module}.py:first", "cannot be imported"),
        ("{module}:", "named as module:function"),
        ("no_{module}:first", "No module named.*looked for in"),
        ("broken_{module}:first", "cannot be imported.*there_is_no_such_package"),
        ("{module}:second", "has no function `second`"),
        ("{module}:not_callable", "`not_callable` is 3"),
        ("{module}:size", "must take two arguments"),
    ],
)
def test_a_function_that_is_not_there_is_one_sentence(module, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load_augmentation(name.format(module=module))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "returned None"), ("number", "entry 6 of its list is 3")]
)
def test_what_the_function_returns_is_checked(module, name, message):
    default = data.coco_augmentation(64)
    with pytest.raises(ValueError, match=message):
        data.load_augmentation(f"{module}:{name}")(64, default)
    assert len(default) == 6


SCRIPT = """
from keras_densepred import data

def main():
    augment = data.load_augmentation("own_module:first")(64, data.coco_augmentation(64))
    options = dict(batch_size=2, image_size=64, seed=3, mean=None, std=None, augment=augment)
    found = []
    for workers in (0, 1):
        with data.train_batches(data.ShapesDataset(6, 64), workers=workers, **options) as stream:
            found.append([next(stream)["images"].tobytes() for _ in range(3)])
    assert found[0] == found[1]
    print("same")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(tmp_path):
    (tmp_path / "own_module.py").write_text(MODULE)
    assert run_script(tmp_path, SCRIPT) == ["same"]
