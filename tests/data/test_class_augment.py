"""Augmentation of classifiers' images: Pillow and brute force agree, and chances are as said."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from keras_densepred import data
from keras_densepred.data.augment import rand_augment
from keras_densepred.data.augment.classification import evaluation_crop, resized_crop
from keras_densepred.data.image_files import ImageError, decode_image, open_image

pytestmark = pytest.mark.backend_free


def smooth(height=48, width=64):
    y, x = np.mgrid[0:height, 0:width] / (height, width)[0]
    waves = [np.sin(5 * x + 2 * y), np.cos(4 * y), np.sin(3 * x * y)]
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95, **options)
    return buffer.getvalue()


def rng(seed=0):
    return np.random.default_rng(seed)


def test_windows_have_the_area_and_the_ratio_asked_for():
    crop, generator = data.RandomResizedCrop(32), rng()
    boxes = np.array([crop.draw_box(375, 500, generator) for _ in range(4000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 500 and boxes[:, 3].max() <= 375
    share = width * height / (375 * 500)
    assert share.min() + 0.002 >= 0.08 and share.max() <= 1.0
    ratio = width / height
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35


def test_areas_are_uniform_where_every_window_fits():
    crop, generator = data.RandomResizedCrop(32, scale=(0.1, 0.5)), rng()
    boxes = np.array([crop.draw_box(400, 400, generator) for _ in range(4000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    quantiles = np.quantile(width * height / 400**2, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(quantiles, [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.015)
    assert abs(np.mean(np.log(width / height))) < 0.02
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs(middle.mean() - 200) < 5, "as often left as right"


@pytest.mark.parametrize("size", [(2, 640), (640, 2), (1, 1)])
def test_slivers_give_the_middle(size):
    crop = data.RandomResizedCrop(16, scale=(0.9, 1.0))
    x1, y1, x2, y2 = crop.draw_box(*size, rng())
    assert 0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]
    assert crop(np.zeros((*size, 3), np.uint8), rng()).shape == (16, 16, 3)


def test_a_crop_is_resized_as_pillow_does():
    image, box = smooth(), (10, 4, 58, 44)
    expected = Image.fromarray(image).crop(box).resize((24, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized_crop(image, box, (20, 24)), np.asarray(expected))
    larger = Image.fromarray(image).crop(box).resize((96, 80), Image.Resampling.BICUBIC)
    ours = resized_crop(image, box, (80, 96)).astype(int)
    assert np.abs(ours - np.asarray(larger)).max() <= 4, "another bicubic kernel when enlarging"


@pytest.mark.parametrize("side", [(40, 90), (90, 40), (50, 50)])
def test_evaluation_sees_the_middle_of_the_resized_image(side):
    image = smooth(*side)
    scale = 36 / min(side)
    resized = Image.fromarray(image).resize(
        (int(side[1] * scale + 1e-6), int(side[0] * scale + 1e-6)), Image.Resampling.BICUBIC
    )
    top, left = round((resized.height - 32) / 2), round((resized.width - 32) / 2)
    expected = np.asarray(resized)[top : top + 32, left : left + 32].astype(int)
    # 0.875 of 36.57, cut to whole pixels, as torchvision and timm do.
    difference = np.abs(evaluation_crop(image, 32, 0.875).astype(int) - expected)
    # Pillow rounds places in the picture to a few bits.
    assert difference.max() <= 2 and difference.mean() < 0.5


def test_evaluation_without_a_crop_warps():
    image = smooth(40, 90)
    expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(evaluation_crop(image, 32, None), np.asarray(expected))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_is_a_smaller_picture_of_the_same(options, reduction):
    image = smooth(101, 142)
    small = decode_image(jpeg(image, **options), "a.jpg", reduction=reduction)
    assert small.shape == (-(-101 // reduction), -(-142 // reduction), 3)
    expected = Image.fromarray(image).resize(small.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 4


def test_a_crop_of_a_large_jpeg_decodes_no_more_than_it_needs(monkeypatch):
    image = smooth(512, 768)
    encoded = open_image(jpeg(image), "a.jpg")
    asked = []
    decode = type(encoded).decode

    def watched(self, reduction=1):
        asked.append(reduction)
        return decode(self, reduction)

    monkeypatch.setattr(type(encoded), "decode", watched)
    box = (10, 20, 710, 500)
    ours = resized_crop(encoded, box, (32, 32)).astype(int)
    expected = resized_crop(decode_image(jpeg(image), "a.jpg"), box, (32, 32)).astype(int)
    assert asked == [4]
    assert np.abs(ours - expected).mean() < 1.5
    resized_crop(encoded, (0, 0, 100, 100), (64, 64))
    assert asked == [4, 1]


def test_orientation_of_an_image_not_decoded_yet():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = open_image(jpeg(smooth(48, 64), exif=exif.tobytes()), "a.jpg")
    assert encoded.shape == encoded.decode().shape == (64, 48, 3)
    assert encoded.decode(2).shape == (32, 24, 3)


def test_a_broken_header_is_named():
    with pytest.raises(ImageError, match=r"a\.jpg"):
        open_image(b"\xff\xd8\xffhello", "a.jpg")


def test_flip():
    image = smooth()
    flipped = [data.ImageFlip()(image, rng(seed)) is not image for seed in range(400)]
    assert 0.42 < np.mean(flipped) < 0.58
    np.testing.assert_array_equal(data.ImageFlip(1.0)(image, rng()), image[:, ::-1])


def test_erasing_fills_a_rectangle_with_noise():
    image = np.full((60, 80, 3), 255, np.uint8)
    before = image.copy()
    shares, erased = [], 0
    for seed in range(300):
        changed = (data.RandomErasing()(image, rng(seed)) != 255).any(2)
        erased += changed.any()
    for seed in range(300):
        changed = (data.RandomErasing(1.0)(image, rng(seed)) != 255).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed.sum() > 0.95 * height * width, "one rectangle"
        shares.append(height * width / (60 * 80))
    np.testing.assert_array_equal(image, before)
    assert 0.18 < erased / 300 < 0.32
    assert min(shares) > 0.015 and max(shares) < 0.35
    noise = data.RandomErasing(1.0, area=(0.3, 0.3), ratio=(1, 1))(image, rng())[
        (data.RandomErasing(1.0, area=(0.3, 0.3), ratio=(1, 1))(image, rng()) != 255).any(2)
    ]
    assert abs(noise[:, 0].mean() - 123.7) < 8 and 45 < noise[:, 0].std() < 62


PILLOW = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, _: ImageOps.posterize(image, 1),
    "solarize": lambda image, _: ImageOps.solarize(image, 256 - int(0.9 * 256)),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_changes_of_colour_are_those_of_pillow(name, sign):
    image = smooth()
    image[10:20, 10:20] = rng().integers(0, 256, (10, 10, 3))
    before = image.copy()
    ours = getattr(rand_augment, name)(image, 0.9, sign)
    expected = PILLOW[name](Image.fromarray(image), 1 + sign * 0.81)
    # Pillow makes whole numbers of the gray image in between, and cuts where OpenCV rounds.
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= (2 if name == "color" else 1)
    np.testing.assert_array_equal(image, before)


def test_extremes_and_means_are_those_of_numpy():
    """Which takes long for the channels of an image."""
    images = [rng().integers(low, high, (9, 13, 3), np.uint8) for low, high in [(0, 256), (7, 8)]]
    images += [rng().integers(40, 90, (30, 30, 3), np.uint8)[3:20, 5:9]]
    for image in images:
        low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
        span = np.where(high > low, high - low, 255)
        expected = (image - np.where(high > low, low, 0)) * (255 / span)
        ours = rand_augment.auto_contrast(image, 0.9, 1.0)
        np.testing.assert_array_equal(ours, np.clip(expected, 0, 255).astype(np.uint8))
        mean = np.floor(image.mean(axis=(0, 1)) @ [0.299, 0.587, 0.114] + 0.5)
        expected = np.clip(mean + (1 - 0.9 * 0.5) * (image - mean), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(rand_augment.contrast(image, 0.5, -1.0), expected)


def test_solarize_add():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    ours = rand_augment.solarize_add(image, 1.0, 1.0).reshape(-1, 3)[:, 0]
    assert (ours[:128] == np.arange(128) + 110).all() and (ours[128:] == np.arange(128, 256)).all()


def dot_at(image):
    return np.unravel_index(image[:, :, 0].argmax(), image.shape[:2])


def test_changes_of_shape_move_pixels_as_they_say():
    image = np.zeros((81, 81, 3), np.uint8)
    image[30:33, 60:63] = 255  # 9 above the middle, 21 to the right
    for name, sign, row, column in [
        ("translate_x", 1, 31, 61 - 0.45 * 81),
        ("translate_y", -1, 31 + 0.45 * 81, 61),
        ("shear_x", 1, 31, 61 - 0.3 * 31),
        ("shear_y", -1, 31 + 0.3 * 61, 61),
        ("rotate", 1, 40 - 9 * np.cos(np.pi / 6) + 21 * 0.5, 40 + 21 * np.cos(np.pi / 6) + 9 * 0.5),
    ]:
        moved = getattr(rand_augment, name)(image, 1.0, float(sign))
        # Weighed, for what comes from outside is gray.
        weight = np.where(moved[:, :, 0] > 180, moved[:, :, 0].astype(float), 0)
        found = [(weight.sum(axis) * np.arange(81)).sum() / weight.sum() for axis in (1, 0)]
        np.testing.assert_allclose(found, (row, column), atol=0.7, err_msg=name)


def test_rand_augment_changes_about_three_quarters_of_the_images_each_differently():
    image = smooth()
    image[:, :, 1] = image[:, ::-1, 0]
    results = [data.RandAugment()(image, rng(seed)) for seed in range(300)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    changed = np.mean([not np.array_equal(result, image) for result in results])
    assert 0.62 < changed < 0.82
    assert len({result.tobytes() for result in results}) > 150
    with pytest.raises(ValueError, match="magnitude"):
        data.RandAugment(magnitude=11)


def test_the_recipe_gives_images_of_the_size():
    generator = rng()
    image = smooth()
    for _ in range(20):
        result = image
        for step in data.imagenet_augmentation((24, 40)):
            result = step(result, generator)
        assert result.shape == (24, 40, 3) and result.dtype == np.uint8
    kinds = [type(step).__name__ for step in data.imagenet_augmentation(8, rand_augment=False)]
    assert kinds == ["RandomResizedCrop", "ImageFlip", "RandomErasing"]
