"""The RetinaNet recipe from flags to files, at toy size."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, FeaturePyramid, HostBackbone, data, training
from keras_densepred.training import identity
from recipes import coco_retinanet as recipe
from tests.hosts import needs_keras_cv
from tests.networks import trainable_parameters
from tests.recipes import toy
from tests.recipes.toy import Split


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), *toy.RETINANET]


@pytest.mark.slow_on("tensorflow")
@pytest.mark.parametrize(
    "head",
    [
        pytest.param("keras_hub", marks=pytest.mark.slow_on("jax")),
        pytest.param("ours", marks=pytest.mark.slow),
        pytest.param("keras_cv", marks=[pytest.mark.slow, needs_keras_cv]),
    ],
)
def test_from_flags_to_files(flags, tmp_path, capsys, head):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--head", head, "--output", str(output)])
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    names = {path.name for path in output.iterdir()}
    assert names == toy.REPORTS | {
        "settings.json",
        "metrics.csv",
        "curves.png",
        "predictions.png",
        "preset",
        "checkpoints",
    }
    rows = (output / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    for column in ("box_loss", "classification_loss", "learning_rate", "val_AP50"):
        assert column in rows[0]
    printed = capsys.readouterr().out
    assert f"AP {results['AP']:.3f}" in printed
    for name in names - {"checkpoints", "preset"}:
        assert str(output / name) in printed
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(data.ShapesDataset(1, 64).class_names)
    assert len(classes) == model.num_classes
    backbone = CEDNetBackbone.from_preset(str(output / "preset" / "backbone"))
    for a, b in zip(backbone.weights, model.backbone.backbone.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly("coco_retinanet", flags, tmp_path)


def test_another_run_in_the_output_is_refused(flags, tmp_path, capsys):
    training.claim_output(tmp_path, {"epochs": 99})
    with pytest.raises(training.SettingsError, match="holds a run with other settings"):
        recipe.main([*flags, "--output", str(tmp_path)])
    assert "Looking through the data" not in capsys.readouterr().out  # before anything slow


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "13"], "There are 12 training images and a batch takes 13"),
        (["--image-size", "70"], "no multiple of 32"),
        (["--tfds", "coco/2017"], "`data_dir` or `tfds`, not both"),
        (["--weights", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe.main([*flags, *more, "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_paper_settings_for_coco():
    """CEDNET.md 2.2."""
    settings = recipe.RECIPE.complete(recipe.Settings(preset="cednet_next_s"), Split(117_266))
    expected = {
        "image_size": 1024,
        "batch_size": 16,
        "epochs": 36,
        "scale_min": 0.1,
        "scale_max": 2.0,
        "copy_paste": True,
        "drop_path": 0.3,
        "learning_rate": 1e-4,
        "layer_decay": 0.95,
        "warmup_steps": 500,
        "width": 256,
        "head_depth": 4,
    }
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.steps_per_epoch == 7329
    assert recipe.make_schedule(settings).drops == (27 * 7329, 33 * 7329)
    assert not toy.undecided(recipe.RECIPE, settings)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("experiment", "epochs", "drops", "scale_min", "activation", "drop_path"),
    [
        ("bicsnet_a", 350, (320, 340), 0.5, "relu", 0.0),
        ("bicsnet_b", 500, (470, 490), 0.1, "swish", 0.2),
    ],
)
def test_bicsnets_strategies(experiment, epochs, drops, scale_min, activation, drop_path):
    """BICSNET.md 1.5."""
    settings = recipe.RECIPE.complete(recipe.Settings(experiment=experiment), Split(117_266))
    steps = 117_266 // 128
    expected = {
        "preset": "bicsnet_48",
        "image_size": 640,
        "batch_size": 128,
        "epochs": epochs,
        "steps_per_epoch": steps,
        "scale_min": scale_min,
        "scale_max": 2.0,
        "copy_paste": False,
        "activation": activation,
        "drop_path": drop_path,
        "optimizer": "sgd",
        "learning_rate": 0.16,
        "warmup_steps": 2 * steps,
        "focal_gamma": 1.5,
    }
    assert {name: getattr(settings, name) for name in expected} == expected
    schedule = recipe.make_schedule(settings)
    assert schedule.drops == tuple(epoch * steps for epoch in drops)
    assert float(schedule(0)) == 0.0
    rates = [float(schedule(epoch * steps)) for epoch in (2, drops[0], drops[1])]
    assert rates == pytest.approx([0.16, 0.016, 0.0016], rel=1e-3)


@pytest.mark.backend_free
def test_bicsnet_by_its_name_and_at_its_size():
    settings = recipe.RECIPE.complete(
        recipe.Settings(preset="bicsnet_94", batch_size=64), Split(117_266)
    )
    assert (settings.experiment, settings.image_size) == ("bicsnet_b", 1024)
    assert settings.learning_rate == pytest.approx(0.08)
    assert (
        recipe.RECIPE.complete(recipe.Settings(preset="bicsnet_94"), Split(99)).experiment
        == "small"
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["bicsnet_48", "bicsnet_lite0"])
def test_bicsnet_trains_with_its_heads(flags, tmp_path, preset):
    more = ["--experiment", "bicsnet_b", "--preset", preset, "--width", "8"]
    settings = recipe.RECIPE.complete(
        training.parse_settings(recipe.Settings, [*flags, *more], ""), Split(12)
    )
    settings = dataclasses.replace(settings, weights=None)
    train = data.ShapesDataset(12, 64)
    model = recipe.build_model(settings, train)
    backbone = model.plain_backbone
    assert backbone.activation == model.head_activation == "swish" and backbone.sync_batch_norm
    assert (model.head_norm, model.head_width, model.anchor_scale) == (True, 8, 3.0)
    assert model.head_separable == ("lite" in preset)
    decayed = [v for v in model.trainable_variables if model.optimizer._use_weight_decay(v)]
    assert {len(v.shape) for v in decayed} == {2, 4}
    images, targets = next(recipe.RECIPE.batches(settings, train)(0))
    assert np.isfinite(model.train_on_batch(images, targets)).all()


def test_flags_win_over_the_paper():
    given = recipe.Settings(epochs=12, learning_rate=2e-4, copy_paste=False, drop_path=0.0)
    settings = recipe.RECIPE.complete(given, Split(117_266))
    assert (settings.epochs, settings.learning_rate) == (12, 2e-4)
    assert (settings.copy_paste, settings.drop_path) == (False, 0.0)


@pytest.mark.slow_on("jax", "tensorflow")
def test_frozen_backbone_does_not_move(flags, tmp_path):
    settings = recipe.RECIPE.complete(
        training.parse_settings(recipe.Settings, [*flags, "--freeze-backbone"], ""), Split(12)
    )
    train = data.ShapesDataset(12, 64)
    model = recipe.build_model(settings, train)
    backbone = model.plain_backbone
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in backbone.weights]
    images, targets = next(recipe.RECIPE.batches(settings, train)(0))
    model.train_on_batch(images, targets)
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
    moved = model.get_layer("box_head").weights[0]
    assert moved.trainable


@pytest.mark.slow
def test_a_network_of_keras_applications(flags, tmp_path):
    """From random weights, then from what it learned; each run knows what images it wants."""
    first, second = tmp_path / "first", tmp_path / "second"
    at = flags.index("--weights")
    toy_flags = [*flags[:at], *flags[at + 2 :]]
    toy_flags = [flag for flag in toy_flags if flag not in ("--drop-path", "0.5")]
    with pytest.raises(
        training.SettingsError, match="of CEDNetBackbone, and --preset asks for app"
    ):
        recipe.main([*flags, "--preset", "applications/mobilenet_v2", "--output", str(first)])
    recipe.main([*toy_flags, "--preset", "applications/mobilenet_v2", "--output", str(first)])
    prepared = json.loads((first / "preset" / "preprocessing.json").read_text())
    assert prepared["mean"] == prepared["std"] == [127.5, 127.5, 127.5]
    detector = keras.saving.load_model(first / "preset" / "detector.keras")
    assert isinstance(detector.plain_backbone, HostBackbone)
    recipe.main([*toy_flags, "--weights", str(first), "--output", str(second)])
    assert (second / "preset" / "preprocessing.json").read_text() == json.dumps(
        prepared, indent=2
    ) + "\n"
    detector = keras.saving.load_model(second / "preset" / "detector.keras")
    assert detector.plain_backbone.fixed_batch_norm


@pytest.mark.backend_free
def test_convnext_is_trained_as_cednets_baseline():
    settings = recipe.RECIPE.complete(recipe.Settings(preset="convnext_small"), Split(118_287))
    assert settings.experiment == "convnext"
    assert (settings.drop_path, settings.layer_scale) == (0.6, 1.0)
    assert (settings.epochs, settings.batch_size, settings.layer_decay) == (36, 16, 0.95)
    prepared = recipe.preprocessing(settings)
    assert (prepared.short_side, prepared.long_side) == (800, 1333)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset, parameters", [("resnet50", 37_743_348), ("msfm_resnet50", 40_062_076)]
)
def test_msfms_retinanet(preset, parameters):
    """Table 4: with an FPN whose P6 is of C5, and MMDetection's rate and schedule."""
    given = recipe.Settings(preset=preset, head="ours")
    settings = recipe.RECIPE.complete(given, Split(117_266))
    assert settings.experiment == "msfm"
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (12, 16, 0.01)
    schedule = recipe.make_schedule(settings)
    assert float(schedule(0)) == pytest.approx(0.01 * 0.001)
    assert schedule.drops == (8 * settings.steps_per_epoch, 11 * settings.steps_per_epoch)
    prepared = recipe.preprocessing(settings)
    assert (prepared.short_side, prepared.long_side) == (800, 1333)
    model = recipe.build_model(settings, data.ShapesDataset(1, 64))
    assert isinstance(model.backbone, FeaturePyramid)
    classes = model.get_layer("classification_head").prediction
    others = 81 - len(data.ShapesDataset(1, 64).class_names) - 1
    frozen = 225_344  # stem and first stage, which train from random weights
    counted = trainable_parameters(model) + others * 9 * (classes.kernel.shape[2] * 9 + 1) - frozen
    assert counted == parameters


