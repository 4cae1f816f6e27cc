"""Objects in an image's own pixels say the same as the batch that they come from."""

import numpy as np
import pytest

from keras_densepred import metrics

pytestmark = pytest.mark.backend_free


def test_objects_of_an_image_are_the_results_of_its_batch():
    predictions = {
        "boxes": np.float32([[[2, 4, 20, 30], [-3, 8, 40, 70], [-1] * 4]]),
        "labels": np.array([[1, 0, -1]]),
        "confidence": np.float32([[0.9, 0.4, -1]]),
        "masks": np.random.default_rng(0).uniform(0.3, 1, (1, 3, 7, 7)).astype("float32"),
    }
    batch = {
        "valid": np.array([True]),
        "image_ids": np.array([5]),
        "scales": np.float32([[0.5, 0.75]]),
    }
    expected = metrics.detections_to_coco(predictions, batch, (3, 7), {5: (120, 40)})
    found = metrics.detections_on_image(predictions, batch, 0, (120, 40))
    parts = (found[name] for name in ("boxes", "labels", "confidence", "masks"))
    results = metrics.objects_to_coco(5, (3, 7), *parts)
    assert len(results) == 2
    for ours, theirs in zip(results, expected, strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-4)
        assert ours["score"] == pytest.approx(theirs["score"])
        for name in ("image_id", "category_id", "segmentation"):
            assert ours[name] == theirs[name]
