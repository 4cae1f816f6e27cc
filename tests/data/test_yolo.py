"""YOLO's text files: what lines, lists and yaml files may be, and what is one sentence."""

import shutil

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.data.image_size import upright_size
from keras_densepred.data.open import DetectionFiles, open_splits
from tests.data import layout_trees as trees

pytestmark = pytest.mark.backend_free

HEIGHT, WIDTH = trees.HEIGHT, trees.WIDTH


def tree(root, lines):
    """Pictures 0.png, 1.png, ... whose labels are `lines`; None for no file."""
    for number, text in enumerate(lines):
        trees.write_picture(root / "images" / f"{number}.png", number)
        if text is not None:
            (root / "labels").mkdir(exist_ok=True)
            (root / "labels" / f"{number}.txt").write_text(text)
    return root / "images"


def read(root, lines, names=("cat", "dog"), **options):
    return data.YoloDataset(tree(root, lines), names, **options)


def said_of(dataset):
    return {finding.what: finding.count for finding in dataset.summary().findings}


def test_boxes_and_polygons(tmp_path):
    split = read(tmp_path, ["1 0.5 0.5 0.5 0.25\n\n0 0.1 0.2 0.9 0.2 0.9 0.8\n"])
    np.testing.assert_allclose(split[0].boxes, [[15, 15, 45, 25], [6, 8, 54, 32]], atol=1e-4)
    assert split[0].labels.tolist() == [1, 0] and split.category_ids == (0, 1)


def test_images_without_objects_are_counted(tmp_path):
    split = read(tmp_path, ["0 0.5 0.5 0.5 0.5", "", None, None])
    assert split.summary().empty_images == 3 and len(split[1].boxes) == 0
    assert said_of(split) == {
        "images have no file of labels, taken as without objects": 2,
        "image has an empty file of labels: without objects": 1,
    }


def test_boxes_in_unreadable_images_have_no_size(tmp_path):
    lines = ["0 0.5 0.5 0.5 0.5", "1 0.5 0.5 0.2 0.2"]
    images = tree(tmp_path, lines)
    whole = data.YoloDataset(images, ("cat", "dog")).summary()
    (images / "1.png").write_bytes(b"no picture")
    summary = data.YoloDataset(images, ("cat", "dog")).summary()
    assert summary.boxes == whole.boxes == 2
    assert summary.width == (WIDTH / 2,) * 3 and whole.width[0] == pytest.approx(WIDTH / 5)
    assert (summary.small + summary.medium + summary.large, str(summary).count("100 %")) == (1, 1)
    (images / "0.png").write_bytes(b"no picture")
    assert "pixels" not in str(data.YoloDataset(images, ("cat", "dog")).summary())


def test_labels_beside_the_images(tmp_path):
    trees.write_picture(tmp_path / "a.png", 0)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    split = data.YoloDataset(tmp_path, ("cat", "dog"))
    assert len(split) == 1 and said_of(split) == {}
    found = open_splits(DetectionFiles(tmp_path), only="train")["train"]
    assert found.class_names == ("cat", "dog")


def test_labels_without_an_image_are_counted(tmp_path):
    images = tree(tmp_path, ["0 0.5 0.5 0.5 0.5"])
    (tmp_path / "labels" / "gone.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "labels" / "classes.txt").write_text("cat")
    (finding,) = data.YoloDataset(images, ("cat",)).summary().findings
    assert finding.count == 1 and finding.example.endswith("gone.txt")


def test_several_faulty_lines_are_named_and_counted(tmp_path):
    large = "0 320 240 100 80\n" * 9
    with pytest.raises(data.DatasetError) as caught:
        read(
            tmp_path, [large + "0 1\n7 0.5 0.5 0.5 0.5", "cat\n0 2\n0 3\n0 4", large + "8 1 2 3 4"]
        )
    said = str(caught.value)
    labels = tmp_path / "labels"
    for words in (
        f"{labels / '0.txt'}, line 10 is '0 1', {labels / '1.txt'}, line 1 is 'cat', ",
        "line 2 is '0 2', so are 2 more, neither `class x y width height` nor",
        f"; {labels / '0.txt'}, line 11 has class 7, {labels / '2.txt'}, line 10 has class 8, and",
        "; most boxes look like pixels, too",
    ):
        assert words in said, said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2 0.5 0.5 0.5 0.5", r"line 1 has class 2, and there are names for 2 \(0 to 1\)"),
        ("\n-1 0.5 0.5 0.5 0.5", "line 2 has class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "has class 0.5"),
        ("0 0.5 0.5 0.5", "neither `class x y width height`"),
        ("0 0.5 0.5 0.5 0.5 0.98", "a prediction with its confidence"),
        ("cat 0.5 0.5 0.5 0.5", "line 1 is 'cat"),
        ("0 nan 0.5 0.5 0.5", "neither"),
        ("0 1e400 0.5 0.5 0.5", "neither"),
        ("0 320 240 100 80", "look like pixels"),
        ("0 0.5 0.5 0 0.5", "none of its 1 boxes has an area"),
        ("\n".join(["0 0.1 0.1 0.9 0.9", "0 0.6 0.6 0.9 0.95"] * 6), "as corners x1 y1 x2 y2"),
        ("", "has no objects"),
    ],
)
def test_lines_that_cannot_be(tmp_path, text, said):
    with pytest.raises(data.DatasetError, match=said) as caught:
        read(tmp_path, [text])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_label_at_all(tmp_path):
    with pytest.raises(data.DatasetError, match=r"none of its 2 images has .*0.txt"):
        read(tmp_path, [None, None])


