"""The YOLO recipe from flags to files, at toy size."""

import itertools
import types

import keras
import numpy as np
import pytest

from keras_densepred import data, models
from recipes import coco_yolo as recipe
from tests.hosts import needs_keras_cv
from tests.recipes import toy
from tests.recipes.toy import Split

JAX = keras.config.backend() == "jax"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return toy.detection(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("efm", marks=pytest.mark.slow_on("jax", "tensorflow")),
        *(pytest.param(h, marks=pytest.mark.slow) for h in ("prn", "panet")),
        pytest.param("yolov8", marks=[pytest.mark.slow, needs_keras_cv]),
    ],
)
def test_from_flags_to_files(flags, tmp_path, capsys, head):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--head", head, "--output", str(output)])
    assert 0 <= results["AP"] <= results["AP50"] <= 1
    names = {path.name for path in output.iterdir()}
    pictures = {"curves.png", "predictions.png"}
    assert names == pictures | toy.REPORTS | {
        *("settings.json", "metrics.csv", "preset", "checkpoints")
    }
    printed = capsys.readouterr().out
    assert f"AP {results['AP']:.3f}" in printed
    detector = keras.saving.load_model(output / "preset" / "detector.keras")
    if head == "yolov8":
        assert isinstance(detector, models.YOLOV8KerasCV)
    else:
        assert isinstance(detector, models.YOLOv3Detector)
        assert f"{len(detector.anchors)} anchors, mean IoU" in printed
        assert len(detector.anchors) == (6 if head == "prn" else 9)


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly("coco_yolo", [*flags, *toy.YOLO], tmp_path)


@pytest.mark.parametrize(
    "experiment, preset, head, size",
    [
        ("panet", "csp_resnext_50", "panet", 416),
        ("efm", "csp_peleenet", "efm", 416),
        ("prn", "csp_peleenet_ref", "prn", 320),
    ],
)
def test_the_papers_settings(experiment, preset, head, size):
    settings = recipe.RECIPE.complete(recipe.Settings(experiment=experiment), Split(117_266))
    assert (settings.preset, settings.head, settings.image_size) == (preset, head, size)
    assert (settings.batch_size, settings.jitter, settings.loss) == (64, 0.3, "mse")
    assert settings.multi_scale and not settings.mosaic and settings.anchors == "coco"
    assert settings.steps_per_epoch == 117_266 // 64
    assert abs(settings.epochs * settings.steps_per_epoch - 500_500) < settings.steps_per_epoch
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = recipe.make_optimizer(settings, model)
    total = settings.epochs * settings.steps_per_epoch
    steps = (250, 1000, round(0.79 * total), round(0.81 * total), round(0.95 * total))
    rates = [float(keras.ops.convert_to_numpy(optimizer._learning_rate(step))) for step in steps]
    np.testing.assert_allclose(rates, [1e-3 / 256, 1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    assert optimizer.momentum == 0.9


def test_by_default_the_data_decide():
    assert recipe.RECIPE.complete(recipe.Settings(), Split(117_266)).experiment == "efm"
    settings = recipe.RECIPE.complete(recipe.Settings(learning_rate=1e-4), Split(300))
    assert (settings.experiment, settings.learning_rate, settings.image_size) == (
        *("small", 1e-4),
        416,
    )


def test_sizes_change_and_boxes_with_them():
    train = data.ShapesDataset(8, 64, 0, "train")
    given = recipe.Settings(image_size=96, batch_size=2, multi_scale=True, jitter=0.0)
    settings = recipe.RECIPE.complete(given, train)
    opener = recipe.RECIPE.batches(settings, train, model=types.SimpleNamespace(size_divisor=32))
    drawn = list(itertools.islice(opener(0), 31))
    sizes = [images.shape[1] for images, _ in drawn]
    assert set(sizes) > {sizes[0]} and set(sizes) <= {64, 96, 128}
    assert all(len(set(sizes[start : start + 10])) == 1 for start in (0, 10, 20))
    for images, targets in drawn:
        used = targets["boxes"][targets["labels"] >= 0]
        assert used.max() <= images.shape[1] and used.max() > 0.5 * images.shape[1]
        assert np.all(targets["boxes"][targets["labels"] < 0] == -1)
    images, targets = next(opener(30))
    np.testing.assert_array_equal(images, drawn[30][0])
    np.testing.assert_array_equal(targets["boxes"], drawn[30][1]["boxes"])


@pytest.mark.parametrize(
    "more, message",
    [
        (["--batch-size", "13"], "There are 12 training images and a batch takes 13"),
        (["--image-size", "70"], "give a multiple of 32, such as 64 or 96"),
        (["--weights", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe.main([*flags, *more, "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()
