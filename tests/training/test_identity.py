"""Which run an output directory belongs to."""

import json

import pytest

from keras_densepred.training import SettingsError, identity

pytestmark = pytest.mark.backend_free


def test_claims_a_new_directory_and_the_same_run(tmp_path):
    output = identity.claim_output(tmp_path / "a" / "b", {"epochs": 3})
    assert json.loads((output / "settings.json").read_text()) == {"epochs": 3}
    (output / "metrics.csv").write_text("epoch\n")
    assert identity.claim_output(output, {"epochs": 3}) == output


def test_refuses_another_run(tmp_path):
    identity.claim_output(tmp_path, {"epochs": 3, "seed": 0})
    with pytest.raises(SettingsError, match=r"other settings \(epochs was 3, is 4\)"):
        identity.claim_output(tmp_path, {"epochs": 4, "seed": 0})


def test_refuses_foreign_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(SettingsError, match="is not the output of a run"):
        identity.claim_output(tmp_path, {})
    with pytest.raises(SettingsError, match="is not the output of a run"):
        identity.claim_output(tmp_path / "thesis.txt", {})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(SettingsError, match="not readable"):
        identity.claim_output(tmp_path, {})


def test_a_run_from_before_a_setting_was_added_continues(tmp_path):
    identity.claim_output(tmp_path, {"epochs": 3})
    now = {"epochs": 3, "weight_decay": 0.05, "augment": None}
    identity.claim_output(tmp_path, now, left_open={"weight_decay", "augment"})
    recorded = identity.recorded_settings(tmp_path, now)
    assert recorded == {"epochs": 3}, "what its checkpoints carry"
    with pytest.raises(SettingsError, match=r"weight_decay was None, is 0.05"):
        identity.claim_output(tmp_path, now, left_open={"augment"})
    with pytest.raises(SettingsError, match=r"epochs was 3, is 4"):
        identity.claim_output(tmp_path, {"epochs": 4}, left_open={"epochs"})
