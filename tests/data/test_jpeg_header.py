"""What is read of a JPEG without Pillow is what Pillow reads, or nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_densepred.data import image_files
from keras_densepred.data.jpeg_header import plain_header

pytestmark = pytest.mark.backend_free

NOISE = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)


def jpeg(image=NOISE, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def as_pillow_reads(content):
    """Height, width and start of the pixels, of a JPEG that Pillow finds nothing special in."""
    file = io.BytesIO(content)
    with Image.open(file) as image:
        assert image.format == "JPEG" and image.mode in ("RGB", "L")
        assert image.getexif().get(0x0112, 1) == 1
        return *image.size[::-1], file.tell()


PLAIN = [
    jpeg(),
    jpeg(quality=95, subsampling=0),
    jpeg(mode="L"),
    jpeg(optimize=True, restart_marker_rows=1),
    jpeg(comment=b"\xff\xd9\xff\xda"),
    jpeg(dpi=(72, 72)),
]
OTHERS = {
    "progressive": jpeg(progressive=True),
    "four colours": jpeg(mode="CMYK"),
    "rotated": jpeg(exif=rotated()),
    "colour profile": jpeg(icc_profile=b"profile"),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "nothing": b"",
    "start alone": b"\xff\xd8\xff",
}


@pytest.mark.parametrize("content", PLAIN)
def test_a_plain_header(content):
    assert plain_header(content) == as_pillow_reads(content)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_pillow(name):
    assert plain_header(OTHERS[name]) is None


def test_whatever_is_accepted_pillow_reads_alike():
    rng = np.random.default_rng(1)
    accepted = 0
    for attempt in range(6000):
        content = bytearray(PLAIN[attempt % len(PLAIN)])
        header = plain_header(bytes(content)).start
        for _ in range(1 + attempt % 2):
            place = int(rng.integers(header))
            content[place] = rng.choice([0, 1, 255, rng.integers(256)])
        if attempt % 5 == 0:
            content = content[: rng.integers(header + 3)]
        found = plain_header(bytes(content))
        if found is not None:
            accepted += 1
            assert found == as_pillow_reads(bytes(content))
    assert accepted > 1000


def test_too_large_for_pillow_is_not_plain(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 51)
    assert image_files._allowed_header(PLAIN[0]) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 51 - 1)
    assert image_files._allowed_header(PLAIN[0]) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_files._allowed_header(PLAIN[0]) is not None
