"""The ImageNet recipe from flags to files, at toy size."""

import json
import pathlib
import shutil
import warnings

import keras_hub
import numpy as np
import pytest

from keras_densepred import (
    BiCSNetImageClassifier,
    CEDNetImageClassifier,
    metrics,
    training,
)
from keras_densepred.training.report import metrics_log
from recipes import imagenet_pretrain as recipe
from tests.recipes import toy
from tests.recipes.toy import Split
from tests.training.processes import BACKEND, finish, start, start_two


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return toy.classification(tmp_path_factory.mktemp("toy"))


@pytest.mark.slow_on("jax")
def test_from_flags_to_files(flags, tmp_path, capsys):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--output", str(output)])
    assert set(results) == {
        f"{weights}val_{name}" for weights in ("", "ema_") for name in ("loss", "top1", "top5")
    }
    assert results["val_top5"] == 1.0
    pictures = {"curves.png", "confusion.png", "samples.png"}
    names = {path.name for path in output.iterdir()}
    numbers = {"settings.json", "metrics.csv", "evaluation.json"}
    assert names == pictures | numbers | {"preset", "checkpoints"}
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert np.sum(evaluation["confusion"]) == evaluation["images"] == 5
    assert len((output / "metrics.csv").read_text().splitlines()) == 3
    printed = capsys.readouterr().out
    assert "global batch 4" in printed and "learning rate" in printed
    with warnings.catch_warnings():  # that there is no optimizer to load
        warnings.simplefilter("error", UserWarning)
        classifier = CEDNetImageClassifier.from_preset(str(output / "preset" / "classifier"))
    assert classifier(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 2)
    assert isinstance(
        keras_hub.models.Backbone.from_preset(str(output / "preset" / "backbone")),
        CEDNetImageClassifier.backbone_cls,
    )
    card = (output / "preset" / "classifier" / "README.md").read_text()
    assert f"| ema_val_top1 | {results['ema_val_top1']:.4f} |".replace("ema_", "") in card
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == ["blue", "red"]


@pytest.mark.slow_on("jax")
def test_weights_split_over_two_processes_are_saved_whole(flags, tmp_path):
    """The preset is a KerasHub task, for which variables are made while it is written."""
    if BACKEND != "jax":
        with pytest.raises(training.DevicesError, match="on JAX alone"):
            recipe.main([*flags, "--shard-weights", "--output", str(tmp_path / "one")])
        assert not (tmp_path / "one").exists()
        return
    one, two = tmp_path / "one", tmp_path / "two"
    finish([start([recipe.__file__, *flags, "--output", one])])
    finish(start_two([recipe.__file__, *flags, "--shard-weights", "--output", two]))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected, found = (
        np.asarray(CEDNetImageClassifier.from_preset(str(out / "preset" / "classifier"))(images))
        for out in (one, two)
    )
    np.testing.assert_allclose(found, expected, atol=1e-2)


