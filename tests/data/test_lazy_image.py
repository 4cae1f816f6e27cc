"""A lazy image is, when drawn, what its steps give one after the other."""

import cv2
import numpy as np
import pytest

from keras_densepred.data.augment.lazy_image import LazyImage

pytestmark = pytest.mark.backend_free

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
RECTANGLES = np.array([[3, 2, 20, 9], [15, 5, 29, 23]])


def paste(image, other=NOISE[::-1]):
    return image.paste(LazyImage.of(other), RECTANGLES)


def pasted(image, other=NOISE[::-1]):
    image = image.copy()
    for x1, y1, x2, y2 in RECTANGLES:
        image[y1:y2, x1:x2] = other[y1:y2, x1:x2]
    return image


def padded(image, height, width, color):
    out = np.full((height, width, 3), color, np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


STEPS = {
    "resize": (
        lambda image: image.resize(47, 61),
        lambda array: cv2.resize(array, (61, 47), interpolation=cv2.INTER_LINEAR),
    ),
    "cut": (
        lambda image: image.cut(1, 2, image.shape[0] - 3, image.shape[1] - 5)[0],
        lambda array: array[1:-2, 2:-3],
    ),
    "mirror": (lambda image: image.mirror(), lambda array: array[:, ::-1]),
    "pad": (
        lambda image: image.pad(70, 80, (9, 8, 7)),
        lambda array: padded(array, 70, 80, (9, 8, 7)),
    ),
    "paste": (
        lambda image: paste(image, np.resize(NOISE, image.shape)),
        lambda array: pasted(array, np.resize(NOISE, array.shape)),
    ),
}


@pytest.mark.parametrize(
    "names",
    [
        "cut mirror pad",
        "resize mirror pad",
        "mirror resize pad mirror",
        "pad cut mirror",
        "resize pad resize",
        "mirror mirror cut",
        "cut cut",
        "pad resize mirror pad",
        "resize mirror",
        "",
    ],
)
@pytest.mark.parametrize("end", ["", " paste", " paste mirror", " paste paste"])
def test_any_order_of_steps_is_done_in_that_order(names, end):
    image, array = LazyImage.of(NOISE), NOISE
    before = NOISE.copy()
    for name in (names + end).split():
        lazy, plain = STEPS[name]
        image, array = lazy(image), plain(array)
        assert image.shape == array.shape and image.dtype == array.dtype
    np.testing.assert_array_equal(image.draw(), array)
    table = np.random.default_rng(1).random((1, 256, 3), np.float32)
    out = np.full((90, 99, 3), -1, np.float32)
    height, width = array.shape[:2]
    image.draw_into(out[:height, 7 : 7 + width], table)
    np.testing.assert_array_equal(out[:height, 7 : 7 + width], table[0][array, np.arange(3)])
    assert (out[height:] == -1).all() and (out[:, :7] == -1).all()
    np.testing.assert_array_equal(NOISE, before)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("second", ["cut", "enlarged", "shrunk", "pasted"])
def test_of_a_pasted_image_everything_is_pasted_that_a_full_drawing_has(mirror, second):
    other = LazyImage.of(NOISE)
    if second == "cut":
        other = other.cut(1, 2, 25, 30)[0]
    elif second == "enlarged":
        other = other.resize(90, 120).cut(31, 11, 50, 60)[0]
    elif second == "shrunk":
        other = other.resize(7, 9)  # most of the rectangles lie in the padding
    if mirror:
        other = other.mirror()
    other = other.pad(50, 60, (1, 2, 3))
    if second == "pasted":
        other = paste(other, np.resize(NOISE, other.shape))
    ground = np.zeros((50, 60, 3), np.uint8)
    mixed = LazyImage.of(ground).paste(other, RECTANGLES).draw()
    np.testing.assert_array_equal(mixed, pasted(ground, other.draw()))
    assert (ground == 0).all()


@pytest.mark.parametrize("scale", [1.7, 3.2, 0.6])
def test_a_cut_of_a_resized_image_begins_where_it_says(scale):
    # The value of a pixel tells its place in the source.
    y, x = np.mgrid[0:120, 0:160].astype(np.float64)
    source = np.stack([y * 2, x * 1.5, y + x * 0.8], axis=-1).astype(np.uint8)
    height, width = round(120 * scale), round(160 * scale)
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows, columns = (int(rng.integers(8, side + 1)) for side in (height, width))
        top = int(rng.integers(height - rows + 1))
        left = int(rng.integers(width - columns + 1))
        image, (above, before) = (
            LazyImage.of(source).resize(height, width).cut(top, left, rows, columns)
        )
        assert image.shape == (rows, columns, 3)
        assert top - scale < above <= top + 1e-6 and left - scale < before <= left + 1e-6
        drawn = image.draw()
        assert drawn.shape == image.shape
        places = (np.arange(rows)[:, None] + above + 0.5) / height * 120 - 0.5
        inside = slice(int(scale) + 1, -int(scale) - 1)  # borders repeat the last pixel
        error = drawn[inside, :, 0] - (places[inside] * 2)
        assert abs(error).max() < 1.5
        places = (np.arange(columns)[None] + before + 0.5) / width * 160 - 0.5
        error = drawn[:, inside, 1] - (places[:, inside] * 1.5)
        assert abs(error).max() < 2
