"""A folder's layout is found out, said, and gives the same records whatever it is."""

import json
import shutil

import pytest

from keras_densepred import data
from keras_densepred.data.open import DetectionFiles, open_splits
from tests.data import layout_trees as trees

pytestmark = pytest.mark.backend_free

WRITERS = {
    "coco": trees.write_coco,
    "roboflow": trees.write_roboflow,
    "yolo": trees.write_yolo,
    "voc": trees.write_voc,
}


def opened(root, **options):
    said = []
    masks = options.pop("with_masks", False)
    only = options.pop("only", None)
    files = DetectionFiles(root, **options)
    return open_splits(files, with_masks=masks, only=only, say=said.append), said


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_gives_the_same_boxes(name, tmp_path):
    splits, said = opened(WRITERS[name](tmp_path))
    assert trees.found(splits) == trees.EXPECTED
    assert {split.class_names for split in splits.values()} == {trees.NAMES}
    assert data.find_layout(tmp_path).name == name
    assert str(tmp_path) in said[0] and "train in" in said[0] and "val in" in said[0]


@pytest.mark.parametrize("name", ["coco", "roboflow", "yolo"])
def test_masks(name, tmp_path):
    write = WRITERS[name]
    root = write(tmp_path, polygons=True) if name == "yolo" else write(tmp_path)
    splits, _ = opened(root, with_masks=True)
    assert trees.found(splits) == trees.EXPECTED
    record = splits["train"][0]
    assert record.masks[0, 6:26, 4:24].all() and record.masks[0].sum() == 400
    truth = splits["train"].ground_truth()
    assert {a["area"] for a in truth["annotations"]} <= {400.0, 28.0 * 30}


def test_masks_where_there_are_none(tmp_path):
    with pytest.raises(data.DatasetError, match=r"a.txt, line 1 has no segmentation"):
        opened(trees.write_yolo(tmp_path / "yolo"), with_masks=True)
    with pytest.raises(data.DatasetError, match="boxes and no masks"):
        opened(trees.write_voc(tmp_path / "voc"), with_masks=True)


def test_the_parent_category_of_roboflow_is_dropped_and_said(tmp_path):
    splits, _ = opened(trees.write_roboflow(tmp_path / "a"))
    assert splits["val"].category_ids == (1, 2)
    (finding,) = splits["train"].summary().findings
    assert "parent of the others" in finding.what and "cat" in finding.example
    root = trees.write_roboflow(tmp_path / "b", parent="pets")
    file = root / "valid" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    splits, _ = opened(root)
    assert splits["train"].class_names == ("pets", *trees.NAMES), "an object has it"
    # With one split alone it stays where the model knows it.
    known = open_splits(DetectionFiles(root), only="train", known=("pets", *trees.NAMES))
    assert known["train"].class_names == ("pets", *trees.NAMES)
    assert open_splits(DetectionFiles(root), only="train")["train"].class_names == trees.NAMES


def test_two_layouts_at_once(tmp_path):
    trees.write_coco(tmp_path)
    trees.write_voc(tmp_path)
    with pytest.raises(data.DatasetError) as caught:
        data.find_layout(tmp_path)
    message = str(caught.value)
    assert "instances_train.json" in message and "Annotations" in message
    assert "--layout coco or --layout voc" in message and "\n" not in message
    for name in ("coco", "voc"):
        assert trees.found(opened(tmp_path, layout=name)[0]) == trees.EXPECTED
    with pytest.raises(data.DatasetError, match="has no YOLO labels"):
        data.find_layout(tmp_path, "yolo")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_a_split_may_be_missing(name, split, tmp_path):
    with pytest.raises(data.DatasetError) as caught:
        opened(WRITERS[name](tmp_path, {split: trees.SPLITS[split]}))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_known(tmp_path):
    with pytest.raises(data.DatasetError, match="no detection data of a known layout"):
        data.find_layout(tmp_path)
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.find_layout(tmp_path / "gone")


