"""The transformers' recipe from flags to files, at toy size."""

import csv
import json
import types

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, data, training
from keras_densepred.necks import ProjectedLevels
from recipes import coco_detr as recipe
from tests.recipes import toy
from tests.recipes.toy import Split

# A step is long to compile: on PyTorch, which does not, the recipe runs in every test.
compiled = pytest.mark.slow if keras.config.backend() != "torch" else ()
DETECTORS = {"deformable_detr": "DeformableDETR", "mask2former": "Mask2Former"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), *toy.DETR]


def of_detector(detector):
    """Flags for one of the detectors."""
    few_points = ["--points", "64"] if detector == "mask2former" else []
    return ["--detector", detector, *few_points]


@pytest.mark.parametrize("detector", [pytest.param(name, marks=compiled) for name in DETECTORS])
def test_from_flags_to_files(flags, tmp_path, detector):
    output = tmp_path / "out"
    results = recipe.main([*flags, *of_detector(detector), "--output", str(output)])
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    assert ("mask_AP50" in results) == (detector == "mask2former")
    names = {path.name for path in output.iterdir()}
    assert names >= {"settings.json", "metrics.csv", "curves.png", "predictions.png", "preset"}
    rows = list(csv.DictReader((output / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 2
    for row in rows:
        losses = [float(value) for name, value in row.items() if name.endswith("loss")]
        assert len(losses) >= 4 and np.isfinite(losses).all()
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert type(model).__name__ == DETECTORS[detector] and len(classes) == model.num_classes
    assert isinstance(
        CEDNetBackbone.from_preset(str(output / "preset" / "backbone")), CEDNetBackbone
    )


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_killed_recipe_continues_exactly(flags, tmp_path, detector):
    flags = [*flags, *of_detector(detector)]
    toy.assert_killed_recipe_continues_exactly("coco_detr", flags, tmp_path)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {},
            {
                "experiment": "cednet",
                "preset": "cednet_next_tiny",
                "epochs": 50,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "weight_decay": 0.05,
                "layer_decay": 0.5,
                "drop_path": 0.2,
                "queries": 300,
                "query_selection": "learned",
                "box_refine": False,
                "encoder_layers": 6,
                "decoder_layers": 6,
                "warmup_steps": 0,
            },
        ),
        ({"preset": "cednet_next_s"}, {"layer_decay": 0.7, "drop_path": 0.3, "backbone_rate": 1}),
        (
            {"preset": "cednet_next_base"},
            {"layer_decay": 1.0, "backbone_rate": 0.1, "weight_decay": 1e-4},
        ),
        (
            {"preset": "convnext_small"},
            {"experiment": "convnext", "encoder_layers": 8, "drop_path": 0.6},
        ),
        (
            {"preset": "resnet50"},
            {"experiment": "resnet", "encoder_layers": 6, "backbone_rate": 0.1},
        ),
        (
            {"detector": "mask2former"},
            {
                "image_size": 1024,
                "batch_size": 16,
                "learning_rate": 1e-4,
                "weight_decay": 0.05,
                "backbone_rate": 0.1,
                "layer_decay": 1.0,
                "decoder_layers": 9,
                "queries": 100,
                "points": 12_544,
            },
        ),
    ],
    ids=("tiny", "small", "base", "convnext", "resnet", "mask2former"),
)
def test_paper_settings(given, expected):
    """DETR.md 1.13, 2.6 and 1.9."""
    settings = recipe.RECIPE.complete(recipe.Settings(**given), Split(117_266))
    assert {name: getattr(settings, name) for name in expected} == expected


def built(**given):
    settings = recipe.Settings(
        experiment="cednet", queries=8, encoder_layers=1, decoder_layers=2, width=16, **given
    )
    settings = recipe.RECIPE.complete(settings, Split(100))
    return settings, recipe.build_model(settings, Split(100))


@pytest.mark.backend_free
def test_rates_and_decays_are_the_authors():
    """DETR.md 1.13: depth by depth in CEDNet, a tenth for offsets, one decay outside."""
    _, model = built(preset="cednet_next_pico", layer_decay=0.5)
    optimizer = model.optimizer
    assert optimizer.global_clipnorm == 0.1 and optimizer.weight_decay == 1e-4
    rules = optimizer.rules
    for weight in model.trainable_weights:
        scale, decay = rules.get(weight.path, (1.0, 1e-4))
        if any(name in weight.path for name in ("sampling_offsets", "reference_points")):
            assert (scale, decay) == (0.1, 1e-4), weight.path
        elif weight.path in {w.path for w in model.plain_backbone.weights}:
            assert decay == (0.05 if len(weight.shape) > 1 else 0.0), weight.path
        else:
            assert scale == 1.0, weight.path
    assert rules["stem_conv1/kernel"][0] < 0.1


