"""Drawn boxes are where they belong, in the colour of their class."""

import numpy as np
import pytest

from keras_densepred.data.drawing.objects import class_colour, draw_objects

pytestmark = pytest.mark.backend_free

NAMES = ("cat", "dog")


def test_colours_differ_and_stay():
    colours = [class_colour(label) for label in range(24)]
    assert colours == [class_colour(label) for label in range(24)]
    assert len(set(colours)) == 24
    neighbours = np.abs(np.diff(np.array(colours), axis=0)).max(axis=1)
    assert neighbours.min() > 60


def test_a_box_is_outlined_and_the_picture_kept():
    image = np.full((600, 800, 3), 128, np.uint8)
    boxes = np.array([[100, 200, 300, 400]], np.float32)
    drawn = draw_objects(image, boxes, np.array([1]), NAMES)
    assert (image == 128).all(), "drawn on a copy"
    assert drawn.shape == image.shape
    for y, x in ((300, 100), (300, 300), (400, 200)):
        assert tuple(drawn[y, x]) == class_colour(1)
    assert (drawn[210:390, 110:290] == 128).all()
    assert (drawn[150:198, 100:140] == class_colour(1)).all(axis=2).any(), "the name's tag"


def test_small_pictures_are_enlarged_with_their_boxes():
    boxes = np.array([[10, 20, 30, 40]], np.float32)
    drawn = draw_objects(np.zeros((64, 128, 3), np.uint8), boxes, np.array([0]), NAMES)
    assert drawn.shape == (256, 512, 3)
    assert tuple(drawn[120, 40]) == class_colour(0)


def test_masks_scores_and_boxes_at_the_border():
    image = np.zeros((512, 512, 3), np.uint8)
    masks = np.zeros((2, 512, 512), bool)
    masks[0, 200:300, 200:300] = True
    drawn = draw_objects(
        image,
        np.array([[0, 0, 512, 512], [500, 505, 512, 512]], np.float32),
        np.array([0, 1]),
        NAMES,
        scores=np.array([0.5, 0.99]),
        crowd=np.array([True, False]),
        masks=masks,
    )
    assert drawn[250, 250].any()
    assert not drawn[350, 350].any()


def test_nothing_to_draw():
    image = np.full((512, 512, 3), 7, np.uint8)
    drawn = draw_objects(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), NAMES)
    np.testing.assert_array_equal(drawn, image)
