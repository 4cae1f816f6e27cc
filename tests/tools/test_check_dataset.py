"""`tools/check_dataset.py` as a user runs it: what it prints, draws, and its exit code."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data import layout_trees
from tests.data.class_pictures import write_split
from tests.data.masks import write_image, write_mask, write_voc

pytestmark = pytest.mark.backend_free

SHEETS = ["samples_train.png", "samples_val.png"]
SCRIPT = Path(__file__).parents[2] / "tools" / "check_dataset.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("check_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def tree(tmp_path):
    """A COCO tree of five images in each split, two objects in each image."""
    root = tmp_path / "tree"
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(5):
            name = f"{split}{number}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            for box in ([4, 4, 20, 20], [30, 10, 12, 30]):
                annotations.append(
                    {"id": len(annotations), "image_id": number, "category_id": 3, "bbox": box}
                    | {"segmentation": [[4, 4, 20, 4, 20, 20]]}
                )
        write(root, split, {"images": images, "annotations": annotations})
    return root


def write(root, split, content):
    content.setdefault("categories", [{"id": 3, "name": "blob"}, {"id": 5, "name": "bar"}])
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def change(root, split, edit):
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    edit(content)
    write(root, split, content)


def test_masks_are_drawn_and_broken_ones_named(main, tree, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--data-dir", str(tree), "--output", str(out), "--samples", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert (
        "5 masks are not where the box is" in printed and "first: annotation id 1 (image" in printed
    )
    with Image.open(out / "samples_val.png") as sheet:
        with_masks = np.asarray(sheet).astype(int)
    change(tree, "val", lambda c: [a.pop("segmentation") for a in c["annotations"]])
    assert main(command) == 0
    with Image.open(out / "samples_val.png") as sheet:
        assert (np.asarray(sheet) != with_masks).any(axis=2).mean() > 0.01, "a tinted triangle"
    capsys.readouterr()
    edit = {"segmentation": [[4, 4, 20]]}
    change(tree, "train", lambda c: c["annotations"][3].update(edit))
    assert main(command) == 0, "boxes can be trained on"
    printed = capsys.readouterr().out
    assert "! boxes can be used, masks cannot:" in printed
    assert "has a polygon that is not a list of at least three points" in printed
    assert main([*command, "--masks"]) == 1


def test_good_data(main, tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--data-dir", str(tree), "--output", str(out), "--samples", "4", "--masks"]) == 0
    printed = capsys.readouterr().out
    assert "! 1 class has no object in train: bar" in printed
    assert "instances_train.json: 5 images, 10 boxes" in printed
    assert "instances_val.json: 5 images, 10 boxes" in printed
    assert "bar: no boxes" in printed
    assert "5/5" in printed
    assert "can be trained on" in printed
    assert sorted(file.name for file in out.glob("*.png")) == [
        "samples_train.png",
        "samples_val.png",
    ]
    for path in out.glob("*.png"):
        assert str(path) in printed
        with Image.open(path) as sheet:
            assert sheet.height > 900, "two rows of pictures"


def test_explicit_paths_without_samples(main, tree, tmp_path, capsys):
    arguments = ["--annotations", str(tree / "annotations/instances_val.json")]
    arguments += ["--images", str(tree / "images/val"), "--samples", "0"]
    out = tmp_path / "out"
    assert main([*arguments, "--output", str(out)]) == 0
    assert not out.exists()


def test_corrupt_images_are_named_and_counted(main, tree, tmp_path, capsys):
    for name in ("train1.png", "train3.png"):
        path = tree / "images/train" / name
        path.write_bytes(path.read_bytes()[:200])
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "train1.png is damaged" in printed
    assert "train3.png is damaged" in printed
    assert "2 broken" in printed
    assert "cannot be trained on: 2 faults" in printed
    assert (tmp_path / "out" / "samples_train.png").exists(), "the good images are shown"


def test_wrong_stated_size_is_found(main, tree, tmp_path, capsys):
    change(tree, "val", lambda content: content["images"][2].update(width=1234))
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "val2.png is 64 x 48 pixels" in printed
    assert "1234" in printed


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox [1, 2, 3]"),
        (lambda c: c["images"][0].update(file_name="../x.png"), "leads out of the image folder"),
        (lambda c: c["categories"][0].update(name="other"), "val has other categories than train"),
    ],
)
def test_faulty_annotations(main, tree, tmp_path, capsys, edit, expected):
    change(tree, "val", edit)
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert expected in printed
    assert "instances_train.json: 5 images" in printed, "the good split is still summarised"


def test_masks_are_checked_when_asked_for(main, tree, tmp_path, capsys):
    change(tree, "val", lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3]]))
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out")]) == 0
    assert "not needed for boxes" in capsys.readouterr().out
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out"), "--masks"]) == 1
    assert "at least three points" in capsys.readouterr().out


def test_empty_folder(main, tmp_path, capsys):
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert "no detection data of a known layout" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data-dir", "a", "--annotations", "b", "--images", "c"],
        ["--annotations", "b"],
        ["--mask-dir", "b"],
        ["--mask-dir", "b", "--images", "c", "--annotations", "d"],
        ["--data-dir", "a", "--images", "c"],
        ["--data-dir", "a", "--samples", "-1"],
    ],
)
def test_wrong_arguments(main, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / "voc", {"train": ["a", "b"], "val": ["c"]})
    return tmp_path / "voc"


def test_good_masks(main, voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--data-dir", str(voc), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "voc, train: 2 images, 21 classes" in printed
    assert "ignored 16.7 % of all pixels" in printed
    assert "can be trained on" in printed
    assert sorted(file.name for file in out.glob("*.png")) == [
        "samples_train.png",
        "samples_val.png",
    ]
    with Image.open(out / "samples_val.png") as sheet:
        assert sheet.height > 480 + 20, "a legend above the picture"


def test_boxes_and_masks_in_one_folder(main, tree, tmp_path, capsys):
    write_image(tree / "images" / "train" / "a.jpg")
    write_mask(tree / "masks" / "train" / "a.png")
    assert main(["--data-dir", str(tree), "--samples", "0"]) == 1
    printed = capsys.readouterr().out
    assert "more than one layout: COCO annotations" in printed
    assert "--layout coco or --layout masks" in printed
    assert main(["--data-dir", str(tree), "--samples", "0", "--layout", "coco"]) == 0


@pytest.mark.parametrize("name", ["roboflow", "yolo", "voc", "single"])
def test_layouts_of_boxes(main, name, tmp_path, capsys):
    root = getattr(layout_trees, f"write_{name}")(tmp_path / "tree")
    arguments = ["--data-dir", str(root), "--output", str(tmp_path / "out"), "--samples", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"Found {root}: " in printed and "[x] größe" in printed
    assert ("no validation split: train with --val-share" in printed) == (name == "single")
    assert main([*arguments, "--val-share", "0.5"]) == (name != "single")
    said = "labels.json (val): 2 images" if name == "single" else "leave out --val-share"
    assert said in capsys.readouterr().out


def test_explicit_splits(main, tree, capsys):
    paths = []
    for split in ("train", "val"):
        file = tree / "annotations" / f"instances_{split}.json"
        paths += [f"--{split}-annotations", str(file)]
        paths += [f"--{split}-images", str(tree / "images" / split)]
    assert main([*paths, "--samples", "0"]) == 0
    assert "instances_val.json: 5 images" in capsys.readouterr().out


def test_every_bad_mask_is_named(main, voc, tmp_path, capsys):
    masks = voc / "SegmentationClass"
    write_mask(masks / "a.png", np.full((2, 3), 77, np.uint8))
    write_mask(masks / "b.png", np.zeros((4, 4), np.uint8))
    write_mask(masks / "c.png", np.full((2, 3), 255, np.uint8))
    assert main(["--data-dir", str(voc), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "a.png has label 77 at row 0, column 0" in printed
    assert "b.png is 4 x 4 pixels and its image" in printed
    assert "voc, val has no labelled pixel" in printed
    assert "cannot be trained on: 3 faults" in printed


def test_a_folder_of_masks(main, tmp_path, capsys):
    write_image(tmp_path / "pictures" / "a.jpg")
    write_mask(tmp_path / "labels" / "a.png")
    paths = ["--images", str(tmp_path / "pictures"), "--mask-dir", str(tmp_path / "labels")]
    assert main([*paths, "--samples", "0"]) == 0
    assert "class_2" in capsys.readouterr().out


def test_what_cannot_be_learnt_from(main, tree, tmp_path, capsys):
    for split in ("train", "val"):
        change(tree, split, lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    assert main(["--data-dir", str(tree), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "all 10 objects are crowd regions" in printed and "cannot be trained on" in printed


def test_what_is_suspicious(main, tmp_path, capsys):
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "a.jpg")
        labels = np.array([[0, 128, 255], [0, 0, 128]], np.uint8)
        write_mask(tmp_path / "masks" / split / "a.png", labels)
    assert main(["--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "! 127 of 129 labels never occur, the masks hold 0, 128" in capsys.readouterr().out


@pytest.mark.parametrize("classes, code", [(("cat", "[x] dog"), 0), (("cat",), 1)])
def test_class_folders(main, tmp_path, capsys, classes, code):
    for split in ("train", "val"):
        write_split(tmp_path / "data" / split, classes)
    out = tmp_path / "out"
    assert main(["--data-dir", str(tmp_path / "data"), "--output", str(out)]) == code
    printed = capsys.readouterr().out
    assert (out / "samples_val.png").exists()
    if code:
        assert "all images are of one class (cat)" in printed
    else:
        assert "[x] dog" in printed and "6 images, 2 classes" in printed


def test_a_bad_class_image_is_named(main, tmp_path, capsys):
    for split in ("train", "val"):
        write_split(tmp_path / split)
    image = tmp_path / "val" / "cat" / "0.jpg"
    image.write_bytes(image.read_bytes()[:-60])
    assert main(["--data-dir", str(tmp_path), "--samples", "0"]) == 1
    assert "0.jpg is damaged" in capsys.readouterr().out


def test_brackets_in_paths_and_names(main, tree, tmp_path, capsys):
    place = tmp_path / "[x] [bold]"
    tree.rename(place)
    for split in ("train", "val"):
        change(place, split, lambda c: c["categories"][0].update(name="[/red]"))
    assert main(["--data-dir", str(place), "--output", str(tmp_path / "[out]")]) == 0
    printed = capsys.readouterr().out
    assert "[x] [bold]" in printed and "[/red]" in printed and "[out]" in printed
    assert main(["--data-dir", str(tmp_path / "[/gone]"), "--samples", "0"]) == 1


def test_the_output_is_in_the_home_folder_and_not_over_others(main, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ["--data-dir", "~/tree", "--output=~/seen", "--samples", "1"]
    assert main(arguments) == main(arguments) == 0, "again, into what it wrote"
    assert (tmp_path / "seen" / "samples_val.png").exists() and not (tmp_path / "~").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("my only copy")
    assert main([*arguments[:2], "--output", "mine"]) == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_usage_names_the_script(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: tools/check_dataset.py ")
