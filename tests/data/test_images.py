"""Every kind of image file becomes upright 8-bit RGB; every broken one becomes one sentence."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_densepred.data import ImageError, load_image

pytestmark = pytest.mark.backend_free


@pytest.fixture
def picture():
    """`(24, 32, 3)` uint8, smooth, different in every corner and channel."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 7, y * 9, 255 - x * 4 - y * 4], axis=-1).astype(np.uint8)


def gray_of(picture):
    return np.asarray(Image.fromarray(picture).convert("L"))


def png_bytes(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(9))
def test_exif_orientation_is_obeyed(tmp_path, picture, orientation):
    stored = Image.fromarray(picture)
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)
    exif = Image.Exif()
    if undo:
        exif[0x0112] = undo
        stored.info["exif"] = exif.tobytes()
        stored = ImageOps.exif_transpose(stored)
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif.tobytes())
    np.testing.assert_array_equal(load_image(path), picture)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "jpg", "dat"])
def test_content_decides_the_format_not_the_name(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(png_bytes(picture))
    image = load_image(str(path))
    np.testing.assert_array_equal(image, picture)
    assert image.dtype == np.uint8
    assert image.flags.writeable


def test_gray_and_one_bit(tmp_path, picture):
    gray = gray_of(picture)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(load_image(tmp_path / "gray.png"), gray[:, :, None].repeat(3, 2))
    bits = gray > 128
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_image(tmp_path / "bits.png")[:, :, 1], bits * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_over_white(tmp_path, picture, mode):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 128, 255
    image = Image.fromarray(picture).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    opaque = picture if mode == "RGBA" else gray_of(picture)[:, :, None].repeat(3, 2)
    share = alpha[:, :, None] / 255.0
    expected = opaque * share + 255 * (1 - share)
    loaded = load_image(tmp_path / "a.png")
    assert np.abs(loaded - expected).max() <= 1
    np.testing.assert_array_equal(loaded[:, 16:], opaque[:, 16:])
    assert (loaded[:, :8] == 255).all()


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0])])
def test_palette_with_and_without_transparency(tmp_path, transparency):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).convert("P")
    image.putpalette([0, 0, 0, 10, 0, 0, 0, 20, 0, 0, 0, 30, 40, 40, 40, 50, 0, 50])
    expected = np.array(
        [[[0, 0, 0], [10, 0, 0], [0, 20, 0]], [[0, 0, 30], [40, 40, 40], [50, 0, 50]]], np.uint8
    )
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(load_image(tmp_path / "p.png"), expected)
    image.save(tmp_path / "t.png", transparency=transparency)
    expected[1, 0] = 255
    np.testing.assert_array_equal(load_image(tmp_path / "t.png"), expected)


def test_cmyk_jpeg_has_the_colours_of_its_rgb_form(tmp_path):
    """Adobe's inverted ink values, as every CMYK JPEG in the wild has them."""
    patches = np.zeros((32, 64, 3), np.uint8)
    patches[:, :32], patches[:, 32:] = (230, 30, 40), (20, 160, 220)
    Image.fromarray(patches).convert("CMYK").save(tmp_path / "c.jpg", quality=98)
    with Image.open(tmp_path / "c.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(load_image(tmp_path / "c.jpg").astype(int) - patches).max() < 8


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_is_scaled_from_its_full_range(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65534, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(path), expected[:, :, None].repeat(3, 2))


def png_16_bit(colour_type, pixels, extra=b""):
    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def test_16_bit_rgb_and_colour_key(tmp_path):
    rgb = np.array([[[0, 32896, 65535], [65535, 257, 0]]], np.uint16)
    (tmp_path / "rgb.png").write_bytes(png_16_bit(2, rgb))
    np.testing.assert_array_equal(load_image(tmp_path / "rgb.png"), rgb >> 8)
    key = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 1000)
    key += struct.pack(">I", zlib.crc32(key[4:]))
    gray = np.array([[1000, 1001, 65535, 0]], np.uint16)
    (tmp_path / "key.png").write_bytes(png_16_bit(0, gray, key))
    np.testing.assert_array_equal(load_image(tmp_path / "key.png")[0, :, 0], [255, 4, 255, 0])


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_first_frame_of_many(tmp_path, suffix):
    frames = [Image.new("L", (5, 4), value) for value in (10, 90, 200)]
    path = tmp_path / f"many.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(path), np.full((4, 5, 3), 10, np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (2, 640), (640, 1)])
