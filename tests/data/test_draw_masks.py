"""Labels have their colours in the picture and in the legend."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.drawing.semantic import draw_legend, draw_semantic, label_colour

pytestmark = pytest.mark.backend_free

NAMES = ("background", "cat", "dog")


def test_classes_are_tinted_and_the_background_is_not():
    image = np.full((2, 4, 3), (200, 100, 50), np.uint8)
    semantic = np.array([[0, 1, 2, 255]] * 2)
    drawn = draw_semantic(image, semantic, NAMES)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == (200, 100, 50)).all(), "drawn on a copy"
    gray = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(drawn[0, 0], gray, atol=1)
    for column, label in ((1, 1), (2, 2), (3, data.IGNORE_LABEL)):
        tint = 0.6 * np.array(label_colour(label, NAMES)) + 0.4 * gray
        np.testing.assert_allclose(drawn[0, column], tint, atol=1)


def test_a_first_class_of_another_name_is_tinted():
    assert label_colour(0, NAMES) is None
    assert label_colour(0, ("cat", "dog")) is not None


def test_the_legend_has_the_colours_and_takes_lines_as_needed():
    one = draw_legend([0, 1, 2, 255], NAMES, 600)
    assert one.shape[1:] == (600, 3)
    colours = {tuple(pixel) for pixel in one.reshape(-1, 3).tolist()}
    for label in (1, 2, 255):
        tint = 0.6 * np.array(label_colour(label, NAMES)) + 0.4 * 128
        assert tuple(tint.astype(int).tolist()) in colours
    narrow = draw_legend([0, 1, 2, 255], NAMES, 120)
    assert narrow.shape[0] > one.shape[0] and narrow.shape[1] == 120
    assert draw_legend([], NAMES, 100).shape[1] == 100


def test_colours_are_the_data_sets_where_it_has_some():
    colours = ((0, 0, 0), (200, 10, 20), (128, 128, 128))
    assert label_colour(0, NAMES, colours) is None
    assert label_colour(1, NAMES, colours) == (200, 10, 20)
    # Gray would be taken for the background, which stays as it is; without one it may stay.
    assert label_colour(2, NAMES, colours) == label_colour(2, NAMES)
    assert label_colour(2, ("cat", "dog", "pole"), colours) == (128, 128, 128)
    image, semantic = np.full((1, 2, 3), 100, np.uint8), np.array([[1, 0]])
    drawn = draw_semantic(image, semantic, NAMES, colours)
    np.testing.assert_allclose(drawn[0, 0], 0.6 * np.array((200, 10, 20)) + 40, atol=1)
    legend = draw_legend([1], NAMES, 200, colours)
    tint = np.round(0.6 * np.array((200, 10, 20)) + 0.4 * 128)
    assert (np.abs(legend - tint).max(axis=-1) <= 1).any()
