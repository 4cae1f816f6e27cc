"""`tools/yolo_anchors.py` as a user runs it."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

SCRIPT = Path(__file__).parents[2] / "tools" / "yolo_anchors.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("yolo_anchors", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def tree(tmp_path):
    """A COCO tree of one image in each split; its boxes are 4, 8 and 12 px wide, 8 px high."""
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"only its name is read")
        boxes = [[2, 2, 4 * n, 8] for n in (1, 2, 3)] if split == "train" else []
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
            "categories": [{"id": 1, "name": "blob"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": box}
                for n, box in enumerate(boxes)
            ],
        }
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return tmp_path


def test_prints_anchors_at_the_image_size(main, tree, capsys):
    assert main(["--data-dir", str(tree), "--image-size", "128", "--number", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 boxes at 128 px, mean IoU 1.000" in out
    assert "[(8, 16), (16, 16), (24, 16)]" in out


def test_annotation_file(main, tree, capsys):
    file, images = tree / "annotations/instances_train.json", tree / "images/train"
    arguments = ["--annotations", str(file), "--images", str(images), "--image-size", "64"]
    assert main([*arguments, "--number", "1"]) == 0
    assert "[(8, 8)]" in capsys.readouterr().out


def test_too_many_anchors(main, tree, capsys):
    assert main(["--data-dir", str(tree)]) == 1
    assert "error: `number` is 9; the data set has 3 different" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--data-dir", "x", "--tfds", "y"], ["--images", "x"]])
def test_one_source(main, arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give --data-dir" in capsys.readouterr().err
