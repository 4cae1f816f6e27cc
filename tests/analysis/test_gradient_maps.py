"""Gradient maps, their areas and detection quality, and what a detector's loss sees."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import data
from keras_densepred.analysis import gradient_maps
from keras_densepred.models import FasterRCNN, RetinaNetKerasHub
from tests.models.conftest import ToyPyramid

free = pytest.mark.backend_free
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}


@free
def test_a_map_is_the_strongest_channel_over_its_maximum():
    gradient = np.zeros((2, 2, 3))
    gradient[0, 0] = (1, -4, 2)
    gradient[1, 0] = (0, 0, 1)
    np.testing.assert_array_equal(gradient_maps.gradient_map(gradient), [[1, 0], [0.25, 0]])
    np.testing.assert_array_equal(gradient_maps.gradient_map(0 * gradient), np.zeros((2, 2)))


@free
def test_areas_of_a_map_by_hand():
    values = np.array([[0.0, 0.1, 0.25], [0.5, 0.5, 1.0]])
    areas = gradient_maps.important_area(values, [0, 0.25, 0.4, 0.5, 1])
    np.testing.assert_allclose(areas, np.array([5, 3, 3, 1, 0]) / 6)
    assert len(gradient_maps.important_area(values)) == len(gradient_maps.THRESHOLDS) == 100


@free
def test_quality_is_the_average_precision_of_the_image_alone():
    truth = {
        "images": [{"id": i, "height": 50, "width": 50} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "category_id": 2, "bbox": [20, 20, 10, 10]},
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10]},
        ],
    }
    box = {"score": 0.9, "bbox": [0, 0, 10, 10]}
    found = [
        {"image_id": 1, "category_id": 1, **box},  # right; class b is missed
        {"image_id": 2, "category_id": 1, **box, "bbox": [0, 0, 10, 7.6]},  # IoU 0.76
    ]
    qualities = [gradient_maps.image_quality(truth, found, image_id) for image_id in (1, 2, 3)]
    np.testing.assert_allclose(qualities, [0.5, 0.6, -1], atol=1e-6)


@pytest.mark.slow_on("jax", "tensorflow")
def test_retinanets_loss_gradient_equals_finite_differences():
    model = RetinaNetKerasHub(ToyPyramid(), num_classes=2, head_depth=1)
    loss_gradient = gradient_maps.LossGradient(model)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 32, 32, 3)).astype("float32")
    targets = {
        "boxes": np.array([[[4, 4, 24, 28], [-1, -1, -1, -1]]], "float32"),
        "labels": np.array([[1, -1]], "int32"),
    }
    gradient = loss_gradient(images, targets)
    assert gradient.shape == images.shape and np.abs(gradient).max() > 0
    # Along the gradient itself: single pixels of this loss are lost in float32.
    direction = gradient / np.linalg.norm(gradient)
    step = 0.02

    def loss(shift):
        moved = ops.convert_to_tensor(images + shift * direction)
        with keras.StatelessScope():
            return float(ops.convert_to_numpy(loss_gradient._loss(moved, targets)))

    slope = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.05)


def split(images):
    return data.ShapesDataset(images, 64, 0, "val")


@pytest.mark.slow_on("jax", "tensorflow")
def test_images_of_a_two_stage_detector_without_their_padding():
    model = FasterRCNN(
        ToyPyramid(), 6, head_fcs=1, head_width=8, num_proposals=8, samples=8, max_detections=5
    )
    dataset = split(3)
    batches = data.eval_batches(dataset, batch_size=1, image_size=(64, 96), **UNIT)
    found = list(gradient_maps.image_gradients(model, batches, dataset))
    assert [item.image_id for item in found] == list(dataset.image_ids)
    for item in found:
        assert item.gradient_map.shape == (64, 64) and 0 <= item.quality <= 1
        assert item.gradient_map.max() == 1 and item.gradient_map.min() >= 0
    again = list(gradient_maps.image_gradients(model, batches, dataset))
    np.testing.assert_array_equal(found[2].gradient_map, again[2].gradient_map)


@free
def test_faults_are_one_sentence():
    model = RetinaNetKerasHub(ToyPyramid(), num_classes=6, head_depth=0, bounding_box_format="xywh")
    with pytest.raises(ValueError, match="takes boxes as 'xywh'"):
        gradient_maps.LossGradient(model)
    dataset = split(2)
    batches = data.eval_batches(dataset, batch_size=2, image_size=64, **UNIT)
    model = RetinaNetKerasHub(ToyPyramid(), num_classes=6, head_depth=0)
    with pytest.raises(ValueError, match="have 2 images: make them with batch_size=1"):
        list(gradient_maps.image_gradients(model, batches, dataset))
