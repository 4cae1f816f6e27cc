"""Images to predict on: none passed over in silence, no two results of one name."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.readers.listing import composed
from keras_densepred.data.readers.unlabelled import find_images, output_names
from tests.data.masks import write_image, write_mask

pytestmark = pytest.mark.backend_free

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def names(paths):
    return [path.name for path in paths]


@pytest.mark.parametrize("name", ["a.gif", "a.jfif", "a.JPE", "a.pgm", "a.jp2", "a.webp", "a.TIF"])
def test_all_that_pillow_reads_is_read(tmp_path, name):
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pgm": "PPM"}.get(os.path.splitext(name)[1].lower())
    write_image(tmp_path / name, **({"format": kind} if kind else {}))
    (path,) = find_images([str(tmp_path)])
    assert data.load_image(path).shape == (2, 3, 3)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (path,) = find_images([str(tmp_path)])
    np.testing.assert_array_equal(data.load_image(path)[0, 0], [255, 0, 0])


def test_what_cannot_be_read_is_found_and_named(tmp_path):
    write_image(tmp_path / "good.jpg")
    for name in ("phone.heic", "phone.avif"):
        (tmp_path / name).write_bytes(HEIC)
    (tmp_path / "raw.NEF").write_bytes(b"raw")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = find_images([str(tmp_path)])
    assert names(found) == ["gone.jpg", "good.jpg", "phone.avif", "phone.heic", "raw.NEF"]
    for path in found:
        if path.name != "good.jpg":
            with pytest.raises(data.ImageError, match=path.name):
                data.load_image(path)
    with pytest.raises(data.ImageError, match=r"HEIC or AVIF image.*convert it to JPEG or PNG"):
        data.load_image(tmp_path / "phone.heic")


def test_images_of_any_name_are_found_and_other_files_are_not(tmp_path):
    write_image(tmp_path / "a.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "no suffix")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "a.jpg_large")
    (tmp_path / "phone").write_bytes(HEIC)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    for name, content in (("notes.txt", b"text"), (".a.jpg", b""), ("Thumbs.db", b"\xd0\xcf")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    assert names(find_images([str(tmp_path)])) == ["a.jpg", "a.jpg_large", "no suffix", "phone"]


def test_an_image_named_twice_is_taken_once(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    write_image(photos / "a.jpg")
    monkeypatch.chdir(photos)
    assert len(find_images([".", "a.jpg", str(photos / "a.jpg"), "./*.jpg", "../*/a.jpg"])) == 1


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_image(tmp_path / "a.jpg")
    for name in ("~", "~/a.jpg", "~/*.jpg"):
        assert names(find_images([name])) == ["a.jpg"]


@pytest.mark.parametrize(
    "given",
    [
        ["a.jpg", "a.png", "a.jpg.png"],
        ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.png", "a.png.png"],
        ["A.jpg", "a.png"],
        ["caf\u00e9.jpg", "cafe\u0301.png"],
        ["a", "a.jpg", "a.b.jpg", "a.b"],
        ["x/a.jpg", "y/a.jpg", "x/a.png"],
    ],
)
def test_results_never_collide(tmp_path, given):
    results = output_names([tmp_path / name for name in given])
    assert all(result.suffix == ".png" for result in results)
    # Also where the file system ignores case and Unicode forms.
    assert len({composed(str(result)).casefold() for result in results}) == len(given)


def test_the_name_is_short_where_it_can_be(tmp_path):
    given = [tmp_path / name for name in ("a.jpg", "b.tar.png")]
    assert names(output_names(given)) == ["a.png", "b.tar.png"]


def test_masks_of_images_of_rarer_kinds(tmp_path):
    write_image(tmp_path / "images" / "a.jfif", format="JPEG")
    write_mask(tmp_path / "masks" / "a.png")
    (tmp_path / "images" / "b.heic").write_bytes(HEIC)
    dataset = data.MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert dataset[0].file_name == "a.jfif" and len(dataset) == 1
    (finding,) = dataset.summary().findings
    assert finding.count == 1 and finding.example.endswith("b.heic")
