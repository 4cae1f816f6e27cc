"""Samples of maps at points against plain NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.point_samples import labels_at_points, sample_points


def tensors(*arrays):
    return [ops.convert_to_tensor(array) for array in arrays]


def plain(maps, points):
    """One point and one neighbour at a time."""
    batch, height, width, channels = maps.shape
    out = np.zeros((batch, points.shape[1], channels))
    for b in range(batch):
        for p, (x, y) in enumerate(points[b].astype(np.float64)):
            u, v = x * width - 0.5, y * height - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            for row in (top, top + 1):
                for column in (left, left + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(v - row)) * (1 - abs(u - column))
                        out[b, p] += share * maps[b, row, column]
    return out


def test_bilinear_with_zeros_outside():
    """Catches corners for centres, (y, x), clamped borders, and the rows of another image."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 5, 4)).astype("float32")
    points = rng.uniform(-0.3, 1.3, (2, 40, 2)).astype("float32")
    points[0, :4] = [[0, 0], [1, 1], [0.1, 0.5], [-7, 1e6]]
    found = ops.convert_to_numpy(sample_points(*tensors(maps, points)))
    np.testing.assert_allclose(found, plain(maps, points), atol=1e-5)


@pytest.mark.backend_free
def test_bytes_become_floats():
    maps = np.eye(4, dtype="uint8")[None, :, :, None]
    centres = (np.arange(4, dtype="float32") + 0.5) / 4
    points = np.stack([centres, centres[::-1]], axis=-1)[None]
    assert not ops.convert_to_numpy(sample_points(*tensors(maps, points))).any()
    points = np.stack([centres, centres], axis=-1)[None]
    found = ops.convert_to_numpy(sample_points(*tensors(maps, points)))
    assert found.dtype == np.float32 and (found == 1).all()


def test_labels_of_the_pixels_that_points_lie_in():
    labels = np.arange(2 * 3 * 5, dtype="uint8").reshape(2, 3, 5)
    points = np.array([[[0, 0], [0.39, 0.34], [0.41, 0.99], [1, 1]]] * 2, "float32")
    found = ops.convert_to_numpy(labels_at_points(*tensors(labels, points)))
    np.testing.assert_array_equal(found, [[0, 6, 12, 14], [15, 21, 27, 29]])
