"""The dense detector's recipe from flags to files, at toy size."""

import json

import keras
import pytest

from keras_densepred import models, necks
from recipes import coco_dense as recipe
from tests.recipes import toy
from tests.recipes.toy import Split

# A step is long to compile: on PyTorch, which does not, the recipe runs in every test.
compiled = pytest.mark.slow_on("jax", "tensorflow")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), *toy.DENSE]


@compiled
def test_from_flags_to_files(flags, tmp_path):
    output = tmp_path / "out"
    # Elsewhere one more function would be compiled.
    more = ["--val-loss"] if keras.config.backend() == "torch" else []
    results = recipe.main([*flags, "--output", str(output), *more])
    assert ("val_loss" in (output / "metrics.csv").read_text()) == bool(more)
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    header = (output / "metrics.csv").read_text().splitlines()[0]
    for name in ("classification_loss", "box_loss", "box_distribution_loss", "val_AP50"):
        assert name in header
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert type(model).__name__ == "TaskAlignedDetector" and len(classes) == model.num_classes
    assert isinstance(model.backbone, necks.DetectionPyramid)  # on CEDNet


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
def test_all_sizes_can_be_chosen():
    assert tuple(models.DENSE_SIZES) == recipe.SIZES
