"""RepPoints' recipe from flags to files, at toy size."""

import json

import keras
import pytest

from keras_densepred import training
from recipes import coco_reppoints as recipe
from tests.recipes import toy
from tests.recipes.toy import Split

# A step is long to compile: on PyTorch, which does not, the recipe runs in every test.
compiled = pytest.mark.slow_on("jax", "tensorflow")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), *toy.REPPOINTS]


@compiled
def test_from_flags_to_files(flags, tmp_path):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--output", str(output)])
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    header = (output / "metrics.csv").read_text().splitlines()[0]
    for name in ("classification_loss", "init_boxes_loss", "refined_boxes_loss", "val_AP50"):
        assert name in header
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert type(model).__name__ == "RepPoints" and len(classes) == model.num_classes
    assert model.head_norm  # of short runs


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly("coco_reppoints", flags, tmp_path)


@pytest.mark.backend_free
def test_the_published_settings():
    """Half of the other detectors' rate; on large data by themselves."""
    settings = recipe.RECIPE.complete(recipe.Settings(batch_size=32), Split(118_000))
    assert settings.experiment == "msfm" and settings.preset == "msfm_resnet50"
    assert settings.learning_rate == pytest.approx(0.02)  # 0.01 of batch 16
    assert (settings.epochs, settings.schedule, settings.warmup_steps) == (12, "steps", 500)
    schedule = recipe.make_schedule(settings)
    rates = [float(schedule(share * 12 * settings.steps_per_epoch)) for share in (0.5, 0.7, 0.95)]
    assert rates == pytest.approx([0.02, 0.002, 0.0002])
    preprocessing = recipe.preprocessing(settings)
    assert (preprocessing.short_side, preprocessing.long_side) == (800, 1333)


@pytest.mark.backend_free
def test_deformable_is_for_resnets():
    settings = recipe.RECIPE.complete(
        recipe.Settings(deformable=True, preset="resnet50"), Split(118_000)
    )
    assert training.build_backbone(settings).deformable_stages == (3, 4, 5)
    message = "CEDNetBackbone has no deformable_stages: leave --deformable out"
    with pytest.raises(ValueError, match=message):
        recipe.RECIPE.complete(
            recipe.Settings(deformable=True, preset="cednet_next_pico"), Split(118_000)
        )


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("experiment", "expected"), [("small", "HeNormal"), ("msfm", "FixedNormal")]
)
def test_short_runs_start_with_a_head_that_learns_at_once(experiment, expected):
    """The paper's N(0, 0.01) lets the first hundreds of steps find nothing."""
    settings = recipe.Settings(experiment=experiment, preset="cednet_next_pico", width=16)
    settings = recipe.RECIPE.complete(settings, Split(100))
    model = recipe.build_model(settings, Split(100))
    assert type(model.head_initializer).__name__ == expected
    again = type(model).from_config(model.get_config())
    assert type(again.head_initializer).__name__ == expected
