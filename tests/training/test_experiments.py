"""How published settings fill in what the flags leave open."""

import dataclasses

import pytest

from keras_densepred import data
from keras_densepred.training import (
    AtLeast,
    ByArchitecture,
    CommonSettings,
    Epochs,
    Experiment,
    PerBatch,
    SettingsError,
    checks,
    experiments,
    length,
    make_schedule,
    setting,
)
from tests.recipes.toy import Split

pytestmark = pytest.mark.backend_free


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    activation: str | None = setting(None, "of the backbone")


EXPERIMENTS = {
    "paper": Experiment(
        "section 4",
        {
            "preset": "cednet_next_tiny",
            "image_size": 512,
            "batch_size": 16,
            "epochs": 36,
            "drop_path": ByArchitecture({"cednet_next_tiny": 0.2}, otherwise=0.1),
            "optimizer": "adamw",
            "learning_rate": PerBatch(0.1, 16),
            "warmup_steps": Epochs(2),
        },
        drops=(0.5, 0.75),
    ),
    "small": Experiment(
        "few images",
        {
            "image_size": 64,
            "batch_size": 8,
            "epochs": AtLeast(4, steps=100),
            "optimizer": "adamw",
            "learning_rate": 1e-3,
        },
        on_shapes={"image_size": 96},
    ),
}


def complete(images, **given):
    train = images if isinstance(images, data.ShapesDataset) else Split(images)
    return experiments.complete(Settings(**given), EXPERIMENTS, train, large=1000)


def test_large_data_get_what_is_published():
    settings = complete(1600)
    assert (settings.experiment, settings.preset) == ("paper", "cednet_next_tiny")
    assert (settings.steps_per_epoch, settings.steps) == (100, 3600)
    assert (settings.warmup_steps, settings.drop_path) == (200, 0.2)
    schedule = make_schedule(dataclasses.replace(settings, schedule="steps"), (0.5, 0.75))
    assert schedule.drops == (1800, 2700)


def test_few_images_are_repeated():
    settings = complete(80)
    assert (settings.experiment, settings.steps_per_epoch, settings.epochs) == ("small", 10, 10)
    assert complete(800).steps == 400, "four passes"
    assert complete(data.ShapesDataset(1600, 64)).image_size == 96, "however many there are"


