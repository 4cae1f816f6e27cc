"""`tools/convert_dataset.py`: there and back, boxes stay within half a pixel."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from keras_densepred import data
from tests.data import layout_trees as trees

pytestmark = pytest.mark.backend_free

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_dataset.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Built-in pictures with fractional boxes, masks in parts, a crowd region, and sub-folders."""
    root = tmp_path_factory.mktemp("shapes")
    for split in ("train", "val"):
        data.ShapesDataset(6, 96, 0, split, with_masks=True).write_coco(root)
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["iscrowd"] = 1
        image = content["images"][0]
        (root / "images" / split / "sub").mkdir()
        path = root / "images" / split / image["file_name"]
        path.rename(path.parent / "sub" / path.name)
        image["file_name"] = f"sub/{path.name}"
        for number, entry in enumerate(content["annotations"]):
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x + 0.3, y + 0.2, width - 0.4, height - 0.37 * (number % 2)]
        file.write_text(json.dumps(content))
    return root


def convert(tool, source, target, *flags):
    assert tool.main([str(source), str(target), *map(str, flags)]) == 0
    return target


def opened(root, with_masks=False):
    return data.open_splits(data.DetectionFiles(root), with_masks=with_masks)


def by_name(split):
    records = (split[index] for index in range(len(split)))
    return {Path(record.file_name).stem: record for record in records}


@pytest.mark.parametrize("back", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("there", ["coco", "yolo", "voc"])
def test_there_and_back(tool, shapes, tmp_path, there, back, capsys):
    first = convert(tool, shapes, tmp_path / "a", "--format", there)
    assert "Wrote" in capsys.readouterr().out
    second = convert(tool, first, tmp_path / "b", "--format", back)
    expected, found = opened(shapes), opened(second)
    without_crowd = "yolo" in (there, back)
    # Whole pixels twice; else to half of one.
    tolerance = 0.501 if "voc" in (there, back) else 1e-3
    for split, dataset in expected.items():
        assert found[split].class_names == dataset.class_names
        records = by_name(found[split])
        for name, record in by_name(dataset).items():
            match = next(r for stem, r in records.items() if stem.endswith(name))
            np.testing.assert_array_equal(match.image, record.image)
            kept = record.select(~record.crowd) if without_crowd else record
            np.testing.assert_allclose(match.boxes, kept.boxes, atol=tolerance)
            assert match.labels.tolist() == kept.labels.tolist()
            assert match.crowd.tolist() == kept.crowd.tolist()


def test_a_yolo_tree_is_where_its_file_is(tool, shapes, tmp_path):
    tree = convert(tool, shapes, tmp_path / "a", "--format", "yolo")
    lines = (tree / "data.yaml").read_text().splitlines()
    assert {"train: images/train", "val: images/val"} <= set(lines)
    assert not any(line.startswith("path:") for line in lines)  # from where a program is started


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_masks(tool, shapes, tmp_path, form):
    found = opened(convert(tool, shapes, tmp_path / "a", "--format", form, "--masks"), True)
    for split, dataset in opened(shapes, True).items():
        records = by_name(found[split])
        for name, record in by_name(dataset).items():
            ours, theirs = records[name].masks, record.masks
            if form == "yolo":
                theirs = theirs[~record.crowd]
            overlap = (ours & theirs).sum((1, 2)) / np.maximum((ours | theirs).sum((1, 2)), 1)
            assert (overlap == 1 if form == "coco" else overlap > 0.9).all()


def test_a_mask_in_two_parts_is_one_polygon(tool):
    from faster_coco_eval.core import mask as api

    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 5:25] = mask[20:35, 30:50] = mask[2, 50] = 1
    rle = api.encode(np.asfortranarray(mask))
    points = tool.mask_polygon(rle)
    drawn = api.decode(api.frPyObjects([points.ravel().tolist()], 40, 60))[..., 0]
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    empty = api.encode(np.asfortranarray(np.zeros_like(mask)))
    assert tool.mask_polygon(empty).shape == (0, 2)


def test_what_yolo_cannot_say_is_counted(tool, shapes, tmp_path, capsys):
    convert(tool, shapes, tmp_path / "a", "--format", "yolo")
    assert "2 crowd regions left out" in capsys.readouterr().out


def test_one_stem_twice_and_odd_names(tool, tmp_path):
    root = trees.write_coco(tmp_path / "a")
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "a.png"
    (root / "images" / "val" / "d.png").rename(root / "images" / "val" / "a.png")
    file.write_text(json.dumps(content))
    for form in ("yolo", "voc"):
        splits = opened(convert(tool, root, tmp_path / form, "--format", form))
        assert splits["val"].class_names == trees.NAMES
        assert splits["val"][0].boxes.tolist() == [[2, 2, 12, 12]]
        assert splits["train"][0].boxes.tolist() == [[4, 6, 24, 26], [30, 10, 50, 30]]


def test_boxes_of_a_pixel_survive(tool, tmp_path):
    root = trees.write_coco(tmp_path / "a")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [3, 4, 1, 1]
    file.write_text(json.dumps(content))
    splits = opened(convert(tool, root, tmp_path / "voc", "--format", "voc"))
    assert splits["train"][0].boxes.tolist()[0] == [3, 4, 4, 5]


def test_nothing_is_written_over(tool, tmp_path, capsys):
    root = trees.write_coco(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for target, said in ((tmp_path / "b", "exists"), (root, "read"), (root / "c", "lies in")):
        assert tool.main([str(root), str(target), "--format", "yolo"]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not any((tmp_path / "b").iterdir()) and not (root / "c").exists()
    assert tool.main([str(root), str(tmp_path / "d"), "--format", "voc", "--masks"]) == 1
    assert "no masks" in capsys.readouterr().err
    (root / "images" / "train" / "a.png").unlink()
    assert tool.main([str(root), str(tmp_path / "d"), "--format", "yolo"]) == 1
    assert "a.png" in capsys.readouterr().err and not (tmp_path / "d").exists()
