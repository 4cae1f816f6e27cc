"""Flags from a dataclass, and the claim on an output directory."""

import dataclasses
import json

import pytest

from keras_densepred.training import settings

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


def test_claims_a_new_directory_and_the_same_run(tmp_path):
    output = settings.claim_output(tmp_path / "a" / "b", {"epochs": 3})
    assert json.loads((output / "settings.json").read_text()) == {"epochs": 3}
    (output / "metrics.csv").write_text("epoch\n")
    assert settings.claim_output(output, {"epochs": 3}) == output


def test_refuses_another_run(tmp_path):
    settings.claim_output(tmp_path, {"epochs": 3, "seed": 0})
    with pytest.raises(settings.SettingsError, match=r"other settings \(epochs was 3, is 4\)"):
        settings.claim_output(tmp_path, {"epochs": 4, "seed": 0})


def test_refuses_foreign_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(settings.SettingsError, match="is not the output of a run"):
        settings.claim_output(tmp_path, {})
    with pytest.raises(settings.SettingsError, match="is not the output of a run"):
        settings.claim_output(tmp_path / "thesis.txt", {})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(settings.SettingsError, match="not readable"):
        settings.claim_output(tmp_path, {})
