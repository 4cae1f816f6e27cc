"""The measurement of opening large trees of data, on a small one."""

import sys

import pytest

from tools.timing.reading import measure_reading

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters of memory"),
]


@pytest.mark.parametrize("points", [0, 8])
def test_rows(points):
    rows = list(measure_reading(images=20, boxes=90, points=points, rounds=1))
    assert [row["candidate"] for row in rows] == ["least", "coco", "yolo"]
    assert rows[0]["time_over_least"] == 1.0 and all(row["seconds"] > 0 for row in rows)
    assert {(row["images"], row["boxes"], row["points"]) for row in rows} == {(20, 90, points)}
