"""`predict` as a user runs it, on a tiny detector."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_densepred.cli import main
from tests.cli.trained import SHAPES


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


@pytest.mark.slow_on("jax", "tensorflow")
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


def test_a_model_without_its_preprocessing(detector, photos, tmp_path, capsys):
    file = tmp_path / "alone.keras"
    file.write_bytes((detector / "preset" / "detector.keras").read_bytes())
    command = ["predict", str(file), str(photos / "a.png"), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "give --image-size, --mean, --std" in capsys.readouterr().err
    numbers = ["--image-size", "64", "--mean", "0", "0", "0", "--std", "255", "255", "255"]
    assert main([*command, *numbers]) == 0
    assert f"there is no classes.json beside {file}" in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {r["category_id"] for r in results} <= set(range(len(SHAPES.class_names)))


def test_faults_are_one_sentence(detector, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.keras").write_text("no model")
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    picture = str(photos / "a.png")
    content = bytearray((detector / "preset" / "detector.keras").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "flipped.keras").write_bytes(content)
    numbers = ("--image-size", "64", "--mean", "0", "0", "0", "--std", "1", "1", "1")
    for arguments, words in (
        ((tmp_path / "nowhere", picture), "There is no file or directory"),
        ((tmp_path / "empty", picture), "holds no trained model"),
        ((tmp_path / "text.keras", picture), "is no saved Keras model"),
        ((tmp_path / "other.keras", picture), "holds a Functional"),
        ((tmp_path / "flipped.keras", picture, *numbers), "flipped.keras is damaged (Bad CRC"),
        ((detector, tmp_path / "empty"), "has no images"),
        ((detector, tmp_path / "none*.jpg"), "There is no file"),
        ((detector, picture, "--batch-size", "0"), "--batch-size must be"),
        ((detector, picture, "--image-size", "0"), "Sides must be positive"),
        ((detector, picture, "--score", "1.5"), "--score 1.5 is no confidence"),
        ((detector, picture, "--score", "nan"), "--score nan is no confidence"),
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
    file.write_text("{}")
    assert main(["predict", str(detector), picture]) == 1
    assert "missing or unknown: mean, std, task)" in capsys.readouterr().err
    file.write_text(text)


def test_an_interruption_says_that_files_may_be_of_two_runs(detector, photos, tmp_path, capsys):
    command = ["predict", str(detector), str(photos), "--output", str(tmp_path / "out")]

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_densepred.cli.predict.draw_objects", interrupt)
        assert main(command) == 130
    assert "of this run and of one before: run it again." in capsys.readouterr().err
    assert main(command) == 0
