"""Image files to arrays: upright 8-bit RGB, or one sentence that says why not."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from keras_densepred._optional import require

if TYPE_CHECKING:
    from PIL import Image

_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
_START_OF_PNG, _END_OF_PNG = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_START_BYTES = 16  # of a file, enough to recognise the format
_OTHER_STARTS = (b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_BOX = slice(4, 8)  # where MPEG-4's container (HEIC, AVIF) says `ftyp`
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # restart markers are part of the pixels
_ORIENTATION = 0x0112  # the EXIF tag
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


OnBadImage = Literal["raise", "skip"]
"""What to do about an image that cannot be used: stop and name it, or go on and count it."""


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and what is wrong with it."""


def check_on_bad_image(on_bad_image: OnBadImage) -> None:
    """Refuses any other word."""
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f'`on_bad_image` must be "raise" or "skip", and is {on_bad_image!r}.')


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file the way a person would see it in a viewer.

    - An EXIF orientation is applied.
    - Transparency (RGBA, LA, palette or colour-key) is composited over white, as on a page.
    - Gray, 1-bit, palette, CMYK (Adobe's inverted kind included) and YCbCr become RGB.
    - 16-bit channels are scaled from their full range: 65535 becomes 255.
    - Of an animation or a multi-page file the first frame is read.

    The content decides the format, not the file's suffix. Requires Pillow and OpenCV, extra `data`.

    Args:
        path: the file.

    Returns:
        `(H, W, 3)` uint8, RGB.

    Raises:
        ImageError: if the file is missing, empty, not an image, damaged, cut off, larger than
            Pillow's safety limit, or has pixels without a defined range (32-bit, float).
    """
    name = os.fspath(path)
    return decode_image(read_content(name), name)


def read_content(name: str) -> bytes:
    """Reads the bytes of an image file, with `load_image`'s errors."""
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image file.") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read by this user: check its permissions.") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error


