"""The UperNet recipe: the paper's settings, and from flags to files at toy size."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_densepred import CEDNetBackbone, ConvNeXtBackbone, data, models, training
from keras_densepred.training.schedules import WarmupLinear
from recipes import ade20k_upernet as recipe
from tests.recipes import toy
from tests.recipes.toy import Split

NAMES = data.ShapesSegmentation.class_names


def completed(images=20_210, **given):
    return recipe.RECIPE.complete(recipe.Settings(**given), Split(images))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset, experiment, drop_path",
    [
        (None, "cednet", 0.2),
        ("cednet_next_small", "cednet", 0.3),
        ("cednet_next_base", "cednet", 0.4),
        ("convnext_tiny", "convnext", 0.4),
        ("convnext_small", "convnext", 0.3),
        ("convnext_base", "convnext", 0.4),
    ],
)
def test_the_papers_settings(preset, experiment, drop_path):
    """UPERNET.md, section 5."""
    settings = completed(data_dir="x", preset=preset)
    assert (settings.experiment, settings.drop_path) == (experiment, drop_path)
    assert (settings.steps, settings.batch_size, settings.image_size) == (160_000, 16, 512)
    assert (settings.learning_rate, settings.weight_decay) == (1e-4, 0.05)
    assert (settings.schedule, settings.warmup_steps, settings.floor) == ("linear", 1500, 0.0)
    assert (settings.layer_decay, settings.average, settings.width) == (0.9, "all", 512)
    assert settings.evaluate_every * settings.steps_per_epoch == 16_000
    assert settings.photometric and settings.sliding_window and not settings.ema


@pytest.mark.backend_free
def test_few_images_are_learned_in_a_short_run():
    settings = completed(300, data_dir="x")
    assert (settings.experiment, settings.average) == ("small", "labelled")
    assert not settings.photometric and not settings.sliding_window


@pytest.mark.backend_free
def test_the_rate_over_a_run():
    """UPERNET.md, section 5: lr(t) = base (1 - t / T), times 1 - (1 - t / 1500)(1 - 1e-6)."""
    schedule = WarmupLinear(1e-4, 1500, 160_000, warmup_factor=1e-6)
    for step in (0, 1, 700, 1499, 1500, 80_000, 160_000):
        warm = 1 - (1 - min(step / 1500, 1)) * (1 - 1e-6)
        expected = 1e-4 * (1 - step / 160_000) * warm
        found = float(keras.ops.convert_to_numpy(schedule(step)))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)
    copy = WarmupLinear.from_config(schedule.get_config())
    assert copy.get_config() == schedule.get_config()
    with pytest.raises(ValueError, match="total_steps"):
        WarmupLinear(1e-4, 0, 0)


def rules_of(monkeypatch, backbone, **given):
    settings = completed(data_dir="x", **given)
    monkeypatch.setattr(training, "build_backbone", lambda settings, **options: backbone)
    model = recipe.build_model(dataclasses.replace(settings, width=8), Split(3))
    assert set(model.optimizer.rules) == {weight.path for weight in model.weights}
    return model.optimizer.rules


@pytest.mark.backend_free
def test_every_tensor_learns_at_its_layers_rate(monkeypatch):
    small = dict(p2_width=8, p2_depth=1, widths=(8, 8, 8), stem_width=8)
    rules = rules_of(monkeypatch, CEDNetBackbone(**small, depths=(1, 1, 1), num_stages=3))
    for path, (scale, decay) in {
        "stem_conv1/kernel": (0.9**5, 0.05),
        "p2_block1_norm/gamma": (0.9**4, 0.0),
        "stage1_encoder_c3_block1_dwconv/kernel": (0.9**3, 0.05),
        "stage3_encoder_c5_block1_pwconv1/kernel": (0.9, 0.05),
        "merge_conv/kernel": (1.0, 0.05),
        "merge_norm/gamma": (1.0, 0.0),
        "auxiliary_conv/kernel": (1.0, 0.05),
        "auxiliary_logits/bias": (1.0, 0.0),
    }.items():
        assert rules[path] == (pytest.approx(scale), decay), path
    # S and B: ids up to 9, counted from 7.
    rules = rules_of(monkeypatch, CEDNetBackbone(**small, depths=(1, 5, 1), num_stages=4))
    assert rules["stem_conv1/kernel"][0] == pytest.approx(0.9**8)
    assert rules["stage3_encoder_c5_block1_pwconv1/kernel"][0] == pytest.approx(0.9)
    assert rules["stage4_encoder_c3_block1_pwconv1/kernel"][0] == 1.0
    assert rules["stage4_encoder_c5_block1_pwconv1/kernel"][0] == 1.0
    backbone = ConvNeXtBackbone((1, 1, 9, 1), (8, 8, 8, 8))
    rules = rules_of(monkeypatch, backbone, preset="convnext_tiny")
    assert rules["stem_conv/kernel"] == (pytest.approx(0.9**7), 0.05)
    assert rules["stage4_block1_pwconv1/kernel"][0] == pytest.approx(0.9)


@pytest.mark.slow_on("jax", "tensorflow")
def test_from_flags_to_files(tmp_path, capsys):
    flags = toy.segmentation(tmp_path)
    output = tmp_path / "out"
    more = ["--layer-decay", "1", "--sliding-window", "--flip", "--output", str(output)]
    results = recipe.main([*flags, *more])
    assert set(results) == {
        *("mIoU", "pixel_accuracy", "mean_accuracy"),
        *(f"IoU/{name}" for name in NAMES),
    }
    assert {path.name for path in output.iterdir()} == {
        *("settings.json", "metrics.csv", "curves.png", "iou.csv", "predictions.png"),
        *("evaluation.json", "confusion.png", "preset", "checkpoints"),
    }
    with (output / "iou.csv").open(newline="") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    assert float(table["mIoU"]["val, tested"]) == pytest.approx(results["mIoU"], abs=1e-6)
    printed = capsys.readouterr().out
    assert "one by one" in printed and "validation images" in printed
    model = keras.saving.load_model(output / "preset" / "segmenter.keras")
    assert isinstance(model, models.UperNet) and not model.compiled
    assert json.loads((output / "settings.json").read_text())["average"] == "labelled"
    assert model.sync_batch_norm and model.auxiliary == "P4"
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(NAMES)


@pytest.mark.backend_free
def test_a_batch_of_one_is_refused_in_a_sentence(tmp_path):
    flags = toy.segmentation(tmp_path)
    with pytest.raises(training.SettingsError, match="--batch-size 1 leaves the batch norm"):
        recipe.main([*flags, "--batch-size", "1", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.backend_free
def test_a_tree_with_zero_for_none_is_opened_as_told(tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "images" / split / "a.png")
        labels = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
        Image.fromarray(labels).save(tmp_path / "masks" / split / "a.png")
    settings = recipe.Settings(data_dir=str(tmp_path), reduce_zero_label=True)
    train, _ = recipe.RECIPE.open_data(settings)
    assert train[0].semantic.tolist() == [[255, 0, 1], [1, 1, 0]]


@pytest.mark.backend_free
def test_all_heads_can_be_chosen():
    assert recipe.HEADS == models.UPERNET_HEADS
