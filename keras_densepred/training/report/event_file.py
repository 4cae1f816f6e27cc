"""Numbers in the form that TensorBoard reads, without TensorFlow or TensorBoard.

A file is a sequence of records, each with its length and masked CRC-32C sums before and behind it;
a record is an `Event` of TensorBoard's protocol buffers (`tensorboard/compat/proto/event.proto`,
`summary.proto`), of which four fields are written.
"""

import struct
from collections.abc import Mapping

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected


def _make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def event_file(step: int, wall_time: float, numbers: Mapping[str, float]) -> bytes:
    """A whole file with the numbers of one step.

    Args:
        step: from 0.
        wall_time: seconds since 1970.
        numbers: by their tags.
    """
    version = _double(1, wall_time) + _bytes(3, b"brain.Event:2")
    summary = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in numbers.items()
    )
    event = _double(1, wall_time) + _key(2, 0) + _varint(step) + _bytes(5, summary)
    return _record(version) + _record(event)


def crc32c(content: bytes) -> int:
    """The CRC-32C sum (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def _masked(content: bytes) -> bytes:
    value = crc32c(content)
    rotated = (value >> 15 | value << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content
