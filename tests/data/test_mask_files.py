"""Masks are read as they were written, or one sentence says what is wrong with them."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.mask_files import MaskFiles
from tests.data.masks import COLOURS, LABELS, write_image, write_mask

pytestmark = pytest.mark.backend_free

NAMES = ("ground", "cat", "dog")


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_the_same_labels_in_every_lossless_form(tmp_path):
    write_mask(tmp_path / "palette.png")
    write_mask(tmp_path / "gray.png", palette=False)
    save(tmp_path / "short.png", LABELS.astype(np.uint16))
    save(tmp_path / "long.tif", LABELS.astype(np.int32))
    transparent = Image.fromarray(LABELS)
    transparent.putpalette(COLOURS)
    transparent.save(tmp_path / "transparent.png", transparency=1)
    for path in sorted(tmp_path.iterdir()):
        mask = data.load_mask(path)
        assert mask.dtype == np.uint8, path
        np.testing.assert_array_equal(mask, LABELS, err_msg=str(path))


def test_one_bit_masks_are_0_and_1(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "mask.png")
    assert data.load_mask(tmp_path / "mask.png").tolist() == [[0, 1]]


def test_a_palette_of_four_bits_is_read_by_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image.putpalette(COLOURS[:12])
    image.save(tmp_path / "mask.png", bits=4)
    assert data.load_mask(tmp_path / "mask.png").tolist() == [[0, 1], [2, 3]]


def gray_of_four_bits():
    """A gray PNG of 4 bits, which Pillow reads but does not write: a palette PNG's type changed."""
    import struct
    import zlib

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x13")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    )


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (encoded(LABELS, "JPEG"), "is a JPEG, whose compression changes class numbers"),
        (encoded(np.zeros((2, 2, 3), np.uint8)), r"is a colour picture \(RGB\)"),
        (encoded(np.zeros((2, 2, 4), np.uint8)), r"is a colour picture \(RGBA\)"),
        (encoded(np.zeros((2, 2), np.float32), "TIFF"), "has floating-point pixels"),
        (
            encoded(np.array([[3, 4], [5, 256]], np.uint16)),
            "has the value 256 at row 1, column 1: class numbers are 0 to 254",
        ),
        (gray_of_four_bits(), "is a gray image of 4 bits"),
        (encoded(LABELS)[:-30], "is damaged"),
        (b"", "is empty"),
        (b"text", "is not an image file"),
    ],
)
def test_what_holds_no_class_numbers_is_refused(tmp_path, content, message):
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with pytest.raises(data.ImageError, match=message) as caught:
        data.load_mask(path)
    assert str(path) in str(caught.value)


def test_a_missing_mask_is_named(tmp_path):
    with pytest.raises(data.ImageError, match=r"gone\.png does not exist"):
        data.load_mask(tmp_path / "gone.png")
    with pytest.raises(data.ImageError, match="cannot be read"):
        data.load_mask(tmp_path)


def opened(tmp_path, labels=LABELS, names=NAMES, size=(2, 3)):
    write_image(tmp_path / "image.png", size)
    write_mask(tmp_path / "mask.png", labels)
    files = [str(tmp_path / "image.png")], [str(tmp_path / "mask.png")]
    return MaskFiles("split", *files, names)


def test_a_record_of_image_and_mask(tmp_path):
    dataset = opened(tmp_path)
    record = dataset[-1]
    assert (record.image == 90).all() and len(record.boxes) == 0
    np.testing.assert_array_equal(record.semantic, LABELS)
    assert (record.image_id, record.file_name) == (0, "image.png")
    assert (dataset.num_classes, dataset.category_ids, len(dataset)) == (3, (0, 1, 2), 1)
    with pytest.raises(IndexError):
        dataset[1]


def test_a_label_without_a_class_is_named_with_its_place(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    labels[2, 3:] = 200
    dataset = opened(tmp_path, labels, size=(4, 5))
    message = r"mask\.png has label 200 at row 2, column 3 \(2 pixels .* 3 classes, labels 0 to 2"
    with pytest.raises(data.DatasetError, match=message):
        dataset[0]
    with pytest.raises(data.DatasetError, match=message):
        dataset.summary()


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(data.DatasetError, match=r"mask\.png is 3 x 2 pixels and its image .*4 x 4"):
        opened(tmp_path, size=(4, 4))[0]
    with pytest.raises(data.DatasetError, match="sides are swapped"):
        opened(tmp_path, size=(3, 2))[0]


def test_a_mask_that_is_ignored_everywhere_is_read_and_told_of(tmp_path):
    dataset = opened(tmp_path, np.full((2, 3), 255, np.uint8))
    assert (dataset[0].semantic == data.IGNORE_LABEL).all()
    (finding,) = dataset.summary().findings
    assert finding.count == 1 and finding.example.endswith("mask.png")


def test_the_summary_counts_pixels_and_images(tmp_path):
    summary = opened(tmp_path).summary()
    assert summary.pixels_per_class == {"ground": 1, "cat": 2, "dog": 2}
    assert summary.images_per_class == {"ground": 1, "cat": 1, "dog": 1}
    assert (summary.images, summary.ignored, summary.labelled) == (1, 1, 5)
    assert (summary.height, summary.width) == ((2, 2, 2), (3, 3, 3))
    text = str(summary)
    assert "split: 1 images, 3 classes" in text and "ignored 16.7 %" in text
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        ["ground", "20.0"],
        ["cat", "40.0"],
        ["dog", "40.0"],
    ]


@pytest.mark.parametrize("names, message", [((), "has 0 classes"), (range(256), "has 256 classes")])
def test_a_mask_has_room_for_255_classes(tmp_path, names, message):
    with pytest.raises(data.DatasetError, match=message):
        opened(tmp_path, names=[str(name) for name in names])


def test_no_images_are_refused():
    with pytest.raises(data.DatasetError, match="split has no images"):
        MaskFiles("split", [], [], NAMES)