def test_key_points_are_left_out(tmp_path):
    line = "0 0.5 0.5 0.5 0.5 0.1 0.1 0.9 0.9"
    split = read(tmp_path, [line], with_keypoints=True)
    np.testing.assert_allclose(split[0].boxes, [[15, 10, 45, 30]])
    yaml = "names: [cat]\ntrain: images\nval: images\nkpt_shape: [2, 2]\n"
    (tmp_path / "data.yaml").write_text(yaml)
    found = open_splits(DetectionFiles(tmp_path))["train"]
    np.testing.assert_allclose(found[0].boxes, split[0].boxes)


def test_boxes_are_shares_of_the_upright_image(tmp_path):
    images = tree(tmp_path, ["0 0.25 0.5 0.5 1"])
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(images / "0.jpg", exif=exif)
    (images / "0.png").unlink()
    assert upright_size(images / "0.jpg") == (40, 20)
    record = data.YoloDataset(images, ("cat",))[0]
    assert record.size == (40, 20) and record.boxes.tolist() == [[0, 0, 10, 40]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("options", [{}, {"quality": 95, "progressive": True}])
def test_sizes_from_headers(tmp_path, suffix, options):
    picture = Image.fromarray(np.zeros((37, 301, 3), np.uint8))
    picture.save(tmp_path / f"a{suffix}", **(options if suffix == ".jpg" else {}))
    assert upright_size(tmp_path / f"a{suffix}") == (37, 301)
    with pytest.raises(data.ImageError, match="does not exist"):
        upright_size(tmp_path / "gone.jpg")


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    images = tree(tmp_path, ["0 0.5 0.5 0.5 0.5"] * 2)
    (images / "1.png").write_bytes(b"no image")
    split = data.YoloDataset(images, ("cat",))
    assert split[0].size == (HEIGHT, WIDTH)
    with pytest.raises(data.ImageError, match=r"1.png is not an image"):
        split[1]


def test_two_files_of_one_stem(tmp_path):
    images = tree(tmp_path, ["0 0.5 0.5 0.5 0.5"])
    shutil.copy(images / "0.png", images / "0.bmp")
    with pytest.raises(data.DatasetError, match=r"has both 0.bmp and 0.png, so"):
        data.YoloDataset(images, ("cat",))
    shutil.copy(images / "0.png", images / "0.jpg")
    with pytest.raises(data.DatasetError, match=r"0.jpg \(one of 2 such pairs\), so a name"):
        data.YoloDataset(images, ("cat",))


def test_two_label_files_of_one_image(tmp_path):
    images = tree(tmp_path, ["0 0.5 0.5 0.5 0.5"])
    shutil.copy(tmp_path / "labels" / "0.txt", tmp_path / "labels" / "0.TXT")
    with pytest.raises(data.DatasetError, match=r"labels has both 0.TXT and 0.txt, so a name"):
        data.YoloDataset(images, ("cat",))


LISTED = "0 0.5 0.5 0.5 0.5"


@pytest.mark.parametrize(
    "line", ["images/0.png", "./images/0.png", "images\\0.png", "{root}/images/0.png"]
)
def test_lists(tmp_path, line):
    tree(tmp_path, [LISTED])
    line = line.format(root=tmp_path)
    (tmp_path / "train.txt").write_text(f"{line}\n{line}\n")
    split = data.YoloDataset(tmp_path / "train.txt", ("cat",))
    assert split.file_names == ("images/0.png",)
    assert said_of(split) == {"image is listed again, and read once": 1}
    (tmp_path / "train.txt").write_text("images/gone.png\n")
    with pytest.raises(data.DatasetError, match=r"'images/gone.png' is no file"):
        data.YoloDataset(tmp_path / "train.txt", ("cat",))


ROBOFLOW = "names: [cat, dog]\nnc: 2\ntrain: ../train/images\nval: ../valid/images\n"


@pytest.mark.parametrize(
    "yaml",
    [
        "names: [cat, dog]\ntrain: images/train\nval: images/val\n",
        "names: {0: cat, 1: dog}\nnc: 2\ntrain: [images/train]\nval: ./images/val\n",
        "names:\n  1: dog\n  0: cat\npath: .\ntrain: ../images/train\nvalid: images/val/\n",
        "names: [cat, dog]\npath: /not/on/this/machine\ntrain: images/train\nval: images/val\n",
        "names: [cat, dog]\ntrain: train.txt\nval: images/val\ntest: images/gone\n",
        "names: [cat, dog]\nval: images/val\n",
    ],
)
def test_yaml(tmp_path, yaml):
    trees.write_yolo(tmp_path, yaml=yaml)
    (tmp_path / "train.txt").write_text("".join(f"images/train/{n}.png\n" for n in "abc"))
    for place in (tmp_path, tmp_path / "data.yaml"):
        splits = open_splits(DetectionFiles(place))
        assert trees.found(splits) == trees.EXPECTED
        assert splits["val"].class_names == ("cat", "dog")


def test_roboflow_writes_paths_from_a_folder_that_is_not_there(tmp_path):
    trees.write_yolo(tmp_path / "x", yaml=ROBOFLOW)
    for split, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / "x" / kind / split).rename(tmp_path / name / kind)
    (tmp_path / "x" / "data.yaml").rename(tmp_path / "data.yaml")
    assert trees.found(open_splits(DetectionFiles(tmp_path))) == trees.EXPECTED


