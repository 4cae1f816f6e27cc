"""Broken images show before the first step."""

import pytest

from keras_densepred import data
from keras_densepred.data import image_files
from tests.data.class_pictures import write_image, write_split
from tests.data.masks import write_voc

pytestmark = pytest.mark.backend_free


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture
def folder(tmp_path):
    return write_split(tmp_path / "train")


def test_good_images(folder):
    split = data.ImageFolder(folder)
    assert data.require_readable(split) == ()
    assert data.require_readable(split, decode=False) == ()


def test_a_truncated_image_is_named_and_the_flag_too(folder):
    split = data.ImageFolder(folder)
    for name in ("cat/0.jpg", "dog/1.png"):
        cut(folder / name)
    with pytest.raises(data.ImageError) as caught:
        data.require_readable(split)
    message = str(caught.value)
    assert "0.jpg is damaged" in message and "(1 more cannot be used)" in message
    assert "--on-bad-image skip" in message and "\n" not in message
    faults = data.require_readable(split, "skip")
    assert len(faults) == 2 and "0.jpg" in faults[0] and "1.png" in faults[1]
    assert data.require_readable(split, "skip", decode=False) == faults, "by their last bytes"


def test_the_first_bytes_of_training_images(folder):
    split = data.ImageFolder(folder)
    (folder / "cat" / "0.jpg").write_bytes(b"")
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(data.ImageError, match=r"0\.jpg is empty"):
        data.require_readable(split, decode=False)
    assert len(data.require_readable(split, "skip", decode=False)) == 2


def test_whole_images_are_known_by_their_ends_without_being_decoded(folder, monkeypatch):
    """What phones and editors leave behind the pixels is no fault."""
    for name in ("cat/0.jpg", "cat/1.png"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b"\0 more" * 100)

    def decode_image(content, name):
        raise AssertionError(f"{name} is decoded")

    monkeypatch.setattr(image_files, "decode_image", decode_image)
    assert data.require_readable(data.ImageFolder(folder), decode=False) == ()


def test_the_end_of_a_thumbnail_is_not_that_of_the_image(folder):
    split = data.ImageFolder(folder)
    path = folder / "cat" / "0.jpg"
    write_image(path, size=(64, 64), comment=path.read_bytes())
    assert data.require_readable(split, decode=False) == ()
    cut(path)
    with pytest.raises(data.ImageError, match=r"0\.jpg is damaged .*image file is truncated"):
        data.require_readable(split, decode=False)


def test_an_image_that_lacks_its_end_alone_is_read_as_in_training(folder):
    split = data.ImageFolder(folder)
    path = folder / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-12])  # behind the pixels
    assert split[1].image.shape == (24, 32, 3)
    assert data.require_readable(split, decode=False) == ()


def test_masks_are_looked_at_too(tmp_path):
    write_voc(tmp_path, {"val": ["a", "b"]})
    split = data.VocSegmentation(tmp_path, "val")
    cut(tmp_path / "SegmentationClass" / "b.png")
    with pytest.raises(data.ImageError, match=r"b\.png"):
        data.require_readable(split)


def test_not_one_good_image_cannot_be_skipped(folder):
    split = data.ImageFolder(folder)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no image")
    with pytest.raises(data.ImageError, match="as are all 6 images looked at"):
        data.require_readable(split, "skip")


def test_many_images_are_sampled(folder, monkeypatch):
    from keras_densepred.data.readers import readable

    monkeypatch.setattr(readable, "_MOST_DECODED", 2)
    seen = []
    monkeypatch.setattr(data.ImageFolder, "__getitem__", lambda self, index: seen.append(index))
    data.require_readable(data.ImageFolder(folder))
    assert sorted(seen) == [0, 3]


def test_what_is_not_in_files_is_not_looked_at():
    class Endless:
        def __getitem__(self, index):
            raise AssertionError

    assert data.require_readable(Endless()) == ()


def test_other_words_are_refused(folder):
    with pytest.raises(ValueError, match="on_bad_image"):
        data.require_readable(data.ImageFolder(folder), "ignore")
