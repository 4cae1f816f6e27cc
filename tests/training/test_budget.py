"""`--minutes`: how the length of a run follows from a time and a speed."""

import dataclasses
import json
import re
import time

import numpy as np
import pytest

from keras_densepred import training
from keras_densepred.training import Experiment, SettingsError, budget, experiments
from keras_densepred.training.devices.cluster import Cluster, current_cluster
from keras_densepred.training.loop.validation_loss import batches_of_loss
from tests.recipes.toy import Split

pytestmark = pytest.mark.backend_free


@dataclasses.dataclass(frozen=True)
class Settings(training.DetectionSettings):
    pass


EXPERIMENTS = {
    "small": Experiment(
        "few images", {"batch_size": 8, "epochs": 4, "optimizer": "sgd", "learning_rate": 0.1}
    )
}


class Recipe:
    has_val_loss = True

    @staticmethod
    def complete(given, train, val):
        return experiments.complete(given, EXPERIMENTS, train, large=10**6, val=val)


def planned(monkeypatch, tmp_path, speed, images=800, spent=0.0, again=0.0, cluster=None, **given):
    def measure(*arguments):
        check_start = arguments[-1]
        check_start(again)
        return speed

    monkeypatch.setattr(budget, "_measure", measure)
    given = Settings(data_dir="x", output=str(tmp_path / "out"), **given)
    train, val = Split(images), Split(80)
    settings = Recipe.complete(given, train, val)
    before = budget.planned_before(Recipe, given, settings, train, val)
    if before is not None:
        return before
    started = time.monotonic() - spent
    cluster = cluster or current_cluster()
    return budget.plan_for_minutes(Recipe, given, settings, cluster, train, val, started)


def seconds_of(settings, speed, spent=0.0):
    batches = batches_of_loss(Recipe, settings, 80)
    return spent + speed.compiling + speed.after_compiling(settings, batches)


