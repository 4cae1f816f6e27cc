"""The TFDS reader, on small data sets that TFDS itself writes and reads back."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_densepred.data import DatasetError, TfdsClassification, TfdsDetection
from tests.data.tfds_sets import IMAGE_IDS, NAMES, examples, features, labelled, prepare

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare("plain", folder)
    prepare("full", folder, features=features(True), generate=lambda: examples(True))
    number = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    blank = {"image": np.zeros((4, 4, 3), np.uint8), "label": 1}
    prepare("classes", folder, features=number, generate=lambda: iter([(0, blank)]))
    pets = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=NAMES),
    }
    prepare("pets", folder, features=pets, generate=labelled)
    unlabelled = ({**example, "label": -1} for _, example in labelled())
    prepare("hidden", folder, features=pets, generate=lambda: enumerate(unlabelled))
    return folder


def by_id(dataset):
    """TFDS shuffles what it writes."""
    return {record.image_id: record for record in (dataset[i] for i in range(len(dataset)))}


def test_records(folder):
    dataset = TfdsDetection("full", "train", data_dir=folder)
    assert len(dataset) == 3
    assert dataset.class_names == ("cat", "dog", "eel")
    assert dataset.category_ids == (0, 1, 2)
    records = by_id(dataset)
    assert set(records) == set(IMAGE_IDS) == set(dataset.image_ids)
    assert [dataset[i].image_id for i in range(3)] == list(dataset.image_ids)
    first = records[70]
    assert first.image.shape == (20, 40, 3)
    np.testing.assert_array_equal(first.image[3, :, 0], np.arange(40))
    np.testing.assert_allclose(first.boxes, [[8, 2, 24, 10], [0, 0, 40, 20]], atol=1e-4)
    assert first.labels.tolist() == [2, 1]
    assert first.crowd.tolist() == [False, True]
    assert "full, train, image" in first.file_name
    assert records[0].boxes.shape == records[9].boxes.shape == (0, 4)
    assert dataset[-1].image_id == dataset.image_ids[-1]


def test_ground_truth_and_summary(folder):
    dataset = TfdsDetection("full", "train", data_dir=folder)
    truth = dataset.ground_truth()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    assert sizes == {70: (20, 40), 0: (30, 40), 9: (40, 40)}
    found = [
        (a["image_id"], a["category_id"], a["area"], a["iscrowd"]) for a in truth["annotations"]
    ]
    assert found == [(70, 2, 50, 0), (70, 1, 50, 1)]
    summary = dataset.summary()
    assert (summary.images, summary.boxes, summary.crowd, summary.empty_images) == (3, 1, 1, 2)
    assert [finding.count for finding in summary.findings] == [1]
    assert "no area" in summary.findings[0].what


def test_without_optional_features(folder):
    dataset = TfdsDetection("plain", "train", data_dir=folder)
    assert dataset.image_ids == (0, 1, 2)
    records = by_id(dataset)
    assert not any(record.crowd.any() for record in records.values())
    areas = [annotation["area"] for annotation in dataset.ground_truth()["annotations"]]
    np.testing.assert_allclose(areas, [16 * 8, 40 * 20], rtol=1e-4)


def test_a_part_of_a_split(folder):
    assert len(TfdsDetection("plain", "train[:2]", data_dir=folder)) == 2


def test_pickles_for_worker_processes(folder):
    dataset = TfdsDetection("full", "train", data_dir=folder)
    dataset.summary()
    copy = pickle.loads(pickle.dumps(dataset))
    assert repr(copy) == repr(dataset)
    np.testing.assert_array_equal(copy[0].image, dataset[0].image)
    assert copy.image_ids == dataset.image_ids


def test_reads_without_tensorflow(folder):
    program = f"""
import importlib.util, os, sys, types
# The packages without their __init__, for Keras may import TensorFlow as its backend.
root = os.path.dirname(importlib.util.find_spec("keras_densepred").origin)
for name, folder in (("keras_densepred", root), ("keras_densepred.data", root + "/data")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from keras_densepred.data.readers.tfds import TfdsDetection
print(TfdsDetection("full", "train", data_dir={str(folder)!r})[0].image.shape[1])
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40"]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("full", "nope", "Unknown split 'nope'"),
        ("there_is_no_such_set", "train", "not found"),
        ("full:9.9.9", "train", "cannot be opened"),
        ("classes", "train", "is not a detection data set.*it has image, label"),
    ],
)
def test_faults_are_one_sentence(folder, name, split, expected):
    with pytest.raises(DatasetError, match=f"^TFDS {name}.*{expected}") as caught:
        TfdsDetection(name, split, data_dir=folder)
    assert "\n" not in str(caught.value)


def test_a_format_without_random_access_says_what_to_do(tmp_path):
    prepare("plain", tmp_path, file_format="tfrecord")
    with pytest.raises(DatasetError, match="file_format='array_record'"):
        TfdsDetection("plain", "train", data_dir=tmp_path)


def test_classification(folder):
    dataset = TfdsClassification("pets", "train", data_dir=folder)
    assert len(dataset) == 4
    assert dataset.class_names == ("cat", "dog", "eel")
    assert dataset.category_ids == (0, 1, 2)
    found = [dataset[index] for index in range(4)]
    labels = {round(float(item.image.mean()) / 50): item.label for item in found}
    assert labels == {0: 2, 1: 1, 2: 0, 3: 2}
    assert [item.image_id for item in found] == [0, 1, 2, 3]
    assert "pets, train, image 0" in found[0].file_name
    encoded = dataset.encoded(-1)
    np.testing.assert_array_equal(encoded.image.decode(), found[3].image)
    assert dict(dataset.summary().images_per_class) == {"cat": 1, "dog": 1, "eel": 2}
    copy = pickle.loads(pickle.dumps(dataset))
    assert repr(copy) == repr(dataset)
    np.testing.assert_array_equal(copy[1].image, dataset[1].image)


def test_classes_without_names_are_numbers(folder):
    dataset = TfdsClassification("classes", "train", data_dir=folder)
    assert dataset.class_names == ("0", "1")
    assert dataset[0].label == 1


def test_a_split_without_labels_says_so(folder):
    dataset = TfdsClassification("hidden", "train", data_dir=folder)
    with pytest.raises(DatasetError, match=r"has the label -1.*take a split that is labelled"):
        dataset[0]


def test_a_detection_set_is_not_for_classification(folder):
    with pytest.raises(DatasetError, match=r"not a classification.*it has image, objects"):
        TfdsClassification("plain", "train", data_dir=folder)
