"""The segmentation recipe from flags to files, at toy size."""

import csv
import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest
from PIL import Image

from keras_densepred import CEDNetBackbone, data, training
from recipes import voc_deeplab_v3 as recipe
from tests.hosts import needs_keras_cv
from tests.recipes import toy
from tests.recipes.toy import Split

NAMES = data.ShapesSegmentation.class_names


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return toy.segmentation(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("ours", marks=pytest.mark.slow_on("jax", "tensorflow")),
        pytest.param("keras_hub", marks=pytest.mark.slow),
        pytest.param("keras_cv", marks=[pytest.mark.slow, needs_keras_cv]),
    ],
)
def test_from_flags_to_files(flags, tmp_path, capsys, head):
    output = tmp_path / "out"
    more = ["--head", head, "--flip", "--evaluate-train"]
    if head != "ours":  # hosts' heads have widths of their own
        width = flags.index("--width")
        flags = [*flags[:width], *flags[width + 2 :]]
    results = recipe.main([*flags, *more, "--output", str(output)])
    assert set(results) == {
        *("mIoU", "pixel_accuracy", "mean_accuracy", "train_mIoU"),
        *(f"IoU/{name}" for name in NAMES),
    }
    assert 0 <= results["mIoU"] <= 1
    names = {path.name for path in output.iterdir()}
    pictures = {"curves.png", "predictions.png", "confusion.png"}
    numbers = {"settings.json", "metrics.csv", "iou.csv", "evaluation.json"}
    assert names == pictures | numbers | {"preset", "checkpoints"}
    evaluation = json.loads((output / "evaluation.json").read_text())
    pixels = np.array(evaluation["confusion"])
    assert 0 < pixels.sum() <= 5 * 48 * 64
    assert np.trace(pixels) / pixels.sum() == pytest.approx(results["pixel_accuracy"])
    rows = (output / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    columns = ["epoch", "learning_rate", "loss", "val_mIoU", "val_pixel_accuracy"]
    assert rows[0].split(",") == [*columns, *(["val_loss"] if toy.VAL_LOSS else [])]
    with (output / "iou.csv").open(newline="") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    assert list(table) == [*NAMES, "mIoU", "pixel_accuracy", "mean_accuracy"]
    assert set(table["mIoU"]) == {"class", "val", "val, tested", "train"}
    assert float(table["mIoU"]["val, tested"]) == pytest.approx(results["mIoU"], abs=1e-6)
    assert float(table["mIoU"]["val"]) == pytest.approx(float(rows[2].split(",")[3]), abs=1e-6)
    printed = capsys.readouterr().out
    assert f"mIoU {results['mIoU']:.3f}, pixel accuracy" in printed
    assert f"mIoU {results['train_mIoU']:.3f} on 6 training images" in printed
    for name in names - {"checkpoints", "preset"}:
        assert str(output / name) in printed

    model = keras.saving.load_model(output / "preset" / "segmenter.keras")
    assert model.predict(np.zeros((1, 64, 64, 3)), verbose=0).shape == (1, 64, 64, len(NAMES))
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(NAMES)
    backbone = keras_hub.models.Backbone.from_preset(str(output / "preset" / "backbone"))
    assert isinstance(backbone, CEDNetBackbone)
    card = (output / "preset" / "README.md").read_text()
    assert f"| mIoU | {results['mIoU']:.4f} |" in card


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "head", ["ours", "keras_hub", pytest.param("keras_cv", marks=needs_keras_cv)]
)
def test_a_host_wraps_the_backbone_that_is_saved(flags, head):
    given = training.parse_settings(recipe.Settings, [*flags, "--head", head], "")
    settings = recipe.RECIPE.complete(given, toy.Split(6))
    model = recipe.build_model(settings, toy.Split(6))
    backbone = recipe.RECIPE.pyramid_of(model)
    assert isinstance(backbone, CEDNetBackbone) and backbone is model.plain_backbone
    assert model.size_divisor == 32


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly(
        "voc_deeplab_v3", flags, tmp_path, files=("iou.csv",)
    )