def decode_image(
    content: bytes, name: str, *, upright: bool = True, reduction: int = 1
) -> np.ndarray:
    """Decodes the content of an image file, by the rules of `load_image`.

    Args:
        content: the file's bytes.
        name: what messages call it.
        upright: whether to apply an EXIF orientation; False gives the pixels as stored.
        reduction: 1, 2, 4 or 8: a JPEG is decoded to an image this many times smaller, which is
            faster; files of other formats keep their size.

    Returns:
        `(H, W, 3)` uint8, RGB; of a reduced JPEG `(ceil(H / reduction), ceil(W / reduction), 3)`.

    Raises:
        ImageError: if it cannot be decoded.
    """
    image_module = require("PIL.Image", "data")
    file = io.BytesIO(content)
    with explained(content, name), image_module.open(file) as image:
        pixels = _decode_jpeg(content, image, file.tell(), upright, reduction)
        if pixels is not None:
            return pixels
        if reduction > 1:
            image.draft(image.mode, (image.width // reduction, image.height // reduction))
        return _to_rgb(image, name, upright)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImage:
    """A JPEG that is not decoded yet, so that it can be decoded to as much as a crop needs.

    Made by `open_image`.

    Args:
        content: the file's bytes.
        name: what messages call it.
        shape: `(H, W, 3)` of the image when it is decoded in full.
    """

    content: bytes
    name: str
    shape: tuple[int, int, int]

    dtype = np.dtype(np.uint8)

    def decode(self, reduction: int = 1) -> np.ndarray:
        """Decodes as `decode_image` does."""
        return decode_image(self.content, self.name, reduction=reduction)


def open_image(content: bytes, name: str) -> EncodedImage | np.ndarray:
    """Reads a JPEG's header and leaves its pixels for later; decodes other formats at once.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Returns:
        An `EncodedImage`, or `(H, W, 3)` uint8, RGB.

    Raises:
        ImageError: if it is not an image file.
    """
    if not content.startswith(_START_OF_JPEG):
        return decode_image(content, name)
    image_module = require("PIL.Image", "data")
    with explained(content, name), image_module.open(io.BytesIO(content)) as image:
        # Orientations 5 to 8 exchange height and width.
        is_turned = image.getexif().get(_ORIENTATION, 1) in range(5, 9)
        height, width = image.size if is_turned else image.size[::-1]
        return EncodedImage(content, name, (height, width, 3))


def check_header(path: str | os.PathLike[str]) -> None:
    """Refuses a file that does not begin like an image file; reads a few bytes of most.

    Args:
        path: the file.

    Raises:
        ImageError: if it is missing, unreadable, empty or no image file.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        start = b""
    if not start.startswith((_START_OF_JPEG, _START_OF_PNG)):
        stored_size(read_content(name), name)


def check_whole(path: str | os.PathLike[str]) -> None:
    """Refuses a JPEG or PNG that breaks off, and what `check_header` does.

    Reads the first and last bytes of a file that ends as its format does. Any other, cut off or
    with something behind its pixels, is searched for that end, and decoded where there is none:
    what can be read all the same is not refused.

    Args:
        path: the file.

    Raises:
        ImageError: as `check_header`, or if the pixels of a JPEG or PNG cannot be read to the end.
    """
    name = os.fspath(path)
    check_header(name)
    with open(name, "rb") as file:
        start = file.read(_START_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END_OF_PNG)))
        last = file.read()
    is_jpeg = start.startswith(_START_OF_JPEG)
    end = _END_OF_JPEG if is_jpeg else _END_OF_PNG
    if last.endswith(end) or not (is_jpeg or start.startswith(_START_OF_PNG)):
        return
    content = read_content(name)
    if content.find(end, _start_of_pixels(content, name) if is_jpeg else 0) < 0:
        decode_image(content, name)


def _start_of_pixels(content: bytes, name: str) -> int:
    """Where a JPEG's pixels begin; a thumbnail before them is a JPEG with an end of its own."""
    image_module = require("PIL.Image", "data")
    file = io.BytesIO(content)
    with explained(content, name), image_module.open(file):
        return file.tell()


def begins_like_an_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file of any name has the first bytes of a common image format."""
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    if start.startswith((_START_OF_JPEG, _START_OF_PNG, *_OTHER_STARTS)):
        return True
    is_webp = start.startswith(b"RIFF") and start[8:12] == b"WEBP"
    return is_webp or _is_heif(start)


def _is_heif(start: bytes) -> bool:
    """Whether a file is of the family of HEIC and AVIF, not a film in the same container."""
    return start[_BOX] == b"ftyp" and start[8:12] in (
        *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis"),
    )


def _decode_jpeg(
    content: bytes, image: Image.Image, start: int, upright: bool, reduction: int
) -> np.ndarray | None:
    """The same pixels from OpenCV, for the plain JPEG files that most photos are.

    Both call libjpeg-turbo and agreed in every byte of 1139 photos, but Pillow keeps four bytes per
    pixel and copies them twice: images of COCO take 3.1 ms here and 3.6 ms there. Pillow has read
    the header before, and so decides what is accepted.

    Args:
        content: the file's bytes.
        image: the same file opened, not decoded, by Pillow.
        start: how far Pillow has read for that: up to the pixels.
        upright: as in `decode_image`.
        reduction: as in `decode_image`.

    Returns:
        `(H, W, 3)` uint8, RGB, or None where Pillow has to decode: other formats and colour
        spaces, progressive files, an EXIF rotation, and files that are cut off or have something
        else between their pixels, which OpenCV fills with gray.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    marker = _JPEG_MARKER.search(content, start)
    if marker is None or content[marker.start() :] != _END_OF_JPEG:
        return None
    if upright and image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    cv2 = require("cv2", "data")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if reduction > 1:
        # The bits of the reduction alone; OpenCV's names for it come with gray or with BGR.
        flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduction}")
    # What OpenCV cannot read, by error or by None, Pillow reads or explains.
    with contextlib.suppress(cv2.error):
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return None


def stored_size(content: bytes, name: str) -> tuple[int, int]:
    """Reads an image's size from its header, without decoding it or applying EXIF.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Returns:
        Height and width in pixels.

    Raises:
        ImageError: if it is not an image file.
    """
    image_module = require("PIL.Image", "data")
    with explained(content, name), image_module.open(io.BytesIO(content)) as image:
        return image.height, image.width


@contextlib.contextmanager
def explained(content: bytes, name: str) -> Iterator[None]:
    """Turns what Pillow raises on bad content into one sentence."""
    image_module = require("PIL.Image", "data")
    _silence_metadata_warnings()
    try:
        yield
    except ImageError:
        raise
    except image_module.DecompressionBombError as error:
        limit = 2 * image_module.MAX_IMAGE_PIXELS
        raise ImageError(
            f"{name} claims more than {limit} pixels, Pillow's safety limit: if the file is to be "
            "trusted raise `PIL.Image.MAX_IMAGE_PIXELS`, otherwise remove it."
        ) from error
    except image_module.UnidentifiedImageError as error:
        fault = "is not an image file, or its header is damaged"
        if not content:
            fault = "is empty (0 bytes)"
        elif _is_heif(content[:_START_BYTES]):
            fault = "is a HEIC or AVIF image, which the installed Pillow does not read"
            raise ImageError(f"{name} {fault}: convert it to JPEG or PNG.") from error
        raise ImageError(f"{name} {fault}: replace or remove it.") from error
    # What Pillow's decoders raise on damaged content, beside OSError for most of it: SyntaxError
    # (PNG chunks), ValueError and TypeError (tags, conversions), EOFError and IndexError (cut-off
    # data), struct.error, zlib.error, OverflowError, NotImplementedError (rare compressions).
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        EOFError,
        IndexError,
        OverflowError,
        NotImplementedError,
        struct.error,
        zlib.error,
    ) as error:
        raise ImageError(
            f"{name} is damaged or of an unsupported kind ({str(error).rstrip('.')}): replace "
            "or remove it."
        ) from error


def _to_rgb(image: Image.Image, name: str, upright: bool) -> np.ndarray:
    if upright:
        require("PIL.ImageOps", "data").exif_transpose(image, in_place=True)
    # Pillow before 11.3 gives 16-bit gray PNG the mode of 32-bit integers.
    if image.mode in _MODES_16_BIT or (image.mode == "I" and image.format == "PNG"):
        gray = np.asarray(image).astype(np.uint32)
        pixels = ((gray * 255 + 32767) // 65535).astype(np.uint8)
        if "transparency" in image.info:
            pixels[gray == image.info["transparency"]] = 255
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise ImageError(
            f"{name} has {kind} pixels, whose range is not defined: convert it to 8 or 16 bits."
        )
    if image.has_transparency_data:
        image_module = require("PIL.Image", "data")
        image = image.convert("RGBA")
        image = image_module.alpha_composite(image_module.new("RGBA", image.size, "white"), image)
    # A copy, because arrays that Pillow hands out are read-only.
    return np.array(image.convert("RGB"))


def _silence_metadata_warnings() -> None:
    """Keeps odd EXIF and TIFF tags of readable files from warning once per file.

    A filter that stays, and not `warnings.catch_warnings`: that is not safe where several threads
    decode, and entering it makes every other once-only warning of the process show again.
    """
    module = r"PIL\.TiffImagePlugin"
    patterns = (getattr(entry[3], "pattern", None) for entry in warnings.filters)
    if module not in patterns:
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
