"""Masks in COCO's results: measured beside boxes, in run lengths, sent to other processes."""

import numpy as np
import pytest
from keras import ops
from pycocotools import mask as rle

from keras_densepred import data, metrics
from keras_densepred.data.boxes import cut_by_boxes
from keras_densepred.metrics import coco_results
from keras_densepred.metrics.mask_results import masks_on_image, masks_to_rle
from keras_densepred.ops.box_masks import paste_masks

pytestmark = pytest.mark.backend_free


class MaskDetector:
    """Predicts each image's objects as they are: boxes, and masks of which half is wrong."""

    def __init__(self, truth):
        self.truth = truth

    def predict_on_batch(self, images):
        return self.truth


def test_masks_are_evaluated_beside_boxes():
    dataset = data.ShapesDataset(3, 64, with_masks=True)
    plain_colours = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    batches = data.eval_batches(dataset, batch_size=3, image_size=64, **plain_colours)
    records = [dataset[i] for i in range(3)]
    most = max(len(record.labels) for record in records)
    found = {
        "boxes": np.full((3, most, 4), -1, "float32"),
        "labels": np.full((3, most), -1, "int32"),
        "confidence": np.full((3, most), -1, "float32"),
        "masks": np.zeros((3, most, 56, 56), "float32"),
    }
    for row, record in enumerate(records):
        count = len(record.labels)
        found["boxes"][row, :count] = record.boxes
        found["labels"][row, :count] = record.labels
        found["confidence"][row, :count] = 0.9
        found["masks"][row, :count] = cut_by_boxes(record.masks, record.boxes, 56)
    gathered = []

    def gather(arrays):
        gathered.append(arrays)
        return arrays

    for results in (
        metrics.evaluate_detector(MaskDetector(found), batches, dataset),
        metrics.evaluate_detector(MaskDetector(found), batches, dataset, gather=gather),
    ):
        assert results["AP"] == pytest.approx(1.0)
        assert results["mask_AP50"] == pytest.approx(1.0) and results["mask_AP"] > 0.85
    assert gathered[0]["rle_bytes"].dtype == np.uint8
    worse = {**found, "masks": found["masks"] * (np.arange(56) < 14)}
    results = metrics.evaluate_detector(MaskDetector(worse), batches, dataset)
    assert results["AP"] == pytest.approx(1.0) and results["mask_AP50"] < 0.2
    plain = data.ShapesDataset(3, 64)
    results = metrics.evaluate_detector(MaskDetector(found), batches, plain)
    assert results["AP"] == pytest.approx(1.0) and "mask_AP" not in results


def test_masks_in_run_lengths_are_those_pasted():
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(4, 7, 7))
    boxes = np.array([[2, 3, 30, 20], [-5, 10, 8, 50], [3.3, 4.4, 3.9, 5.2], [4, 4, 4, 4]])
    pasted = ops.convert_to_numpy(paste_masks(masks, boxes, 40, 33)) >= 0.5
    decoded = masks_on_image(masks, boxes, 40, 33)
    # The pasted one falls off within half a cell outside of its box, too.
    x, y = np.meshgrid(np.arange(33), np.arange(40))
    for ours, whole, (x1, y1, x2, y2) in zip(decoded, pasted, boxes, strict=True):
        inside = (x >= np.floor(x1)) & (x < np.ceil(x2)) & (y >= np.floor(y1)) & (y < np.ceil(y2))
        assert np.array_equal(ours, whole & inside)


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("has_masks", [False, True])
def test_results_arrive_in_another_process_as_they_were(number, has_masks):
    rng = np.random.default_rng(0)
    boxes = np.array([[1.5, 2, 9, 8]] * number).reshape(-1, 4)
    lengths = masks_to_rle(rng.uniform(size=(number, 4, 4)), boxes, 10, 12)
    sent = [
        {"image_id": 7, "category_id": 2, "bbox": [1.5, 2.0, 7.5, 6.0], "score": 0.25 * i}
        for i in range(number)
    ]
    if has_masks:
        for item, segmentation in zip(sent, lengths, strict=True):
            item["segmentation"] = segmentation
    assert coco_results.from_arrays(coco_results.as_arrays(sent, has_masks)) == sent


def test_a_mask_whose_box_reaches_into_the_padding_stays_in_its_place():
    """The left half of a box that is twice as wide as the image: all of the image."""
    mask = np.zeros((1, 1, 28, 28), "float32")
    mask[..., :14] = 1
    predictions = {
        "boxes": np.array([[[0, 0, 40, 20]]], "float32"),
        "labels": np.zeros((1, 1), "int32"),
        "confidence": np.ones((1, 1), "float32"),
        "masks": mask,
    }
    batch = {
        "image_ids": np.array([7]),
        "scales": np.ones((1, 2), "float32"),
        "valid": np.array([True]),
    }
    (found,) = metrics.detections_to_coco(predictions, batch, [1], {7: (20, 20)})
    assert found["bbox"] == [0, 0, 20, 20]
    assert rle.decode(found["segmentation"]).sum() > 0.95 * 20 * 20
