"""`push` to a hub that is made up: what goes where, and who may see it."""

import types
from pathlib import Path

import huggingface_hub
import pytest

from keras_densepred import saved
from keras_densepred.cli import main

pytestmark = pytest.mark.backend_free


class Hub:
    """Keeps what it is given."""

    def __init__(self):
        self.private, self.files, self.message = {}, {}, None

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        self.private.setdefault(repo_id, private)
        return f"https://hub/{repo_id}"

    def repo_info(self, repo_id):
        return types.SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, repo_id, folder_path, commit_message):
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        self.files[repo_id] = sorted(str(path.relative_to(folder_path)) for path in files)
        self.message = commit_message


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return made


@pytest.fixture
def run(tmp_path):
    preset = tmp_path / "run" / "preset"
    (preset / "backbone").mkdir(parents=True)
    for name in ("detector.keras", "classes.json", "preprocessing.json", "backbone/config.json"):
        (preset / name).write_text("{}")
    (preset / "README.md").write_text("---\nlicense: other  # write it here\n---\n")
    (tmp_path / "run" / "checkpoints").mkdir()
    return preset.parent


def test_a_preset_goes_up_in_private(hub, run, capsys):
    assert main(["push", str(run), "hf://me/mine"]) == 0
    expected = ["README.md", "backbone/config.json", "classes.json", "detector.keras"]
    assert hub.files == {"me/mine": [*expected, "preprocessing.json"]}
    assert hub.private == {"me/mine": True}
    printed = capsys.readouterr().out
    assert "https://hub/me/mine (private)" in printed and "no licence yet" in printed


def test_what_is_public_is_asked_for(hub, run, capsys):
    assert main(["push", str(run), "hf://me/open", "--public", "--message", "v2"]) == 0
    assert hub.private == {"me/open": False} and hub.message == "v2"
    hub.files.clear()
    assert main(["push", str(run), "hf://me/open"]) == 1
    assert not hub.files and "me/open is there already and public" in capsys.readouterr().err


@pytest.mark.parametrize("handle", ["me/mine", "hf://mine", "hf://me/mine/preset", "https://x/y"])
def test_other_places_are_refused(hub, run, handle, capsys):
    assert main(["push", str(run), handle]) == 1
    assert "give hf://USER/NAME" in capsys.readouterr().err and not hub.private


def test_what_is_no_run_is_refused_and_nothing_is_made(hub, tmp_path, run, capsys):
    assert main(["push", str(tmp_path), "hf://me/mine"]) == 1
    assert "holds no trained model" in capsys.readouterr().err
    (run / "preset" / "preprocessing.json").unlink()
    assert main(["push", str(run), "hf://me/mine"]) == 1
    assert "lies in no preset" in capsys.readouterr().err and not hub.private


def test_who_is_not_logged_in_is_told(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "hf://me/mine"]) == 1
    error = capsys.readouterr().err
    assert "hf auth login" in error and error.count("\n") == 1 and not hub.private


def test_a_hub_that_is_out_of_reach_is_told(hub, run, monkeypatch, capsys):
    class ConnectError(Exception):
        __module__ = "httpx"

    def refuse(*arguments, **options):
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(hub, "create_repo", refuse)
    assert main(["push", str(run), "hf://me/mine"]) == 1
    assert "cannot be reached (Name or service not known)" in capsys.readouterr().err


def test_a_handle_is_a_model_wherever_one_is_asked_for(run, monkeypatch):
    fetched = []

    def snapshot_download(repo_id):
        fetched.append(repo_id)
        return str(run / "preset")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert saved.find_model("hf://me/mine") == run / "preset" / "detector.keras"
    assert fetched == ["me/mine"]
