"""`predict` and `evaluate` on what is no plain detector: masks, pixels, classes, a user's own."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_densepred import (
    CEDNetBackbone,
    CEDNetImageClassifier,
    FeaturePyramid,
    ResNetBackbone,
    data,
    training,
)
from keras_densepred.cli import main
from keras_densepred.models import DeepLabV3, MaskRCNN
from tests.cli.trained import BYTE, ZERO, save
from tests.data import class_pictures
from tests.data.masks import write_mask
from tests.models.conftest import ToyPyramid

ROOT = Path(__file__).parents[2]


@pytest.mark.slow_on("jax", "tensorflow")
def test_masks_are_drawn_and_measured(photos, tmp_path, capsys):
    split = data.ShapesDataset(2, 64, 0, "val", with_masks=True)
    split.write_coco(tmp_path / "tree")
    pyramid = FeaturePyramid(ResNetBackbone((1, 1, 1, 1), width=2, fixed_batch_norm=True), width=8)
    options = dict(head_width=16, num_proposals=20, mask_convs=1, max_detections=5)
    names = split.class_names
    model = MaskRCNN(pyramid, len(names), confidence_threshold=0.0, **options)
    frame = training.Preprocessing("detection", ZERO, BYTE, short_side=48, long_side=80)
    run = save(model, tmp_path / "run", "detector.keras", frame, names)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(photos), "--output", str(out), "--score", "0"]) == 0
    results = json.loads((out / "detections.json").read_text())
    sizes = {1: [40, 60], 2: [80, 50], 3: [64, 64]}
    assert results and all(r["segmentation"]["size"] == sizes[r["image_id"]] for r in results)
    place = tmp_path / "tree"
    paths = ["--annotations", str(place / "annotations" / "instances_val.json")]
    paths += ["--images", str(place / "images" / "val")]
    file = tmp_path / "ap.json"
    command = ["evaluate", str(run), *paths, "--output", str(file)]
    assert main(command) == 0
    content = json.loads(file.read_text())
    assert {"AP", "mask_AP"} <= set(content["results"]), "without being asked"
    assert set(content["by_class"]) == {"boxes", "masks"}
    assert "mask_AP50" in (tmp_path / "ap" / "per_class.csv").read_text()
    annotations = json.loads(Path(paths[1]).read_text())
    for item in annotations["annotations"]:
        del item["segmentation"]
    Path(paths[1]).write_text(json.dumps(annotations))
    assert main(command) == 0
    assert "mask_AP" not in json.loads(file.read_text())["results"]
    assert "boxes alone are evaluated" in capsys.readouterr().out
    assert main([*command, "--masks"]) == 1


def test_a_segmenter_labels_pixels(photos, tmp_path, capsys):
    names = ("background", "cat", "dog")
    model = DeepLabV3(ToyPyramid(ready=False), 3, width=8, atrous_rates=None)
    frame = training.Preprocessing("segmentation", ZERO, BYTE, 64)
    run = save(model, tmp_path / "run", "segmenter.keras", frame, names)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(photos), "--output", str(out)]) == 0
    masks = sorted((out / "masks").iterdir())
    assert [p.name for p in masks] == ["a.png", "b.png", "c.png"]
    assert data.load_mask(masks[1]).shape == (80, 50)
    assert set(np.unique(data.load_mask(masks[1]))) <= {0, 1, 2}
    with Image.open(masks[0]) as mask:
        assert mask.mode == "P" and mask.getpalette()[:3] == [0, 0, 0]
    with Image.open(out / "pictures" / "a.png") as picture:
        assert picture.height > 40, "a legend above the picture"

    server = tmp_path / "server"
    command = ["predict", str(run), str(photos), "--output", str(server), "--ade20k-labels"]
    assert main(command) == 0
    for mask in masks:
        with Image.open(server / "masks" / mask.name) as numbers:
            assert numbers.mode == "L"
            np.testing.assert_array_equal(np.array(numbers), data.load_mask(mask) + 1)

    capsys.readouterr()
    (tmp_path / "truth").mkdir()
    for mask in masks:  # what it finds itself, so that all of it is right
        (tmp_path / "truth" / mask.name).write_bytes(mask.read_bytes())
    paths = ["--images", str(photos), "--mask-dir", str(tmp_path / "truth")]
    file = tmp_path / "iou.json"
    assert main(["evaluate", str(run), *paths, "--output", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["results"]["mIoU"] == 1.0
    assert np.trace(content["confusion"]) == 40 * 60 + 80 * 50 + 64 * 64
    assert {p.name for p in (tmp_path / "iou").glob("[!.]*")} == {"iou.csv", "confusion.png"}
    test = tmp_path / "tree" / "test"
    shutil.copytree(tmp_path / "truth", test / "masks")
    (test / "images").mkdir()
    for photo in photos.glob("*.*g"):
        shutil.copy(photo, test / "images")
    command = ["evaluate", str(run), "--data-dir", str(tmp_path / "tree"), "--split", "test"]
    assert main([*command, "--output", str(file)]) == 0
    assert json.loads(file.read_text())["results"] == content["results"]
    shutil.copytree(photos, tmp_path / "photos")
    next((tmp_path / "photos").glob("b.*")).write_bytes(b"no picture")
    command = ["evaluate", str(run), "--images", str(tmp_path / "photos"), *paths[2:]]
    command += ["--output", str(file), "--on-bad-image"]
    assert main([*command, "raise"]) == 1
    assert main([*command, "skip"]) == 0
    content = json.loads(file.read_text())
    assert np.trace(content["confusion"]) == 40 * 60 + 64 * 64 and content["images"] == 2
    write_mask(tmp_path / "truth" / "a.png", np.full((40, 60), 7, np.uint8))
    assert main(["evaluate", str(run), *paths]) == 1
    assert "labels up to 7" in capsys.readouterr().err


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_classifier_ranks_classes(tmp_path, capsys):
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    run = tmp_path / "run"
    CEDNetImageClassifier(backbone, 2).save_to_preset(str(run / "preset" / "classifier"))
    training.Preprocessing("classification", ZERO, BYTE, 32, crop_ratio=0.875).write(run / "preset")
    classes = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    (run / "preset" / "classes.json").write_text(json.dumps(classes))
    for split in ("train", "val"):
        class_pictures.write_split(tmp_path / "tree" / split)
    out = tmp_path / "out"
    pattern = str(tmp_path / "tree" / "val" / "*" / "*")
    assert main(["predict", str(run), pattern, "--output", str(out)]) == 0
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and [row["rank"] for row in rows[:2]] == ["1", "2"]
    assert {row["class"] for row in rows} == {"cat", "dog"}
    assert sum(float(row["probability"]) for row in rows[:2]) == pytest.approx(1, abs=1e-5)
    file = tmp_path / "top.json"
    command = ["evaluate", str(run), "--data-dir", str(tmp_path / "tree"), "--output", str(file)]
    assert main(command) == 0
    top1 = json.loads(file.read_text())["results"]["top1"]
    right = [row for row in rows if row["rank"] == "1" and f"/{row['class']}/" in row["file_name"]]
    assert top1 == len(right) / 6
    assert {p.name for p in (tmp_path / "top").glob("[!.]*")} == {"confusion.png"}
    (tmp_path / "tree" / "val").rename(tmp_path / "tree" / "test")
    shutil.rmtree(tmp_path / "tree" / "train")
    assert main([*command, "--split", "test"]) == 0
    assert json.loads(file.read_text())["results"]["top1"] == top1
    assert main([*command, "--split", "val"]) == 1


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_users_own_model_needs_its_module_only(photos, tmp_path, monkeypatch, capsys):
    """A family and a classifier that nothing in the package knows."""
    (tmp_path / "their_networks.py").write_text(THEIR_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import their_networks

    model = their_networks.TheirClassifier(their_networks.TheirBackbone(), 2)
    frame = training.Preprocessing("classification", ZERO, BYTE, 32, crop_ratio=1.0)
    run = save(model, tmp_path / "run", "classifier.keras", frame, ("cat", "dog"))
    file = str(run / "preset" / "classifier.keras")
    program = (
        "import sys; sys.argv[0] = 'keras-densepred'; from keras_densepred.cli import main\n"
        "sys.exit(main(sys.argv[1:]) != 1 or main([*sys.argv[1:], '--import', 'their_networks']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "predict", file, str(photos / "a.png")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "holds a TheirClassifier" in done.stderr and "--import" in done.stderr
    assert done.stdout.count("TheirClassifier, 1 image") == 1
    assert main(["info", "their_small", "--image-size", "64", "--import", "their_networks"]) == 0
    assert "TheirBackbone" in capsys.readouterr().out
    assert main(["info", "their_small", "--import", "no_such_module"]) == 1
    assert "no module 'no_such_module'" in capsys.readouterr().err


THEIR_MODULE = """
import keras
from keras_densepred import models
from keras_densepred.backbones import PyramidBackbone, register_backbone
from keras_densepred.layers.image_input import image_input


@register_backbone
class TheirBackbone(PyramidBackbone):
    architectures = {"their_small": {"width": 4}}

    def __init__(
        self, width=4, image_shape=(None, None, 3), data_format=None, dtype=None, **kwargs
    ):
        inputs, x = image_input(image_shape, data_format, dtype)
        levels = {}
        for level in range(1, 6):
            x = keras.layers.Conv2D(width, 3, 2, "same", "channels_last", name=f"c{level}")(x)
            levels[f"P{level}"] = x
        super().__init__(
            inputs=inputs, pyramid_outputs=levels, image_shape=image_shape, dtype=dtype, **kwargs
        )
        self.width = width


@keras.saving.register_keras_serializable(package="theirs")
class TheirClassifier(models.PooledImageClassifier):
    pass
"""
