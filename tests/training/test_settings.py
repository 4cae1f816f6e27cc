"""Flags from a dataclass."""

import dataclasses
import re

import pytest

from keras_densepred.data.layouts import LAYOUTS
from keras_densepred.training import Experiment, PerBatch, settings

pytestmark = pytest.mark.backend_free


@dataclasses.dataclass(frozen=True)
class Toy:
    epochs: int | None = settings.setting(None, "passes, 100 % of the data")
    rate: float = settings.setting(0.1, "step")
    host: str = settings.setting("one", "which", ("one", "two"))
    freeze: bool = settings.setting(False, "hold")
    paste: bool | None = settings.setting(None, "paste")


def test_flags():
    argv = ["--epochs", "3", "--host", "two", "--freeze", "--no-paste"]
    parsed = settings.parse_settings(Toy, argv, "A toy.")
    assert parsed == Toy(epochs=3, rate=0.1, host="two", freeze=True, paste=False)
    assert settings.parse_settings(Toy, [], "A toy.") == Toy()


def test_what_flags_gave():
    argv = ["--epochs", "3", "--no-paste", "--rate", "0.1"]
    given = settings.parse_flags(Toy, argv, "A toy.")
    assert given == {"epochs": 3, "paste": False, "rate": 0.1}, "one that is the default included"


def test_flags_by_their_fields():
    assert settings.flag_of("imports") == "--import"
    assert settings.flag_of("image_size") == "--image-size"
    assert settings.flag_of("head_depth") == "--head-depth"


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit):
        settings.parse_settings(Toy, ["--help"], "A toy.\n\n    indented")
    text = capsys.readouterr().out
    assert "    indented" in text
    assert "--epochs INT" in text
    assert "passes, 100 % of the data" in text
    assert "step (default: 0.1)" in text


def test_wrong_flags_are_refused(capsys):
    with pytest.raises(SystemExit):
        settings.parse_settings(Toy, ["--host", "three"], "A toy.")
    assert "invalid choice: 'three'" in capsys.readouterr().err


def test_help_has_headings_and_the_experiments(capsys):
    experiments = {
        "paper": Experiment("The paper, section 4", {"epochs": 36, "rate": PerBatch(0.1, 16)}),
        "small": Experiment("few images", {"epochs": lambda plan: 3}),
    }
    with pytest.raises(SystemExit):
        settings.parse_settings(settings.CommonSettings, ["--help"], "A recipe.", experiments)
    text = capsys.readouterr().out
    headings = [text.index(f"\n{group}:\n") for group in settings.GROUPS]
    assert headings == sorted(headings)
    assert headings[0] < text.index("--data-dir STR") < headings[1] < text.index("--preset STR")
    assert "--import STR" in text and "--imports" not in text
    assert "--experiment {paper,small}" in text
    assert "paper: The paper, section 4\n    epochs 36, rate 0.1 for a batch of 16" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_size": 7}, "--image-size 7 is too small: give 32 or more."),
        ({"steps": 0}, "--steps 0 is too small"),
        ({"workers": -1}, "--workers -1 is too small: give 0 or more."),
        ({"learning_rate": 0.0}, "--learning-rate 0 must be larger than 0."),
        ({"learning_rate": float("nan")}, "--learning-rate nan is no finite number."),
        ({"ema": 1.0}, "--ema 1 never leaves the initial weights"),
        ({"ema": 1.5}, "--ema 1.5 must lie from 0 to 1."),
        ({"checkpoint_minutes": 0.0}, "--checkpoint-minutes 0 must be larger than 0."),
    ],
)
def test_numbers_that_no_run_can_have(given, said):
    with pytest.raises(settings.SettingsError, match=re.escape(said)):
        settings.check_numbers(settings.CommonSettings(**given))


def test_numbers_are_looked_at_before_keras_is_imported(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipe.py", "--learning-rate", "0"])
    with pytest.raises(SystemExit) as ended:
        settings.answer_flags(settings.CommonSettings, "A recipe.")
    assert ended.value.code == 1
    assert "--learning-rate 0 must be larger than 0." in capsys.readouterr().err


def test_scales_in_the_wrong_order():
    wrong = settings.RandomScaleSettings(scale_min=2.0, scale_max=0.5)
    with pytest.raises(settings.SettingsError, match="swap them"):
        settings.check_numbers(wrong)
    settings.check_numbers(settings.RandomScaleSettings(scale_min=0.5, scale_max=2.0, ema=0.99))


def test_every_layout_of_detection_data_can_be_chosen():
    (field,) = (
        field for field in dataclasses.fields(settings.DetectionSettings) if field.name == "layout"
    )
    assert set(field.metadata["choices"]) == set(LAYOUTS)