def test_names_stay_what_they_are_written(tmp_path):
    yaml = "names: [no, 007, [x], 1.0]\ntrain: images/train\nval: images/val\n"
    trees.write_yolo(tmp_path, yaml=yaml.replace("[x]", '"[x]"'))
    assert open_splits(DetectionFiles(tmp_path))["train"].class_names == ("no", "007", "[x]", "1.0")


PLACES = "train: images/train\nval: images/val\n"


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        (f"names: [cat, dog]\nnc: 3\n{PLACES}", "2 names of classes, and `nc` is '3'"),
        (f"names: [cat, cat]\n{PLACES}", "calls both label 0 and label 1 'cat'"),
        (f"names: {{0: cat, 2: dog}}\n{PLACES}", "name classes 0, 1, 2 and so on"),
        (f"names: []\n{PLACES}", "does not name the classes"),
        (f"names: [cat, '']\n{PLACES}", "does not name the classes"),
        (f"names: [cat]\n{PLACES}", "has class 1, and there are names for 1"),
        (f"names: [cat, dog\n{PLACES}", "is not valid YAML"),
        (f"names: !!python/object/apply:os.system [ls]\n{PLACES}", "there are names for 1 "),
        ("names: [cat, dog]\ntrain: images/gone\nval: images/val\n", "`train` is 'images/gone'"),
        ("names: [cat, dog]\ntrain: {a: b}\nval: images/val\n", "`train` is a dict"),
    ],
)
def test_yaml_that_cannot_be(tmp_path, yaml, said):
    trees.write_yolo(tmp_path, yaml=yaml)
    with pytest.raises(data.DatasetError, match=said) as caught:
        open_splits(DetectionFiles(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_several_yaml_files(tmp_path):
    trees.write_yolo(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "pets.yaml")
    assert data.find_layout(tmp_path).name == "yolo"
    shutil.copy(tmp_path / "pets.yaml", tmp_path / "other.yaml")
    with pytest.raises(data.DatasetError, match=r"other.yaml and pets.yaml: give the one"):
        data.find_layout(tmp_path)


def test_names_without_yaml(tmp_path):
    trees.write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(data.DatasetError, match="no names of the classes: write"):
        data.find_layout(tmp_path)
    for place, name in ((tmp_path, "classes.txt"), (tmp_path / "labels", "classes.txt")):
        (place / name).write_text("cat\ndog\n")
        assert trees.found(open_splits(DetectionFiles(tmp_path))) == trees.EXPECTED
        (place / name).unlink()
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    assert open_splits(DetectionFiles(tmp_path))["val"].class_names == ("cat", "dog")
