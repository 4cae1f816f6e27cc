"""`predict` and `evaluate` as a user runs them, on tiny models of every task."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
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
from keras_densepred.models import DeepLabV3, MaskRCNN, YOLOv3Detector
from tests.data import class_pictures
from tests.data.masks import write_mask
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights

ZERO, BYTE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
ROOT = Path(__file__).parents[2]
SHAPES = data.ShapesDataset(3, 64, 0, "val")


def save(model, folder, name, preprocessing, names):
    """As a recipe leaves a model behind."""
    preset = folder / "preset"
    preset.mkdir(parents=True)
    model.save(preset / name)
    preprocessing.write(preset)
    classes = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(names)]
    (preset / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images of different sizes, one of them tall, and what is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (80, 50)), ("c.png", (64, 64))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    keras.utils.set_random_seed(0)
    names = SHAPES.class_names
    model = YOLOv3Detector(ToyPyramid(ready=False), len(names), "prn")
    set_deterministic_weights(model)
    for level in model.masks:
        bias = model.get_layer(f"yolo_{level.lower()}_prediction").bias
        bias.assign(np.random.default_rng(1).normal(0, 2, bias.shape))
    frame = training.Preprocessing("detection", ZERO, BYTE, 64, stretch=True)
    return save(model, tmp_path_factory.mktemp("detector"), "detector.keras", frame, names)


def test_a_detector_draws_and_writes_coco_results(detector, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(detector), str(photos), "--output", str(out)]) == 0
    assert "YOLOv3Detector, 3 images" in capsys.readouterr().out
    assert sorted(p.name for p in out.glob("[!.]*")) == ["detections.json", "pictures"]
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["a.png", "b.png", "c.png"]
    with Image.open(out / "pictures" / "b.png") as picture:
        assert picture.size == (300, 480), "enlarged so that names can be read"
    results = json.loads((out / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2, 3}
    assert {result["category_id"] for result in results} <= {10, 20, 30, 40, 50, 60, 70, 80}
    tall = [result for result in results if result["file_name"].endswith("b.jpg")]
    x, y, width, height = np.array([result["bbox"] for result in tall]).T
    assert (x + width).max() <= 50.01 and 60 < (y + height).max() <= 80.01, "in pixels of the file"

    before = {path.name for path in tmp_path.rglob("*")}
    command = ["predict", str(detector), str(photos / "a.png"), "--output", str(out)]
    assert main(command) == 0
    assert before - {path.name for path in tmp_path.rglob("*")} == {"b.png", "c.png"}

    # The same model through Keras, on what the recipe would have given it.
    model = keras.saving.load_model(detector / "preset" / "detector.keras", compile=False)
    with Image.open(photos / "c.png") as picture:
        image = np.asarray(picture, np.float32)[None] / 255
    expected = model.predict(image, verbose=0)
    square = [result["score"] for result in results if result["image_id"] == 3]
    count = int(expected["num_detections"][0])
    np.testing.assert_allclose(square, expected["confidence"][0, :count], rtol=1e-4)


@pytest.mark.backend_free
@pytest.mark.parametrize("flags", ["--tile 0", "--tile 64 --overlap 2"])
def test_pieces_without_an_extent_are_refused_before_the_model_is_opened(flags, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    command = ["predict", "no_such_model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*command, *flags.split()]) == 1
    assert flags.rpartition("--")[2] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_large_pictures_in_pieces_and_objects_by_themselves(detector, photos, tmp_path):
    results = {}
    for name, tile in (("whole", []), ("large", ["--tile", "80"]), ("small", ["--tile", "40"])):
        out = tmp_path / name
        command = ["predict", str(detector), str(photos), "--output", str(out), "--save-crops"]
        assert main([*command, "--score", "0.5", *tile]) == 0
        results[name] = json.loads((out / "detections.json").read_text())
    assert len(results["large"]) == len(results["whole"])
    for one, other in zip(results["large"], results["whole"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["category_id"] == other["category_id"]
    for result in results["small"]:
        x, y, width, height = result["bbox"]
        assert min(x, y) >= 0 and x + width <= 64.01 and y + height <= 80.01
    crops = list((tmp_path / "whole" / "crops").rglob("*.png"))
    assert len(crops) == sum(result["score"] >= 0.5 for result in results["whole"]) > 0
    assert {path.parent.name for path in crops} <= set(SHAPES.class_names)


def test_an_unreadable_image_is_named_and_the_others_done(detector, photos, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes((photos / "a.png").read_bytes()[:300])
    names = [str(photos / "a*"), str(broken), str(photos / "c.png")]
    out = tmp_path / "out"
    assert main(["predict", str(detector), *names, "--output", str(out)]) == 1
    error = capsys.readouterr().err
    assert "broken.png is damaged" in error and error.count("\n") == 1
    assert sorted(p.name for p in out.rglob("*.png")) == ["a.png", "c.png"]
    images = {r["image_id"] for r in json.loads((out / "detections.json").read_text())}
    assert images == {1, 3}


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
    write_mask(tmp_path / "truth" / "a.png", np.full((40, 60), 7, np.uint8))
    assert main(["evaluate", str(run), *paths]) == 1
    assert "labels up to 7" in capsys.readouterr().err


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


def test_a_model_without_its_preprocessing(detector, photos, tmp_path, capsys):
    file = tmp_path / "alone.keras"
    file.write_bytes((detector / "preset" / "detector.keras").read_bytes())
    command = ["predict", str(file), str(photos / "a.png"), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "give --image-size, --mean, --std" in capsys.readouterr().err
    numbers = ["--image-size", "64", "--mean", "0", "0", "0", "--std", "255", "255", "255"]
    assert main([*command, *numbers]) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {r["category_id"] for r in results} <= set(range(len(SHAPES.class_names)))


def test_faults_are_one_sentence(detector, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.keras").write_text("no model")
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    picture = str(photos / "a.png")
    for arguments, words in (
        ((tmp_path / "nowhere", picture), "There is no file or directory"),
        ((tmp_path / "empty", picture), "holds no trained model"),
        ((tmp_path / "text.keras", picture), "is no saved Keras model"),
        ((tmp_path / "other.keras", picture), "holds a Functional"),
        ((detector, tmp_path / "empty"), "has no images"),
        ((detector, tmp_path / "none*.jpg"), "There is no image"),
        ((detector, picture, "--batch-size", "0"), "--batch-size must be"),
        ((detector, picture, "--image-size", "0"), "Sides must be positive"),
    ):
        output = ["--output", str(tmp_path / "out")]
        assert main(["predict", *map(str, arguments), *output]) == 1, words
        assert not (tmp_path / "out").exists(), words
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1, error
    file = detector / "preset" / "preprocessing.json"
    text = file.read_text()
    file.write_text(text.replace("255.0", '"255"'))
    assert main(["predict", str(detector), picture]) == 1
    assert "does not say how images are prepared" in capsys.readouterr().err
    file.write_text(text)


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
    command = [sys.executable, "-m", "keras_densepred", "predict", file, str(photos / "a.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    options = dict(capture_output=True, text=True, env=environment)
    unknown = subprocess.run(command, **options)
    assert unknown.returncode == 1
    assert "holds a TheirClassifier" in unknown.stderr and "--import" in unknown.stderr
    found = subprocess.run([*command, "--import", "their_networks"], **options)
    assert found.returncode == 0, found.stderr
    assert "TheirClassifier, 1 image" in found.stdout
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
