"""Class folders: what is read, what is passed over, and one sentence for everything else."""

import os
import pickle
import re

import numpy as np
import pytest

from keras_densepred import data
from tests.data.class_pictures import write_image, write_split

pytestmark = pytest.mark.backend_free


def test_images_labels_and_names(tmp_path):
    folder = data.ImageFolder(write_split(tmp_path))
    assert len(folder) == 6
    assert folder.class_names == ("cat", "dog")
    assert folder.category_ids == (0, 1)
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for index in range(6):
        found = folder[index]
        assert found.image.shape == (24, 32, 3) and found.image.dtype == np.uint8
        assert (found.image == 40 * (index // 3) + index % 3).all()
        assert (found.label, found.image_id) == (index // 3, index)
        assert found.file_name.startswith(str(tmp_path / folder.class_names[found.label]))
    assert folder[-1].image_id == 5
    with pytest.raises(IndexError):
        folder[6]


def test_an_encoded_image_is_the_same_one(tmp_path):
    folder = data.ImageFolder(write_split(tmp_path))
    for index in range(6):
        encoded, found = folder.encoded(index), folder[index]
        assert encoded.image.shape == found.image.shape
        assert (encoded.label, encoded.file_name) == (found.label, found.file_name)
    assert hasattr(folder.encoded(0).image, "decode"), "JPEG"
    np.testing.assert_array_equal(folder.encoded(1).image, folder[1].image)


def test_what_systems_leave_behind_is_passed_over(tmp_path):
    write_split(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "README.txt"):
        (tmp_path / name).write_text("x")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg"):
        (tmp_path / "cat" / name).write_text("x")
    (tmp_path / ".cache").mkdir()
    assert len(data.ImageFolder(tmp_path)) == 6


def test_an_image_without_a_suffix_is_one(tmp_path):
    write_image(tmp_path / "cat" / "n0123_7", format="JPEG")
    assert data.ImageFolder(tmp_path)[0].image.shape == (24, 32, 3)


def test_it_pickles_for_worker_processes(tmp_path):
    folder = data.ImageFolder(write_split(tmp_path))
    copy = pickle.loads(pickle.dumps(folder))
    assert repr(copy) == repr(folder)
    np.testing.assert_array_equal(copy[4].image, folder[4].image)


def test_summary(tmp_path):
    write_split(tmp_path, count=2)
    write_image(tmp_path / "dog" / "more.png")
    summary = data.ImageFolder(tmp_path).summary()
    assert summary.images == 5
    assert dict(summary.images_per_class) == {"cat": 2, "dog": 3}
    assert "5 images, 2 classes" in str(summary)
    assert "2 to 3 images" in str(summary)


def test_class_names_may_be_given_in_another_order(tmp_path):
    folder = data.ImageFolder(write_split(tmp_path), ["dog", "cat"])
    assert folder[0].file_name == str(tmp_path / "dog" / "0.jpg")


def nothing(root):
    return root / "nowhere"


def no_folders(root):
    return root


def empty_class(root):
    (write_split(root) / "eel").mkdir()
    return root


def only_hidden(root):
    (write_split(root) / "eel").mkdir()
    (root / "eel" / ".keep").write_text("")
    return root


def loose_images(root):
    write_image(write_split(root) / "stray.jpg")
    return root


def nested(root):
    write_image(write_split(root) / "cat" / "black" / "0.jpg")
    return root


def text_file(root):
    (write_split(root) / "cat" / "notes.txt").write_text("hello")
    return root


def text_named_jpg(root):
    (write_split(root) / "cat" / "a.jpg").write_text("hello")
    return root


def zero_bytes(root):
    (write_split(root) / "cat" / "a.png").write_bytes(b"")
    return root


def leading_out(root):
    write_image(root / "elsewhere.jpg")
    split = write_split(root / "train")
    (split / "cat" / "link.jpg").symlink_to(root / "elsewhere.jpg")
    return split


def class_leading_out(root):
    write_split(root / "other", classes=("eel",))
    split = write_split(root / "train")
    (split / "eel").symlink_to(root / "other" / "eel")
    return split


def dangling(root):
    (write_split(root) / "cat" / "link.jpg").symlink_to(root / "gone.jpg")
    return root


def control_character(root):
    write_image(write_split(root) / "cat" / "a\nb.jpg", format="JPEG")
    return root


def not_text(root):
    folder = os.fsencode(write_split(root)) + b"/ca\xff"
    os.mkdir(folder)
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"nowhere is not a folder"),
        (no_folders, r"has no class folders: arrange"),
        (empty_class, r"eel has no images: put some there"),
        (only_hidden, r"eel has no images"),
        (loose_images, r"has 1 images that are in no class folder, such as stray\.jpg"),
        (nested, r"cat/black is a folder inside of a class folder"),
        (text_file, r"notes\.txt is not an image file"),
        (text_named_jpg, r"a\.jpg is not an image file"),
        (zero_bytes, r"a\.png is empty \(0 bytes\)"),
        (leading_out, r"link\.jpg is a link that leads out of"),
        (class_leading_out, r"eel is a link that leads out of"),
        (dangling, r"link\.jpg is a link to .*gone\.jpg, which does not exist"),
        (control_character, r"has 'a\\nb\.jpg', whose name is not readable text"),
        (not_text, r"has 'ca\\udcff', whose name is not readable text"),
    ],
)
def test_faults_are_one_sentence(tmp_path, make, message):
    with pytest.raises((data.DatasetError, data.ImageError), match=message) as caught:
        data.ImageFolder(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_links_inside_of_the_folder_are_fine(tmp_path):
    (write_split(tmp_path) / "cat" / "again.jpg").symlink_to(tmp_path / "cat" / "0.jpg")
    (tmp_path.parent / "alias").symlink_to(tmp_path)
    assert len(data.ImageFolder(tmp_path.parent / "alias")) == 7


def test_files_that_are_no_images_are_skipped_on_request(tmp_path):
    write_split(tmp_path)
    (tmp_path / "cat" / "1b.jpg").write_text("hello")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "dog" / "0.jpg").write_bytes(b"")
    folder = data.ImageFolder(tmp_path, on_bad_image="skip")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1]
    assert [int(folder[i].image[0, 0, 0]) for i in range(5)] == [0, 1, 2, 41, 42]
    (finding,) = folder.summary().findings
    assert finding.count == 3
    assert "3 files skipped" in str(folder.summary())


