"""`tools/timing/detections.py` on a few anchors: its rows, and that its data is a detector's."""

import numpy as np
import pytest

from tools.timing import detections


@pytest.mark.slow_on("jax", "tensorflow")
def test_rows_of_a_small_measurement():
    rows = detections.measure_detections(images=2, anchors=700, classes=3, repeats=2)
    assert [row["what"] for row in rows] == ["decode boxes", "nms", "decode + nms"]
    for row in rows:
        assert (row["images"], row["anchors"], row["classes"]) == (2, 700, 3)
        assert 0 < row["ms_min"] <= row["ms_median"]


@pytest.mark.backend_free
def test_few_logits_pass_the_threshold():
    corner = np.random.default_rng(0).uniform(0, 200, (3000, 2))
    grid = np.concatenate([corner, corner + 40], -1)
    deltas, logits = detections.detector_outputs(grid, images=2, classes=5)
    assert deltas.shape == (2, 3000, 4) and logits.shape == (2, 3000, 5)
    assert deltas.dtype == logits.dtype == np.float32
    above = (logits > -2.94).sum(axis=(1, 2))
    assert (above > detections.OBJECTS).all() and (above < 1500).all()