@pytest.mark.slow_on("jax", "tensorflow")
def test_an_epoch_is_not_lost_where_its_evaluation_or_drawing_fails(flags, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = recipe.main([*flags, "--output", str(whole)])
    trained = []

    def failing(owner, name, at):
        """Makes one call of a function fail; at its second the first epoch is over."""
        original = getattr(owner, name)
        calls = []

        def fails_once(*arguments, **options):
            calls.append(name)
            if len(calls) == at:
                raise ValueError(f"{name} failed")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, fails_once)

    on_step = training.Progress.on_train_batch_end
    monkeypatch.setattr(
        training.Progress,
        "on_train_batch_end",
        lambda self, batch, logs=None: (trained.append(batch), on_step(self, batch, logs))[1],
    )
    failing(metrics.ClassificationEvaluation, "evaluate", 1)
    failing(metrics_log, "plot_curves", 2)
    for message in ("evaluate failed", "plot_curves failed"):
        with pytest.raises(ValueError, match=message):
            recipe.main([*flags, "--output", str(broken)])
    assert recipe.main([*flags, "--output", str(broken)]) == expected
    assert trained == [0, 1, 2] * 2, "no step was trained twice"
    for name in ("metrics.csv", "curves.png", "samples.png", "confusion.png"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--accumulate", "2"]], ids=["each", "accumulated"])
def test_killed_recipe_continues_exactly(flags, tmp_path, more):
    toy.assert_killed_recipe_continues_exactly(
        "imagenet_pretrain", [*flags, *more], tmp_path, kill=5
    )


@pytest.mark.backend_free
def test_large_data_get_the_papers_settings():
    settings = recipe.RECIPE.complete(recipe.Settings(), Split(1_281_167))
    assert (settings.experiment, settings.preset) == ("cednet", "cednet_next_tiny")
    assert (settings.batch_size, settings.learning_rate, settings.epochs) == (4096, 4e-3, 300)
    assert (settings.warmup_epochs, settings.weight_decay, settings.ema) == (20, 0.05, 0.9999)
    assert (settings.mixup, settings.cutmix, settings.smoothing) == (0.8, 1.0, 0.1)
    assert (settings.drop_path, settings.layer_scale, settings.steps_per_epoch) == (0.1, 1e-6, 312)


@pytest.mark.backend_free
@pytest.mark.parametrize("preset, rate", [("cednet_next_s", 0.4), ("cednet_next_base", 0.5)])
def test_larger_backbones_drop_more(preset, rate):
    assert (
        recipe.RECIPE.complete(recipe.Settings(preset=preset), Split(1_281_167)).drop_path == rate
    )


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given",
    [
        {"preset": "bicsnet_48"},
        {"experiment": "bicsnet_imagenet"},
        {"experiment": "bicsnet_inaturalist"},
    ],
)
def test_bicsnets_settings(given):
    """BICSNET.md 1.5."""
    settings = recipe.RECIPE.complete(recipe.Settings(**given), Split(1_281_167))
    assert (settings.preset, settings.image_size, settings.batch_size) == ("bicsnet_48", 224, 1024)
    assert (settings.epochs, settings.warmup_epochs, settings.optimizer) == (250, 5, "sgd")
    assert (settings.rand_augment, settings.erasing, settings.mixup) == (False, 0.0, 0.0)
    assert (settings.drop_path, settings.ema, settings.steps_per_epoch) == (0.0, 0.0, 1251)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given, preset, steps",
    [
        ({"experiment": "cspnet"}, "csp_resnext_50", 800_000),
        ({"preset": "csp_darknet_53"}, "csp_darknet_53", 800_000),
        ({"experiment": "cspnet_dense"}, "csp_peleenet", 1_600_000),
        ({"preset": "se_peleenet_swish"}, "se_peleenet_swish", 1_600_000),
        ({"preset": "csp_densenet_201_elastic"}, "csp_densenet_201_elastic", 1_600_000),
    ],
)
def test_cspnets_settings(given, preset, steps):
    """CSPNET.md, section 2."""
    settings = recipe.RECIPE.complete(recipe.Settings(**given), Split(1_281_167))
    assert (settings.preset, settings.image_size, settings.batch_size) == (preset, 256, 128)
    assert settings.epochs * settings.steps_per_epoch == pytest.approx(steps, rel=0.002)
    assert (settings.optimizer, settings.weight_decay) == ("sgd", 5e-4)
    schedule = recipe.make_schedule(settings)
    rates = [float(schedule(share * steps)) for share in (0, 0.5, 1.01)]
    assert rates == pytest.approx([0.1, 0.1 / 16, 0.0], rel=0.01)


@pytest.mark.backend_free
def test_a_power_has_no_warm_up():
    settings = recipe.RECIPE.complete(recipe.Settings(schedule="power4"), Split(500))
    with pytest.raises(ValueError, match="--schedule power4 has no warm-up"):
        recipe.make_schedule(settings)


@pytest.mark.slow
def test_bicsnet_from_flags_to_files(flags, tmp_path):
    preset = ["--experiment", "bicsnet_imagenet", "--preset", "bicsnet_lite0"]
    output = tmp_path / "out"
    results = recipe.main([*flags, *preset, "--output", str(output)])
    assert set(results) == {"val_loss", "val_top1", "val_top5"}
    classifier = BiCSNetImageClassifier.from_preset(str(output / "preset" / "classifier"))
    assert classifier(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 2)


@pytest.mark.backend_free
def test_the_rate_follows_the_batch_and_flags_win():
    given = recipe.Settings(batch_size=1024, accumulate=4, epochs=100, mixup=0.0)
    settings = recipe.RECIPE.complete(given, Split(1_281_167))
    assert settings.learning_rate == pytest.approx(1e-3)
    assert (settings.epochs, settings.mixup, settings.steps_per_epoch) == (100, 0.0, 5004)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "12"], "There are 10 training images and a batch takes 12"),
        (["--image-size", "70"], "no multiple of 32"),
        (["--accumulate", "3"], "--accumulate 3 does not divide --batch-size 4"),
        (["--tfds", "imagenet2012"], "--data-dir or --tfds, not both"),
        (["--preset", "nowhere/at/all"], "no directory and no built-in preset 'nowhere/at/all'"),
        (["--data-dir", "nowhere/at/all"], "nowhere/at/all"),
        (["--devices", "99"], "99 devices"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe.main([*flags, *more, "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()


@pytest.mark.backend_free
def test_bad_class_folders_are_named_before_training(flags, tmp_path):
    data_dir = pathlib.Path(flags[flags.index("--data-dir") + 1])
    changed = tmp_path / "data"
    shutil.copytree(data_dir, changed)
    (changed / "val" / "red").rename(changed / "val" / "green")
    with pytest.raises(ValueError, match="green") as raised:
        recipe.main([*flags, "--data-dir", str(changed), "--output", str(tmp_path / "out")])
    assert "red" in str(raised.value) and not (tmp_path / "out").exists()
