"""Writing that loses nothing."""

import errno
import os

import pytest

from keras_densepred import files
from keras_densepred.files import OutputError, claim_folder, replacing, require_new_file

pytestmark = pytest.mark.backend_free


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    files.write_atomically(path, b"first")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        files.write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_users_folder_is_never_replaced_by_a_file(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("my only copy")
    with pytest.raises(OutputError, match="mine is a folder"), replacing(mine, "a.onnx") as place:
        place.write_bytes(b"model")
    assert (mine / "thesis.txt").read_text() == "my only copy"
    with pytest.raises(OutputError, match="mine is a folder"):
        require_new_file(mine, overwrite=True)


def test_a_folder_that_was_exported_is_replaced_until_a_file_is_added(tmp_path):
    path = tmp_path / "saved_model"
    for content in (b"first", b"second"):
        with replacing(path, "saved_model") as place:
            (place / "variables").mkdir(parents=True)
            (place / "variables" / "data").write_bytes(content)
    assert (path / "variables" / "data").read_bytes() == b"second"
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not exported there"), replacing(path, "s") as place:
        place.mkdir()
    assert (path / "notes.txt").exists()


def test_an_export_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path, "a.onnx") as place:
        place.write_bytes(b"half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"old"


def test_a_file_that_exists_is_refused_unless_told(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists: give another --output, or --overwrite"):
        require_new_file(path)
    assert require_new_file(path, overwrite=True) == path


def test_an_input_is_never_written_over(tmp_path):
    model = tmp_path / "preset" / "detector.keras"
    model.parent.mkdir()
    model.write_bytes(b"weights")
    link = tmp_path / "link.keras"
    link.symlink_to(model)
    for path in (model, link, tmp_path / "preset" / ".." / "preset" / "detector.keras"):
        with pytest.raises(OutputError, match="which is read"):
            require_new_file(path, inputs=[model], overwrite=True)
    with pytest.raises(OutputError, match="which is read"):
        claim_folder(tmp_path / "preset", "predict", inputs=[model], overwrite=True)


def test_a_folder_of_another_command_is_refused_unless_told(tmp_path):
    folder = tmp_path / "found"
    assert claim_folder(folder, "predict") == folder
    (folder / "detections.json").write_text("[]")
    claim_folder(folder, "predict")
    with pytest.raises(OutputError, match="`check-data` did not write"):
        claim_folder(folder, "check-data")
    claim_folder(folder, "check-data", overwrite=True)
    assert (folder / "detections.json").read_text() == "[]"


def test_the_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert claim_folder("~/seen", "check-data") == tmp_path / "seen"
    with pytest.raises(OutputError, match="names no home"):
        files.expanded("~nobody_of_this_name/seen")


def test_what_cannot_be_made_is_said_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Nothing can be written to"):
        require_new_file(tmp_path / "file" / "a.onnx")


def test_what_a_killed_process_was_writing_is_in_nobodys_way(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".metrics.csv.123.unfinished").write_bytes(b"half")
    (folder / ".preset.abc.unfinished" / "new").mkdir(parents=True)
    (folder / ".lock").touch()
    assert files.is_free(folder)
    assert claim_folder(folder, "predict") == folder
    with files.locked(folder):
        names = sorted(path.name for path in folder.iterdir())
        assert names == [files.MARKER, files.LOCK] or names == [files.LOCK, files.MARKER]
    (folder / ".notes").write_text("mine")
    with files.locked(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [files.MARKER, ".notes"]
    assert not files.is_free(folder)