def test_explicit_files(tmp_path):
    trees.write_coco(tmp_path)
    paths = {
        f"{split}_{what}": str(tmp_path / place)
        for split in ("train", "val")
        for what, place in (
            ("annotations", f"annotations/instances_{split}.json"),
            ("images", f"images/{split}"),
        )
    }
    splits = open_splits(DetectionFiles(**paths))
    assert trees.found(splits) == trees.EXPECTED
    train = {name: path for name, path in paths.items() if name.startswith("train")}
    assert len(open_splits(DetectionFiles(**train, val_share=0.4))["val"]) == 1
    for files, said in (
        (DetectionFiles(**train), "--val-share 0.1"),
        (DetectionFiles(tmp_path, **paths), "not both"),
        (DetectionFiles(train_images="x"), "go together"),
        (DetectionFiles(val_annotations="x", val_images="y"), "goes with --train-annotations"),
        (DetectionFiles(val_share=0.1), "goes with --data-dir"),
    ):
        with pytest.raises(data.DatasetError, match=said):
            open_splits(files)


class TestHeldOut:
    """`--val-share`, of data without a validation split."""

    def test_it_is_asked_for(self, tmp_path):
        trees.write_single(tmp_path)
        with pytest.raises(data.DatasetError, match=r"no validation split .* --val-share 0.1"):
            opened(tmp_path)
        with pytest.raises(data.DatasetError, match="between 0 and 1"):
            opened(tmp_path, val_share=1.5)
        with pytest.raises(data.DatasetError, match="leave out --val-share"):
            opened(trees.write_coco(tmp_path / "coco"), val_share=0.1)
        assert len(opened(tmp_path, only="train")[0]["train"]) == 4

    def test_records_and_repr(self, tmp_path):
        splits, said = opened(trees.write_single(tmp_path), val_share=0.25)
        assert [len(split) for split in splits.values()] == [3, 1]
        both = {
            name: boxes for split in trees.found(splits).values() for name, boxes in split.items()
        }
        assert both == trees.BOXES
        assert repr(splits["train"]) != repr(splits["val"])
        assert "1 images" in said[1]
        assert splits["val"].ground_truth()["images"][0]["id"] in splits["val"].image_ids

    def test_the_same_whatever_the_order(self, tmp_path):
        first = trees.write_single(tmp_path / "a")
        names = trees.found(opened(first, val_share=0.5)[0])
        second = tmp_path / "b"
        content = json.loads((first / "labels.json").read_text())
        content["images"].reverse()
        (second / "images").mkdir(parents=True)
        for file in sorted((first / "images").iterdir(), reverse=True):
            shutil.copy(file, second / "images")
        (second / "labels.json").write_text(json.dumps(content))
        assert trees.found(opened(second, val_share=0.5)[0]) == names

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
    def test_copies_stay_together(self, tmp_path, share):
        """Eight pictures: by content, or as Roboflow names what it made from one."""
        images = tmp_path / "images"
        for number in range(8):
            original = images / f"p{number}.png"
            trees.write_picture(original, number)
            if number < 4:
                (images / "sub").mkdir(exist_ok=True)
                shutil.copy(original, images / "sub" / f"copy_of_{number}.png")
            else:
                for variant in ("0a1b", "ffff"):
                    path = images / f"p{number}_png.rf.{variant}.png"
                    trees.write_picture(path, number + 100 * len(path.name) + ord(variant[0]))
        files = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
        content = trees.coco_content(["a"] * len(files), str, trees.plain_categories())
        for entry, name in zip(content["images"], files, strict=True):
            entry["file_name"] = name
        (tmp_path / "labels.json").write_text(json.dumps(content))
        splits, _ = opened(tmp_path, val_share=share)
        sides = {
            name: {next(c for c in file if c.isdigit()) for file in split.file_names}
            for name, split in splits.items()
        }
        assert not sides["train"] & sides["val"]
        assert sum(map(len, splits.values())) == len(files)
        assert abs(len(splits["val"]) - share * len(files)) <= 2

    def test_one_picture_cannot_be_divided(self, tmp_path):
        for name in ("a", "b"):
            trees.write_picture(tmp_path / f"{name}.png", 1)
        content = trees.coco_content(["a", "b"], lambda n: f"{n}.png", trees.plain_categories())
        (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
        with pytest.raises(data.DatasetError, match="copies of one image"):
            opened(tmp_path, val_share=0.5)


def test_a_lone_file_among_others(tmp_path):
    """Several annotation files are not guessed at; lists of classes are none."""
    trees.write_single(tmp_path)
    (tmp_path / "classes.json").write_text('["cat"]')
    assert data.find_layout(tmp_path).name == "single"
    shutil.copy(tmp_path / "labels.json", tmp_path / "more.json")
    with pytest.raises(
        data.DatasetError, match=r"labels.json and more.json: .*--train-annotations"
    ):
        data.find_layout(tmp_path)