def test_small_images_have_smaller_anchors_and_their_own_box_loss():
    small, published = (
        recipe.RECIPE.complete(recipe.Settings(), Split(images)) for images in (300, 118_287)
    )
    assert (small.anchor_scale, small.box_loss) == (3.0, "giou")
    assert (published.experiment, published.anchor_scale, published.box_loss) == ("cednet", 4, "l1")
    lite = recipe.Settings(preset="bicsnet_140", experiment="bicsnet_a")
    assert recipe.RECIPE.complete(lite, Split(118_287)).anchor_scale == 4.0


@pytest.mark.slow
def test_a_run_from_before_anchors_could_be_set_goes_on_with_its_own(flags, tmp_path, monkeypatch):
    decisive = identity.decisive_settings

    def without_anchors(*arguments, **options):
        known = decisive(*arguments, **options)
        return {name: value for name, value in known.items() if name != "anchor_scale"}

    output = tmp_path / "out"
    given = [*flags, "--output", str(output), "--box-loss", "l1"]
    with monkeypatch.context() as before:
        before.setattr(identity, "decisive_settings", without_anchors)
        recipe.main([*given, "--anchor-scale", "4"])
    assert "anchor_scale" not in json.loads((output / "settings.json").read_text())
    with pytest.raises(training.SettingsError, match=r"it has --anchor-scale 4.*--anchor-scale 3"):
        recipe.main(given)
    recipe.main([*given, "--anchor-scale", "4"])
    extended = [*("--extend", str(output), "--epochs", "1"), *("--output", str(tmp_path / "more"))]
    recipe.main(extended)
    assert json.loads((tmp_path / "more" / "settings.json").read_text())["anchor_scale"] == 4.0
