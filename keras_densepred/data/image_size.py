"""How large images are, from the first bytes of their files."""

from __future__ import annotations

import io
import os

from keras_densepred._optional import require
from keras_densepred.data.image_files import ImageError, explained, read_content

_FIRST_BYTES = 2048  # of a file, in which most JPEGs say their size
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = range(5, 9)  # orientations that exchange height and width
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # JPEG's markers with a size
_WITHOUT_EXIF = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE})  # tables, JFIF, Adobe, comments


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads the size that `load_image` gives an image, without decoding it.

    Plain JPEG and PNG files take 15 microseconds each, others are opened by Pillow.

    Args:
        path: the file.

    Returns:
        Height and width in pixels, an EXIF orientation applied.

    Raises:
        ImageError: if it is missing, unreadable or no image file.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            start = os.read(descriptor, _FIRST_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        start = b""
    size = _size_of_jpeg(start) or _size_of_png(start)
    return size or _size_by_pillow(name)


def _size_of_jpeg(start: bytes) -> tuple[int, int] | None:
    """Of a JPEG that says its size in its first bytes, and has nothing that could turn it."""
    if start[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(start) and start[position] == 0xFF:
        marker = start[position + 1]
        if marker in _FRAMES:
            height = int.from_bytes(start[position + 5 : position + 7], "big")
            width = int.from_bytes(start[position + 7 : position + 9], "big")
            return (height, width) if height and width else None
        if marker not in _WITHOUT_EXIF:
            return None
        position += 2 + int.from_bytes(start[position + 2 : position + 4], "big")
    return None


def _size_of_png(start: bytes) -> tuple[int, int] | None:
    """Of a PNG whose pixels begin in its first bytes, with nothing before that could turn it."""
    if start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
        return None
    before, found, _ = start.partition(b"IDAT")
    if not found or any(word in before for word in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
        return None
    width, height = (int.from_bytes(start[place : place + 4], "big") for place in (16, 20))
    return (height, width) if height and width else None


def _size_by_pillow(name: str) -> tuple[int, int]:
    image_module = require("PIL.Image", "data")
    content = read_content(name)
    with explained(content, name), image_module.open(io.BytesIO(content)) as image:
        is_turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
        return image.size if is_turned else image.size[::-1]


def size_or_pixel(path: str) -> tuple[int, int]:
    """`upright_size`, or 1 x 1 for a file that will be reported when it is to be decoded."""
    try:
        return upright_size(path)
    except ImageError:
        return 1, 1