@pytest.mark.slow
def test_a_finished_run_is_tested_in_another_way(flags, tmp_path, capsys):
    # So slowly that not all is background yet, of which scales and pieces make no difference.
    flags = [*flags, "--learning-rate", "1e-6", "--output", str(tmp_path / "out")]
    plain = recipe.main(flags)
    rows = (tmp_path / "out" / "metrics.csv").read_bytes()
    again = recipe.main(flags)
    assert again == plain
    tested = recipe.main([*flags, "--sliding-window", "--multi-scale", "--flip"])
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == rows
    assert tested != plain and tested.keys() == plain.keys()
    assert "val, tested" in (tmp_path / "out" / "iou.csv").read_text()
    assert "Testing" in capsys.readouterr().out


def test_another_run_in_the_output_is_refused(flags, tmp_path):
    training.claim_output(tmp_path, {"steps": 99})
    with pytest.raises(training.SettingsError, match="holds a run with other settings"):
        recipe.main([*flags, "--output", str(tmp_path)])


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "7"], "There are 6 training images and a batch takes 7"),
        (["--image-size", "70"], "no multiple of 32"),
        (["--tfds", "oxford_iiit_pet"], "--data-dir or --tfds, not both"),
        (["--weights", "nowhere/at/all"], "no directory and no built-in preset 'nowhere/at/all'"),
        (["--data-dir", "nowhere/at/all"], "nowhere/at/all is not a folder"),
        (["--devices", "99"], "99 devices"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe.main([*flags, *more, "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def beyond_the_classes(mask):
    mask[3, 5] = 200
    return mask


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beyond_the_classes, r"train2\.png has label 200 at row 3, column 5"),
        (lambda mask: mask[:40], r"train2\.png is 64 x 40 pixels and its image .* 64 x 48"),
        (lambda mask: np.stack([mask] * 3, axis=-1), r"train2\.png is a colour picture \(RGB\)"),
        (lambda mask: mask.astype(np.uint16) * 1000, r"train2\.png has the value \d+ at row"),
    ],
)
def test_a_bad_mask_is_named(flags, tmp_path, change, message):
    changed = tmp_path / "data"
    shutil.copytree(flags[flags.index("--data-dir") + 1], changed)
    path = changed / "SegmentationClass" / "train2.png"
    Image.fromarray(change(np.array(Image.open(path)))).save(path)
    with pytest.raises((data.DatasetError, data.ImageError), match=message) as raised:
        recipe.main([*flags, "--data-dir", str(changed), "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)


@pytest.mark.backend_free
def test_masks_without_any_label_are_refused(flags, tmp_path):
    changed = tmp_path / "data"
    shutil.copytree(flags[flags.index("--data-dir") + 1], changed)
    for path in (changed / "SegmentationClass").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    with pytest.raises(data.DatasetError, match="no labelled pixel"):
        recipe.main([*flags, "--data-dir", str(changed), "--output", str(tmp_path / "out")])


@pytest.mark.backend_free
@pytest.mark.parametrize("images", [1_464, 10_582], ids=["VOC", "VOC and SBD"])
def test_voc_gets_the_papers_settings(images):
    """BICSNET.md 1.4, 1.5 and 2.6."""
    settings = recipe.RECIPE.complete(recipe.Settings(), Split(images))
    expected = {
        "preset": "bicsnet_48",
        "image_size": 512,
        "batch_size": 256,
        "scale_min": 0.5,
        "scale_max": 2.0,
        "width": 256,
        "aspp": True,
        "steps": 20_000,
        "steps_per_epoch": 1000,
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "warmup_steps": 1000,
        "weight_decay": 4e-5,
        "ema": 0.0,
    }
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.backend_free
def test_the_rate_follows_the_batch_and_flags_win():
    given = recipe.Settings(batch_size=64, steps=2500, aspp=False)
    settings = recipe.RECIPE.complete(given, Split(10_582))
    assert settings.learning_rate == pytest.approx(0.005)
    assert (settings.steps, settings.aspp) == (2500, False), "ten epochs of 250"
    assert (
        recipe.RECIPE.complete(recipe.Settings(learning_rate=0.1), Split(10_582)).learning_rate
        == 0.1
    )


@pytest.mark.slow
def test_frozen_backbone_does_not_move(flags):
    settings = recipe.RECIPE.complete(
        training.parse_settings(recipe.Settings, [*flags, "--freeze-backbone"], ""), Split(6)
    )
    train, _ = recipe.RECIPE.open_data(settings)
    model = recipe.build_model(settings, train)
    backbone = model.backbone
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in backbone.weights]
    images, masks = next(recipe.RECIPE.batches(settings, train)(0))
    model.train_on_batch(images, masks)
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
