"""Drawn boxes are where they belong, in the colour of their class."""

import numpy as np
import pytest

from keras_densepred.data.drawing.objects import class_colour, draw_objects
from keras_densepred.data.drawing.semantic import with_legend
from keras_densepred.data.drawing.tags import place_tags

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


def overlap(one, two):
    low, high = np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])
    return np.prod(np.clip(high - low, 0, None))


@pytest.mark.parametrize("seed", range(5))
def test_names_are_on_the_canvas_and_on_no_other_name_or_small_box(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform((0, 0), (500, 350), (60, 2))
    boxes = np.concatenate([low, low + rng.choice([12, 40, 150], (60, 1))], axis=1)
    sizes = [(float(width), 14.0) for width in rng.integers(20, 80, 60)]
    places = place_tags(boxes, sizes, (640, 480))
    tags = [
        np.array([*place, place[0] + width, place[1] + height])
        for place, (width, height) in zip(places, sizes, strict=True)
        if place is not None
    ]
    assert len(tags) > 30
    for number, tag in enumerate(tags):
        assert (tag >= 0).all() and tag[2] <= 640 and tag[3] <= 480
        assert not any(overlap(tag, other) for other in tags[:number])
        for box in boxes[boxes[:, 2] - boxes[:, 0] == 12]:
            assert overlap(tag, box) <= 0.35 * 12**2


def test_a_name_stands_above_its_box_where_there_is_room():
    boxes = np.array([[100, 100, 200, 200], [100, 300, 200, 400]], float)
    assert place_tags(boxes, [(50, 10)] * 2, (640, 480)) == [(100, 90), (100, 290)]
    (inside,) = place_tags(np.array([[0, 0, 640, 480]], float), [(50, 10)], (640, 480))
    assert inside == (0, 0)
    assert place_tags(np.zeros((0, 4)), [], (640, 480)) == []


def test_a_legend_does_not_push_a_small_picture_aside():
    names = ("background", "a class with a long name", "another one with a long name")
    picture = np.full((64, 48, 3), 90, np.uint8)
    drawn = with_legend(picture, [0, 1, 2], names)
    assert drawn.shape[1] == 8 * 48
    below = drawn[-8 * 64 :]
    assert (below == 90).all(), "the picture, enlarged"
    assert len(drawn) - len(below) <= 3 * 26 < 0.2 * len(drawn)
    tall = with_legend(np.full((600, 60, 3), 90, np.uint8), [1], names)
    assert tall.shape[1] == 256 and (tall[-1, 60:] == 255).all()