@pytest.mark.backend_free
def test_masks_have_their_own_rates_and_decays():
    """DETR.md 2.6."""
    _, model = built(preset="cednet_next_pico", detector="mask2former", points=16)
    optimizer = model.optimizer
    assert optimizer.global_clipnorm == 0.01 and optimizer.weight_decay == 0.05
    backbone = {weight.path for weight in model.plain_backbone.weights}
    not_decayed = 0
    for weight in model.trainable_weights:
        rule = optimizer.rules.get(weight.path, (1.0, 0.05))
        if weight.path in backbone:
            assert rule == (0.1, 0.05), weight.path
        elif "norm" in weight.path or weight.path.endswith(recipe.EMBEDDINGS):
            assert rule == (1.0, 0.0), weight.path
            not_decayed += 1
        else:
            assert rule == (1.0, 0.05), weight.path
    assert not_decayed > 10


@pytest.mark.backend_free
def test_other_networks_get_a_projection():
    _, model = built(preset="resnet50")
    assert isinstance(model.backbone, ProjectedLevels)
    assert model.pyramid_levels == (3, 4, 5, 6)


@pytest.mark.backend_free
def test_the_rate_drops_once_or_twice():
    settings = recipe.RECIPE.complete(recipe.Settings(experiment="cednet"), Split(3200))
    assert recipe.make_schedule(settings).drops == (40 * settings.steps_per_epoch,)
    settings = recipe.RECIPE.complete(
        recipe.Settings(experiment="cednet", detector="mask2former"), Split(3200)
    )
    steps = settings.steps_per_epoch * 50
    drops = tuple(round(steps * share / 368_750) for share in (327_778, 355_092))
    assert recipe.make_schedule(settings).drops == drops


@pytest.mark.backend_free
def test_images_are_resized_as_in_the_papers():
    settings = recipe.RECIPE.complete(recipe.Settings(), Split(117_266))
    shown = recipe.preprocessing(settings)
    assert (shown.short_side, shown.long_side) == (800, 1333)
    first, flip = recipe.augmentation(settings, settings.image_size)
    assert first.branches[0][0].short_sides[-1] == 800 and isinstance(flip, data.RandomFlip)
    masks = recipe.Settings(detector="mask2former")
    masks = recipe.RECIPE.complete(masks, Split(117_266))
    assert (recipe.preprocessing(masks).short_side, masks.image_size) == (800, 1024)
    assert isinstance(recipe.augmentation(masks, 1024)[0], data.LargeScaleJitter)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--queries", "0", "give 1 or more"),
        ("--points", "0", "give 1 or more"),
        ("--decoder-layers", "0", "give 1 or more"),
        ("--encoder-layers", "-1", "give 0 or more"),
        ("--dropout", "1.5", "must lie from 0 to 1"),
        ("--dropout", "1", "drops everything"),
        ("--backbone-rate", "0", "must be larger than 0"),
    ],
)
def test_impossible_numbers_are_named_by_their_flags_before_data_are_read(flag, value, said):
    with pytest.raises(training.SettingsError, match=f"{flag} {value} .*{said}"):
        recipe.main([flag, value, "--data-dir", "not looked at"])


@pytest.mark.backend_free
def test_copy_paste_is_refused(flags, tmp_path):
    """It pads images before, and boxes are learned in shares of where an image ends."""
    with pytest.raises(training.SettingsError, match="--copy-paste pads images"):
        recipe.main([*flags, "--copy-paste", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.backend_free
def test_crowds_beyond_the_queries_are_told():
    said = []
    settings = recipe.Settings(detector="mask2former", experiment="small", queries=2)
    settings = recipe.RECIPE.complete(settings, Split(100))
    shapes = data.ShapesDataset(8, 64, 0, "train", with_masks=True)
    recipe.check(settings, shapes, types.SimpleNamespace(say=said.append))
    (line,) = said
    assert "--queries 2 finds no more" in line


@pytest.mark.backend_free
def test_short_runs_have_queries_that_learn_quickly():
    """DETR.md part 3, and on pictures of many alike objects."""
    chosen = {"deformable_detr": ("mixed", True, 50), "mask2former": ("centres", False, 100)}
    for detector, expected in chosen.items():
        settings = recipe.Settings(detector=detector, experiment="small")
        settings = recipe.RECIPE.complete(settings, Split(100))
        assert (settings.query_selection, settings.box_refine, settings.queries) == expected


@pytest.mark.backend_free
@pytest.mark.parametrize(("most", "queries"), [(50, 100), (100, 100), (155, 200), (900, 300)])
def test_short_runs_have_queries_for_all_objects_of_an_image(most, queries):
    images = Split(100, most)
    settings = recipe.Settings(detector="mask2former", experiment="small")
    assert recipe.RECIPE.complete(settings, images).queries == queries
    settings = recipe.Settings(detector="mask2former", experiment="small", queries=2)
    assert recipe.RECIPE.complete(settings, images).queries == 2, "as a flag says"