def test_extreme_sizes(tmp_path, shape):
    Image.new("RGB", shape[::-1], (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (*shape, 3)


def test_damaged_exif_of_a_readable_file_does_not_warn(tmp_path, picture):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2)
    exif += struct.pack("<HHII", 0x0110, 2, 90000, 70000)  # a text far outside the block
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, exif=exif)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.getexif()
    assert seen, "the file was meant to make Pillow warn"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).shape == picture.shape


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 7).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a\.tiff has .* pixels, whose range is not defined"):
        load_image(tmp_path / "a.tiff")


def broken_files(picture):
    png = png_bytes(picture)
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        jpeg, "jpeg"
    )
    jpeg = jpeg.getvalue()
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00"
    gif += b"\x2c" + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\x00\x02\x02\x4c\x01\x00\x3b"
    garbled = png[:60] + bytes(20) + png[80:]
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is not an image", "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "damaged"),
        "header_only.png": (png[:20], "damaged"),
        "garbled.png": (garbled, "damaged"),
        "bomb.gif": (gif, "safety limit"),
        "no_width.gif": (b"GIF89a\0\0\x05\0\0\0\0" + b"\x2c" + bytes(10), "damaged"),
        "cut.tiff": (b"II*\0\x08\0\0\0\x05\0", "damaged"),
        "cut.bmp": (b"BM" + bytes(10), "damaged"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "empty.jpg",
        "text.jpg",
        "half.jpg",
        "half.png",
        "header_only.png",
        "garbled.png",
        "bomb.gif",
        "no_width.gif",
        "cut.tiff",
        "cut.bmp",
    ],
)
def test_broken_files_get_one_sentence(tmp_path, picture, name):
    content, fault = broken_files(picture)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=fault) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert not re.search(r"\. [A-Z]|\n", message), "one sentence"


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nope\.jpg does not exist"):
        load_image(tmp_path / "nope.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_every_cut_of_a_file_loads_or_names_itself(tmp_path, picture):
    """Whatever the byte at which a copy broke off, nothing but ImageError comes out."""
    path = tmp_path / "cut"
    for save in ("png", "jpeg", "gif", "tiff", "bmp", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, save)
        content = buffer.getvalue()
        for end in range(0, len(content), max(1, len(content) // 60)):
            path.write_bytes(content[:end])
            try:
                assert load_image(path).shape == picture.shape
            except ImageError as error:
                assert str(path) in str(error)


def jpeg_bytes(picture, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 60},
        {"quality": 95, "subsampling": 0},
        {"quality": 95, "subsampling": 1},
        {"optimize": True, "restart_marker_rows": 1},
        {"progressive": True},
        {"keep_rgb": True},
        {"comment": b"\xff\xd9\xff\xda"},
    ],
)
@pytest.mark.parametrize("kind", ["RGB", "L"])
def test_jpeg_has_the_pixels_that_pillow_reads(tmp_path, options, kind):
    shape = (37, 51, 3) if kind == "RGB" else (37, 51)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg_bytes(noise, **options))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_image(path), expected)


def test_a_damaged_jpeg_is_treated_as_pillow_does(tmp_path):
    # OpenCV alone fills what is missing with gray, and never says so.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = jpeg_bytes(noise, quality=90)
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged.jpg"
    outcomes = set()
    for attempt in range(150):
        content = bytearray(whole)
        if attempt % 3 == 0:
            content[rng.integers(2, len(content))] = rng.integers(256)
        elif attempt % 3 == 1:
            content[rng.integers(700, len(content) - 2)] = 255  # often the start of a marker
        else:
            content = content[: rng.integers(700, len(content))] + whole[-2:]
        path.write_bytes(content)
        try:
            with Image.open(path) as image:
                expected = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError):
            expected = None
        outcomes.add(expected is None)
        if expected is None:
            with pytest.raises(ImageError, match=r"damaged\.jpg"):
                load_image(path)
        else:
            np.testing.assert_array_equal(load_image(path), expected)
    assert outcomes == {True, False}
