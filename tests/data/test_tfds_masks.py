"""Masks from TFDS, on small data sets that TFDS itself writes and reads back."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_densepred import data
from tests.data.tfds_sets import prepare

pytestmark = pytest.mark.backend_free

MASK = np.array([[1, 2, 3], [0, 255, 1]], np.uint8)


def features(masks):
    image = tfds.features.Image(encoding_format="png")
    return {"image": image, "label": tfds.features.ClassLabel(num_classes=2), **masks}


def example(**masks):
    return {"image": np.full((2, 3, 3), 7, np.uint8), "label": 1, **masks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    plain = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    named = tfds.features.LabeledImage(labels=["a", "b", "c", "d"], shape=(None, None, 1))
    mask = MASK[..., None]
    # The registered sets in the versions that TFDS looks for.
    pets = ("oxford_iiit_pet", plain, {"version": "4.0.0"})
    for name, feature, options in (("plain", plain, {}), ("named", named, {}), pets):
        made = features({"segmentation_mask": feature})
        records = [(0, example(segmentation_mask=mask))]
        prepare(
            name, folder, features=made, generate=lambda records=records: iter(records), **options
        )
    of_year = {"version": "5.0.0", "configs": [tfds.core.BuilderConfig(name="2007")]}
    blank = [(0, example())]
    prepare("voc", folder, features=features({}), generate=lambda: iter(blank), **of_year)
    return folder


def test_masks_and_given_names(folder):
    dataset = data.TfdsSegmentation("plain", "train", class_names="abcd", data_dir=folder)
    record = dataset[0]
    assert (record.image == 7).all() and len(dataset) == 1
    np.testing.assert_array_equal(record.semantic, MASK)
    assert dataset.summary().pixels_per_class == {"a": 1, "b": 2, "c": 1, "d": 1}
    assert (dataset.num_classes, dataset.category_ids) == (4, (0, 1, 2, 3))
    with pytest.raises(IndexError):
        dataset[1]


def test_names_that_tfds_knows(folder):
    dataset = data.TfdsSegmentation("named", "train", data_dir=folder)
    assert dataset.class_names == ("a", "b", "c", "d")


def test_labels_that_begin_at_one(folder):
    dataset = data.TfdsSegmentation("oxford_iiit_pet", "train", data_dir=folder)
    assert dataset.class_names == ("pet", "background", "border")
    assert dataset[0].semantic.tolist() == [[0, 1, 2], [255, 255, 0]]


def test_a_label_beyond_the_classes_is_named(folder):
    dataset = data.TfdsSegmentation("plain", "train", class_names="abc", data_dir=folder)
    with pytest.raises(data.DatasetError, match=r"image 0 has label 3 at row 0, column 2"):
        dataset[0]


def test_sets_without_masks_or_names_are_refused(folder):
    with pytest.raises(data.DatasetError, match=r"voc has no masks.*`VocSegmentation`"):
        data.TfdsSegmentation("voc", "train", data_dir=folder)
    with pytest.raises(data.DatasetError, match="give `class_names`"):
        data.TfdsSegmentation("plain", "train", data_dir=folder)
    with pytest.raises(data.DatasetError, match="cannot be opened"):
        data.TfdsSegmentation("plain", "gone", data_dir=folder)
