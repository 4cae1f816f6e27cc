"""Pascal VOC's XML files: what they may hold, and what is one sentence."""

import pytest

from keras_densepred import data
from keras_densepred.data.open import DetectionFiles, open_splits
from tests.data import layout_trees as trees

pytestmark = pytest.mark.backend_free

OBJECT = "<object><name>{}</name>{}<bndbox>{}</bndbox></object>"


def box(*corners):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)


def one(corners=(5, 6, 20, 30), name="cat", more=""):
    return OBJECT.format(name, more, box(*corners))


def read(root, *objects, head="", **options):
    """A data set of pictures 0.png, 1.png, ... with these objects."""
    (root / "Annotations").mkdir(exist_ok=True)
    for number, text in enumerate(objects):
        trees.write_picture(root / "JPEGImages" / f"{number}.png", number)
        content = f"<annotation>{head}{text}</annotation>"
        (root / "Annotations" / f"{number}.xml").write_text(content)
    return data.VocDetection(root / "Annotations", root / "JPEGImages", **options)


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((5, 6, 20, 30), [4, 5, 20, 30]),  # pixels from 1, both included
        ((0, 6, 20, 30), [0, 6, 20, 30]),
        ((5.5, 6.25, 20, 30), [5.5, 6.25, 20, 30]),
        (("5.0", 6, 20, 30), [5, 6, 20, 30]),
    ],
)
def test_corners(tmp_path, corners, expected):
    assert read(tmp_path, one(corners))[0].boxes.tolist() == [expected]


def test_both_splits_count_alike(tmp_path):
    """A float in one file decides for all, else boxes of two splits would be a pixel apart."""
    trees.write_voc(tmp_path / "a", from_one=False)
    splits = open_splits(DetectionFiles(tmp_path / "a"))
    assert trees.found(splits) == trees.EXPECTED
    xml = tmp_path / "a" / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace(".0", ""))
    assert trees.found(open_splits(DetectionFiles(tmp_path / "a"))) == trees.EXPECTED


def test_difficult_objects_are_ignored(tmp_path):
    split = read(tmp_path, one() + one(more="<difficult>1</difficult>"))
    assert split[0].crowd.tolist() == [False, True]
    assert split.summary().crowd == 1 and split.summary().boxes == 1
    assert [a["iscrowd"] for a in split.ground_truth()["annotations"]] == [0, 1]


def test_sizes(tmp_path):
    size = "<size><width>60</width><height>40</height></size>"
    assert read(tmp_path, one(), head=size)[0].size == (40, 60)
    zero = "<size><width>0</width><height>0</height></size>"
    assert read(tmp_path, one(), head=zero)[0].size == (40, 60)
    wrong = "<size><width>600</width><height>400</height></size>"
    with pytest.raises(
        data.DatasetError, match=r"60 x 40 pixels, but .*0.xml gives it a width of 600"
    ):
        read(tmp_path, one(), head=wrong)[0]


def test_names_of_images(tmp_path):
    """By the file's own name, or by what it says: exporters rename either."""
    read(tmp_path, one(), one())
    xml = tmp_path / "Annotations" / "1.xml"
    xml.write_text(
        xml.read_text().replace("<annotation>", "<annotation><filename>1.png</filename>")
    )
    xml.rename(xml.with_name("renamed.xml"))
    split = data.VocDetection(tmp_path / "Annotations", tmp_path / "JPEGImages")
    assert split.file_names == ("0.png", "1.png")
    (tmp_path / "JPEGImages" / "1.png").unlink()
    with pytest.raises(data.DatasetError, match=r"renamed.xml has no image"):
        data.VocDetection(tmp_path / "Annotations", tmp_path / "JPEGImages")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (one(name=""), "object 1 has no <name>"),
        (OBJECT.format("cat", "", ""), "not four numbers"),
        (one(("a", 1, 2, 3)), "not four numbers"),
        (one(("nan", 1, 2, 3)), "not four numbers"),
        (one(more="<difficult>2</difficult>"), "<difficult> '2'"),
        (one((5, 6, 5, 30)), "look like sides"),
        (one((500, 600, 700, 800)), "none of its 1 boxes has an area inside"),
        ("", "has no objects"),
        ("<object>", "is not valid XML"),
        ("&x;", "is not valid XML"),
    ],
)
def test_files_that_cannot_be(tmp_path, text, said):
    with pytest.raises(data.DatasetError, match=said) as caught:
        read(tmp_path, text)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_without_a_name(tmp_path):
    with pytest.raises(data.DatasetError, match=r"0.xml, object 1 \(unicorn\) is of a class"):
        read(tmp_path, one(name="unicorn"), class_names=("cat",))


LAUGHS = '<!DOCTYPE a [<!ENTITY b "{}"><!ENTITY x "&b;&b;">]>'.format("ha" * 50)
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("start", [LAUGHS, OUTSIDE, "<!DOCTYPE annotation>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(tmp_path, start, encoding):
    read(tmp_path, one())
    text = f"<?xml version='1.0' encoding='{encoding}'?>{start}<annotation>&x;{one()}</annotation>"
    (tmp_path / "Annotations" / "0.xml").write_bytes(text.encode(encoding))
    with pytest.raises(data.DatasetError, match="declares a document type") as caught:
        data.VocDetection(tmp_path / "Annotations", tmp_path / "JPEGImages")
    assert "root:" not in str(caught.value)


def test_lists(tmp_path):
    trees.write_voc(tmp_path)
    main = tmp_path / "ImageSets" / "Main"
    (main / "train.txt").write_text("a  1\nb -1\nb -1\n")  # as VOC's lists of one class
    split = open_splits(DetectionFiles(tmp_path), only="train")["train"]
    assert split.file_names == ("a.png", "b.png")
    assert "name repeats" in str(split.summary())
    (main / "train.txt").write_text("gone\n")
    with pytest.raises(data.DatasetError, match=r"'gone' has no XML file"):
        open_splits(DetectionFiles(tmp_path), only="train")


def test_xml_beside_images_in_folders_of_splits(tmp_path):
    """Roboflow's form of VOC; without a list of classes they are those of all splits, sorted."""
    trees.write_voc(tmp_path / "x")
    for split, names in trees.SPLITS.items():
        folder = tmp_path / {"val": "valid"}.get(split, split)
        folder.mkdir()
        for name in names:
            (tmp_path / "x" / "JPEGImages" / f"{name}.png").rename(folder / f"{name}.png")
            (tmp_path / "x" / "Annotations" / f"{name}.xml").rename(folder / f"{name}.xml")
    splits = open_splits(DetectionFiles(tmp_path))
    assert {split.class_names for split in splits.values()} == {tuple(sorted(trees.NAMES))}
    assert [len(split) for split in splits.values()] == [3, 1]


def test_images_without_xml_are_counted(tmp_path):
    read(tmp_path, one())
    trees.write_picture(tmp_path / "JPEGImages" / "more.png", 3)
    split = data.VocDetection(tmp_path / "Annotations", tmp_path / "JPEGImages")
    (finding,) = split.summary().findings
    assert finding.count == 1 and "no XML file" in finding.what