def test_a_class_of_which_all_is_skipped_is_refused(tmp_path):
    (write_split(tmp_path) / "eel").mkdir()
    (tmp_path / "eel" / "a.jpg").write_text("hello")
    with pytest.raises(data.DatasetError, match="eel has no images"):
        data.ImageFolder(tmp_path, on_bad_image="skip")


def test_classes_that_differ_are_named_in_both_directions(tmp_path):
    train = data.ImageFolder(write_split(tmp_path / "train", ("ant", "bee", "cat")))
    val = write_split(tmp_path / "val", ("bee", "cat", "dog"))
    with pytest.raises(data.DatasetError) as caught:
        data.ImageFolder(val, train.class_names)
    assert re.search(r"lacks 1 of the 3 classes \(ant\) and has 1 .*\(dog\)", str(caught.value))
    with pytest.raises(data.DatasetError) as caught:
        data.require_same_class_names({"train": train, "val": data.ImageFolder(val)})
    message = str(caught.value)
    assert "val lacks 1 (ant)" in message and "train lacks 1 (dog)" in message
    data.require_same_class_names({"train": train, "val": train})


def test_class_names_that_leave_the_folder_are_refused(tmp_path):
    split = write_split(tmp_path / "train")
    write_split(tmp_path, ("eel",))
    with pytest.raises(data.DatasetError, match=r"lacks 1 .*\.\./eel"):
        data.ImageFolder(split, ["cat", "dog", "../eel"])


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_the_splits_of_a_tree(tmp_path, name):
    write_split(tmp_path / "train")
    write_split(tmp_path / name)
    found = data.find_class_folders(tmp_path)
    assert found == {"train": tmp_path / "train", "val": tmp_path / name}


def test_a_tree_without_splits(tmp_path):
    with pytest.raises(data.DatasetError, match="gone is not a folder"):
        data.find_class_folders(tmp_path / "gone")
    write_split(tmp_path / "train")
    with pytest.raises(data.DatasetError, match=r"no val split, looked for val, validation"):
        data.find_class_folders(tmp_path)