@pytest.mark.parametrize(
    ("minutes", "step", "evaluation", "compiling", "spent"),
    [
        (20, 0.5, 5.0, 60.0, 40.0),
        (20, 0.5, 200.0, 60.0, 40.0),
        (2, 0.9, 16.0, 10.0, 20.0),
        (600, 0.01, 1.0, 60.0, 40.0),
        (5, 20.0, 1.0, 10.0, 20.0),
        (5, 1.4, 40.0, 10.0, 20.0),  # one epoch and a half
    ],
)
def test_a_run_takes_the_time_that_it_may(
    monkeypatch, tmp_path, minutes, step, evaluation, compiling, spent
):
    speed = budget.Speed(step, evaluation, compiling)
    settings = planned(monkeypatch, tmp_path, speed, spent=spent, minutes=minutes)
    taken = seconds_of(settings, speed, spent)
    assert 0.85 * 60 * minutes < taken <= 60 * minutes
    evaluations = -(-settings.epochs // settings.evaluate_every)
    assert evaluations == 1 or evaluations * evaluation <= 0.11 * taken
    if evaluation < 0.005 * 60 * minutes:
        assert evaluations >= 10
    assert settings.minutes == minutes, "by which the run is known"
    assert settings.val_images is None, "a flag, and no number of images"


@pytest.mark.parametrize("asked", [True, False, None])
def test_the_loss_on_validation_images_has_its_share(monkeypatch, tmp_path, asked):
    speed = budget.Speed(0.5, 1.0, 60.0, compiling_step=100.0)
    settings = planned(monkeypatch, tmp_path, speed, minutes=20, val_loss=asked)
    batches = batches_of_loss(Recipe, settings, 80)
    assert batches == (0 if asked is False else 8)
    evaluations = -(-settings.epochs // settings.evaluate_every)
    beside = 0 if asked is False else 0.3 * 100 + evaluations * 8 * 0.4 * 0.5
    without = dataclasses.replace(settings, val_loss=False)
    assert seconds_of(settings, speed) == pytest.approx(seconds_of(without, speed) + beside)
    assert 0.94 * 20 * 60 < seconds_of(settings, speed) <= 0.97 * 20 * 60 - 8


def test_what_a_run_takes(monkeypatch, tmp_path):
    speed = budget.Speed(0.5, 3.0, 0.0)
    settings = planned(monkeypatch, tmp_path, speed, minutes=20, val_loss=False)
    settings = dataclasses.replace(settings, epochs=7, evaluate_every=3, steps=700)
    assert speed.after_compiling(settings, 0) == pytest.approx(700 * 0.5 + 3 * 3.0 + 7 * 0.8)


def test_what_is_given_stays(monkeypatch, tmp_path):
    speed = budget.Speed(1.0, 1.0, 0.0)
    settings = planned(
        *(monkeypatch, tmp_path, speed),
        minutes=11,
        steps_per_epoch=50,
        evaluate_every=3,
        val_loss=False,
    )
    assert (settings.steps_per_epoch, settings.evaluate_every) == (50, 3)
    assert settings.epochs == 12
    often = planned(
        *(monkeypatch, tmp_path, budget.Speed(0.1, 5.0, 0.0)),
        minutes=10,
        steps_per_epoch=50,
        evaluate_every=1,
        val_loss=False,
    )
    assert often.epochs == 53, "50 steps, an evaluation and curves take 10.8 s"


class WithALateOne(Cluster):
    """Another process began 60 s before."""

    def gather(self, arrays):
        return {name: np.append(value, value + 60) for name, value in arrays.items()}


def test_processes_that_began_apart_train_equally_long(monkeypatch, tmp_path):
    speed = budget.Speed(0.5, 5.0, 60.0)
    early = planned(monkeypatch, tmp_path, speed, spent=60.0, minutes=20)
    late = planned(monkeypatch, tmp_path, speed, cluster=WithALateOne(), minutes=20)
    assert late.steps == pytest.approx(early.steps, abs=1)


def test_a_run_that_is_continued_keeps_its_length(monkeypatch, tmp_path):
    first = planned(monkeypatch, tmp_path, budget.Speed(0.5, 5.0, 60.0), minutes=20)
    recorded = training.decisive_settings(first, Data(800))
    training.claim_output(tmp_path / "out", recorded)
    again = planned(monkeypatch, tmp_path, budget.Speed(9.0, 9.0, 9.0), minutes=20)
    assert again == first
    written = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert written["minutes"] == 20 and written["epochs"] == first.epochs


class Data(Split):
    category_ids = (1,)


def test_a_time_that_is_too_short(monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match=r"--minutes 1 is too short: starting, .* minutes here"):
        planned(monkeypatch, tmp_path, budget.Speed(0.5, 5.0, 60.0), minutes=1)
    speed = budget.Speed(0.5, 5.0, 60.0)
    with pytest.raises(SettingsError, match=r"starting, 999 steps and an evaluation") as refusal:
        planned(monkeypatch, tmp_path, speed, minutes=9, steps_per_epoch=999)
    enough = float(re.search(r"take ([\d.]+) minutes", str(refusal.value))[1])
    assert planned(monkeypatch, tmp_path, speed, minutes=enough, steps_per_epoch=999).steps == 999
    with pytest.raises(SettingsError, match="--minutes or --steps"):
        planned(monkeypatch, tmp_path, budget.Speed(0.5, 5.0, 6.0), minutes=1, steps=3)


def test_a_time_that_is_too_short_for_the_start_alone(monkeypatch, tmp_path):
    """Is refused before prediction is compiled, by all processes alike."""
    speed = budget.Speed(0.5, 5.0, 6.0)
    assert planned(monkeypatch, tmp_path, speed, again=100.0, minutes=3).steps
    with pytest.raises(SettingsError, match=r"--minutes 3 is too short: starting alone .* 3.3 m"):
        planned(
            monkeypatch, tmp_path, speed, spent=20.0, again=100.0, cluster=WithALateOne(), minutes=3
        )


def test_a_time_in_which_little_is_learned(monkeypatch, tmp_path, capsys):
    speed = budget.Speed(1.0, 1.0, 0.0)
    assert planned(monkeypatch, tmp_path, speed, minutes=1).steps > 0.1 * 400
    assert "are few" not in capsys.readouterr().out
    speed = budget.Speed(10.0, 1.0, 0.0)
    few = planned(monkeypatch, tmp_path, speed, minutes=1, val_loss=False).steps
    said = capsys.readouterr().out
    assert f"! {few} are few" in said
    assert "would take 400 steps, in about 67 minutes." in said