def test_flags_win_and_what_follows_from_them_follows():
    settings = complete(1600, batch_size=32, epochs=3, preset="cednet_next_small")
    assert settings.learning_rate == pytest.approx(0.2)
    assert (settings.steps_per_epoch, settings.warmup_steps) == (50, 100)
    assert settings.drop_path == 0.1, "of another network"
    assert complete(1600, steps=250, steps_per_epoch=100).steps == 300, "rounded up"
    assert complete(1600, warmup_steps=0).warmup_steps == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 3, "epochs": 4}, "--steps or --epochs, not both"),
        ({"preset": "csp_darknet_53", "drop_path": 0.1}, "CSPNetBackbone has no drop_path_rate"),
        ({"activation": "swish"}, "CEDNetBackbone has no activation"),
        ({"preset": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as raised:
        complete(1600, **given)
    assert "\n" not in str(raised.value)


def test_a_schedule_needs_its_drops():
    with pytest.raises(SettingsError, match="does not say at which steps the rate drops"):
        make_schedule(complete(1600, schedule="steps"))


@pytest.mark.parametrize(
    ("val", "given", "every"),
    [
        (0, {"epochs": 100}, 10),
        (480, {"epochs": 100}, 10),  # a tenth of 3 * 1600 for each epoch
        (480, {"epochs": 9}, 1),
        (481, {"epochs": 9}, 2),
        (16_000, {"epochs": 100}, 34),
        (160_000, {"epochs": 100}, 100),  # once is always
        (480, {"epochs": 100, "evaluate_every": 7}, 7),
    ],
)
def test_ten_evaluations_where_they_cost_little(val, given, every):
    settings = experiments.complete(
        Settings(**given), EXPERIMENTS, Split(1600), large=1000, val=range(val)
    )
    assert settings.evaluate_every == every


@pytest.mark.parametrize(
    ("val", "given", "epochs", "of_epoch"),
    [
        (0, {"steps": 250}, 10, 25),  # 2.5 passes of 100 steps
        (192, {"steps": 250}, 7, 40),  # an evaluation costs a tenth of 40 steps
        (10_000, {"steps": 250}, 3, 100),
        (0, {"epochs": 3}, 3, 100),  # as it was said
        (0, {"steps": 2000}, 20, 100),
    ],
)
def test_a_run_of_few_passes_has_shorter_epochs(val, given, epochs, of_epoch):
    settings = experiments.complete(
        Settings(**given), EXPERIMENTS, Split(1600), large=1000, val=range(val)
    )
    assert (settings.epochs, settings.steps_per_epoch) == (epochs, of_epoch)
    if settings.steps == 2000:
        assert settings.warmup_steps == 200, "of two passes"


class Objects(Split):
    """A split whose objects are counted."""

    def __init__(self, images, classes, objects):
        super().__init__(images)
        self.class_names = tuple(map(str, range(classes)))
        self.boxes = objects

    def ground_truth(self):
        raise AssertionError("too long for this")

    def summary(self):
        return self


@pytest.mark.parametrize(
    ("classes", "objects", "steps"),
    [
        (1, 8000, 100),  # 80 objects in a step: each class is seen often enough
        (20, 8000, 500),  # 2,000 * 20 / 80
        (4, 8000, 100),
        (8, 8000, 200),
        (80, 8000, 500),  # at most five times as many
        (3, 0, 100),  # nothing to count
    ],
)
def test_many_classes_of_few_objects_train_longer(classes, objects, steps):
    split = Objects(800, classes, objects)
    settings = experiments.complete(Settings(epochs=None), EXPERIMENTS, split, large=1000)
    assert settings.steps == max(400, steps), "four passes at least"
    said = length.in_words(settings, {"epochs", "steps", "minutes"}, AtLeast(4, 100), 800)
    assert said.startswith(f"{settings.steps} steps in {settings.epochs} epochs of ")
    assert "--experiment small: at least 4, at least 100 steps" in said
    assert "by --epochs" in length.in_words(settings, {"steps", "minutes"}, None, 800)


def test_one_epoch_is_told_without_counting_its_steps_twice():
    settings = Settings(epochs=1, steps=2, steps_per_epoch=2, batch_size=4, evaluate_every=1)
    assert length.in_words(settings, {"epochs", "minutes"}, None, 8) == (
        "2 steps in one epoch (by --steps); evaluated at the end"
    )


def rows_of(name, values):
    return [{"epoch": epoch, name: value} for epoch, value in enumerate(values, 1)]


def test_what_the_loss_still_does_is_said():
    falling = [1 / step for step in range(1, 11)]
    assert "still fell by 21 %" in length.advice(rows_of("loss", falling))
    assert length.advice(rows_of("loss", [1.0] * 10)) is None
    assert length.advice(rows_of("loss", falling[:2])) is None
    val = rows_of("val_loss", [3, 2, 1, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    assert "rose again" in length.advice([{"loss": 1.0, **row} for row in val])


def test_patience_is_asked_after_every_epoch_and_can_be_lost():
    rules = {"epochs": 50, "steps_per_epoch": 1, "batch_size": 1}
    often = length.often_enough
    assert often(experiments.Plan({"patience": 3, **rules}, {}, images=8, evaluated=900)) == 1
    assert often(experiments.Plan({"patience": None, **rules}, {}, images=8, evaluated=900)) == 50
    given = dict(epochs=6, evaluate_every=2)
    checks.require_evaluations(CommonSettings(patience=2, **given))
    checks.require_evaluations(CommonSettings(patience=None, **given))
    with pytest.raises(
        SettingsError, match=r"--patience 3 never stops a run of 6 epochs.* 3 times"
    ):
        checks.require_evaluations(CommonSettings(patience=3, **given))
