"""`evaluate` as a user runs it: numbers, tables and pictures, and the same from every layout."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from keras_densepred import data
from keras_densepred.cli import main
from tests.cli.trained import SHAPES


@pytest.mark.slow_on("jax", "tensorflow")  # there `predict` is run
def test_a_detector_is_evaluated(detector, tmp_path, capsys):
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        data.ShapesDataset(3, 64, 0, split).write_coco(tree)
    out = tmp_path / "result.json"
    assert main(["evaluate", str(detector), "--data-dir", str(tree), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "AP50" in printed and "boxes" in printed and "background" in printed
    content = json.loads(out.read_text())
    assert content["images"] == 3 and 0 <= content["results"]["AP"] <= 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["result.json"]
    files = {path.name for path in (tmp_path / "result").glob("[!.]*")}
    assert files == {"per_class.csv", "precision_recall.png", "confusion.png", "worst.png"}
    with (tmp_path / "result" / "per_class.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == SHAPES.class_names
    objects = np.bincount(np.concatenate([SHAPES[index].labels for index in range(3)]))
    assert [int(row["objects"]) for row in rows.values()][: len(objects)] == objects.tolist()
    assert sum(content["errors_at_threshold"].values()) > 0 and "AP50_lost" in content

    again = ["evaluate", str(detector), "--data-dir", str(tree), "--output", str(out)]
    assert main(again) == 0 and "in place of an earlier" in capsys.readouterr().out
    out.write_text(json.dumps({**content, "model": str(tmp_path / "another" / "detector.keras")}))
    assert main(again) == 1  # nobody's tables are replaced by those of another model
    assert f"{out} exists: give another --output, or --overwrite" in capsys.readouterr().err

    broken = next((tree / "images" / "val").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    again[-1] = str(tmp_path / "two.json")
    assert main(again) == 1
    assert "leave such images out with --on-bad-image skip" in capsys.readouterr().err
    assert not (tmp_path / "two.json").exists()
    assert main([*again, "--on-bad-image", "skip"]) == 0
    assert f"! left out: {broken}" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "two" / "worst.png").exists()
    content = json.loads((tmp_path / "two.json").read_text())
    shown = sum(row["objects"] for row in content["by_class"]["boxes"].values())
    assert content["images"] == 2 and 0 < shown < sum(objects)  # those of two images

    file = tree / "annotations" / "instances_val.json"
    annotations = json.loads(file.read_text())
    annotations["categories"][0]["name"] = "dog"
    file.write_text(json.dumps(annotations))
    paths = ["--annotations", str(file), "--images", str(tree / "images" / "val")]
    command = ["evaluate", str(detector / "preset" / "detector.keras"), *paths]
    assert main(command) == 1
    assert "'dog'" in capsys.readouterr().err
    annotations["categories"].append({"id": 99, "name": "more"})
    file.write_text(json.dumps(annotations))
    assert main(command) == 1
    count = len(SHAPES.class_names)
    assert f"has {count} classes and {file} {count + 1}" in capsys.readouterr().err


@pytest.mark.slow_on("jax", "tensorflow")
def test_other_layouts_and_splits(detector, tmp_path, capsys):
    """A YOLO tree with pictures in sub-folders: the same data, the same numbers."""
    coco, yolo = tmp_path / "coco", tmp_path / "yolo"
    label_of = {name: label for label, name in enumerate(SHAPES.class_names)}
    for split in ("train", "val", "test"):
        data.ShapesDataset(3, 64, 0, "val" if split == "test" else split).write_coco(coco)
    (yolo / "labels" / "val" / "sub").mkdir(parents=True)
    for index in range(len(SHAPES)):
        record = SHAPES[index]
        path = yolo / "images" / "val" / "sub" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record.image).save(path)
        x1, y1, x2, y2 = record.boxes.T / 64
        rows = zip(record.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, strict=True)
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        (yolo / "labels" / "val" / "sub" / f"{index}.txt").write_text(text)
    names = ", ".join(label_of)
    places = "train: images/val\nval: images/val\ntest: images/val\n"
    (yolo / "data.yaml").write_text(f"names: [{names}]\n{places}")
    results = []
    for folder, split in ((coco, "val"), (yolo, "val"), (yolo, "test")):
        out = tmp_path / "result.json"
        command = ["evaluate", str(detector), "--data-dir", str(folder), "--split", split]
        assert main([*command, "--output", str(out)]) == 0
        results.append(json.loads(out.read_text())["results"])
    assert results[0] == pytest.approx(results[1], abs=1e-5) and results[1] == results[2]
    assert "YOLO labels (data.yaml)" in capsys.readouterr().out
    out = tmp_path / "found"
    (yolo / "images" / "val" / "top.png").write_bytes(path.read_bytes())
    assert main(["predict", str(detector), "--data-dir", str(yolo), "--output", str(out)]) == 0
    pictures = {p.relative_to(out / "pictures").as_posix() for p in out.rglob("pictures/**/*.png")}
    assert pictures == {"sub/0.png", "sub/1.png", "sub/2.png", "top.png"}
    with pytest.raises(SystemExit):
        main(["predict", str(detector), str(path), "--data-dir", str(yolo)])
    command = ["evaluate", str(detector), "--data-dir", str(coco), "--split", "test"]
    assert main([*command, "--output", str(tmp_path / "x.json")]) == 1
    assert "without a test split" in capsys.readouterr().err
    # Trees with nothing else.
    (coco / "annotations" / "instances_val.json").rename(
        coco / "annotations" / "instances_test.json"
    )
    (coco / "images" / "val").rename(coco / "images" / "test")
    (coco / "annotations" / "instances_train.json").unlink()
    (yolo / "data.yaml").write_text(f"names: [{names}]\ntest: images/val\n")
    (yolo / "images" / "val" / "top.png").unlink()
    for folder in (coco, yolo):
        out = tmp_path / "result.json"
        command = ["evaluate", str(detector), "--data-dir", str(folder), "--split", "test"]
        assert main([*command, "--output", str(out)]) == 0
        again = json.loads(out.read_text())["results"]
        assert again == pytest.approx(results[0], abs=1e-5)
