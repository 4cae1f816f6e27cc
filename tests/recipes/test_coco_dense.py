"""The dense detector's recipe from flags to files, at toy size."""

import dataclasses
import itertools
import json

import h5py
import keras
import numpy as np
import pytest

from keras_densepred import models, necks, training
from recipes import coco_dense as recipe
from tests.recipes import toy
from tests.recipes.toy import Split
from tests.training.processes import BACKEND, finish, start, start_two

# A step is long to compile: on PyTorch, which does not, the recipe runs in every test.
compiled = pytest.mark.slow_on("jax", "tensorflow")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), *toy.DENSE]


@compiled
def test_from_flags_to_files(flags, tmp_path):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--output", str(output)])
    assert ("val_loss" in (output / "metrics.csv").read_text()) == bool(toy.VAL_LOSS)
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    header = (output / "metrics.csv").read_text().splitlines()[0]
    for name in ("classification_loss", "box_loss", "box_distribution_loss", "val_AP50"):
        assert name in header
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert type(model).__name__ == "TaskAlignedDetector" and len(classes) == model.num_classes
    assert isinstance(model.backbone, necks.DetectionPyramid)  # on CEDNet


def saved_weights(output):
    """Of the preset's backbone."""
    found = {}

    def take(name, content):
        if isinstance(content, h5py.Dataset):
            found[name] = content[()]

    with h5py.File(output / "preset" / "backbone" / "model.weights.h5") as file:
        file.visititems(take)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True] if BACKEND == "jax" else [False])
def test_two_processes_train_as_one(split, flags, tmp_path):
    """Batch norms of heads behind a neck included, and what they save."""
    one, two = tmp_path / "one", tmp_path / "two"
    finish([start([recipe.__file__, *flags, "--output", one])])
    split = ["--shard-weights"] if split else []
    finish(start_two([recipe.__file__, *flags, *split, "--output", two]))
    expected, found = saved_weights(one), saved_weights(two)
    assert found.keys() == expected.keys() and len(found) > 50
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-2, err_msg=name)
    one, two = (np.genfromtxt(out / "metrics.csv", delimiter=",", names=True) for out in (one, two))
    losses = [name for name in one.dtype.names if name.endswith("loss")]
    assert len(losses) >= 4
    for name in losses:
        np.testing.assert_allclose(two[name][0], one[name][0], rtol=1e-4, err_msg=name)


@pytest.mark.backend_free
def test_mosaic_ends_early(flags):
    """Three steps an epoch: mosaic in the first of two, whole images in the last."""
    recipe_, settings = recipe.RECIPE, recipe.Settings
    chosen = training.parse_settings(
        settings, [*flags, "--mosaic-share", "1", "--plain-epochs", "1"], ""
    )
    train, val = recipe_.open_data(chosen)
    chosen = recipe_.complete(chosen, train, val)
    plain = dataclasses.replace(chosen, mosaic_share=0.0)

    def opened(settings, step):
        return list(itertools.islice(recipe_.batches(settings, train)(step), 6 - step))

    mixed, whole = opened(chosen, 0), opened(plain, 0)
    most = whole[0][1]["labels"].shape[1]
    for step in range(6):
        (images, targets), (expected, _) = mixed[step], whole[step]
        assert targets["labels"].shape[1] == 4 * most  # one shape: nothing is compiled again
        assert np.array_equal(images, expected) == (step >= 3)
    for step in (2, 4):  # killed and continued
        for (images, _), (expected, _) in zip(opened(chosen, step), mixed[step:], strict=True):
            np.testing.assert_array_equal(images, expected)


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly("coco_dense", flags, tmp_path)


@pytest.mark.backend_free
@pytest.mark.parametrize(("size", "images"), [(None, 118_000), ("pico", 118_000), (None, 500)])
def test_a_size_is_a_whole_detector(size, images):
    settings = recipe.RECIPE.complete(recipe.Settings(size=size), Split(images))
    chosen = models.DENSE_SIZES[size or "nano"]
    assert settings.experiment == ("small" if images < 20_000 else "coco")
    assert settings.preset == chosen.preset and settings.width == chosen.width
    if size == "pico":
        model = recipe.build_model(settings, Split(images))
        assert isinstance(model.backbone, necks.CSPPathAggregation)
        alone = models.dense_detector(size, 1)
        assert [w.shape for w in model.weights] == [w.shape for w in alone.weights]


@pytest.mark.backend_free
def test_the_demo_draws_its_pictures_at_the_size_it_trains_at():
    train, val = recipe.RECIPE.open_data(recipe.Settings())
    settings = recipe.RECIPE.complete(recipe.Settings(), train, val)
    assert train.image_size == val.image_size == (settings.image_size,) * 2


@pytest.mark.backend_free
def test_all_sizes_can_be_chosen():
    assert tuple(models.DENSE_SIZES) == recipe.SIZES


@pytest.mark.backend_free
def test_mosaic_that_never_comes_is_refused(flags):
    flags = [*flags, "--mosaic-share", "1", "--plain-epochs", "2"]
    chosen = training.parse_settings(recipe.Settings, flags, "")
    train, val = recipe.RECIPE.open_data(chosen)
    chosen = recipe.RECIPE.complete(chosen, train, val)
    assert chosen.epochs == 2
    with pytest.raises(training.SettingsError, match="there would be no mosaic: give fewer"):
        recipe.RECIPE.batches(chosen, train)
