"""Writing that loses nothing."""

import errno
import os

import pytest

from keras_densepred import files
from keras_densepred.files import MARKER, OutputError, claim_folder, replacing, require_new_file

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
        claim(tmp_path / "preset", "predict", inputs=[model], overwrite=True)


def claim(*arguments, **options):
    """Claims a folder and writes a file; returns the folder."""
    with claim_folder(*arguments, **options) as folder:
        folder.write("found.json", b"[]")
    return folder.path


def test_a_folder_of_another_command_is_refused_unless_told(tmp_path):
    folder = tmp_path / "found"
    assert claim(folder, "predict") == folder
    claim(folder, "predict")
    with pytest.raises(OutputError, match="`check-data` did not write"):
        claim(folder, "check-data")
    (folder / "mine.txt").write_text("dear")
    claim(folder, "check-data", overwrite=True)
    assert (folder / "mine.txt").read_text() == "dear"


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*") if p.is_file())


def test_a_folder_has_the_files_of_its_last_job_and_the_users(tmp_path):
    folder = tmp_path / "found"
    with claim_folder(folder, "predict") as claimed:
        for name in ("pictures/a.png", "pictures/b.png", "masks/a.png", "masks/old.png"):
            claimed.write(name, b"first")
    (folder / "pictures" / "mine.png").write_bytes(b"first")
    (folder / "pictures" / "b.png").write_bytes(b"retouched")
    with claim_folder(folder, "predict") as claimed:
        claimed.write("pictures/c.png", b"second")
    kept = ["pictures/b.png", "pictures/c.png", "pictures/mine.png"]
    assert names_in(folder) == kept and not (folder / "masks").exists()
    with pytest.raises(RuntimeError), claim_folder(folder, "predict") as claimed:
        claimed.write("pictures/d.png", b"third")
        raise RuntimeError
    assert names_in(folder) == [*kept[:2], "pictures/d.png", kept[2]]
    claim(folder, "predict")
    assert names_in(folder) == ["found.json", "pictures/b.png", "pictures/mine.png"]


def test_what_a_killed_command_left_unfinished_goes_with_the_next_one(tmp_path):
    folder = claim(tmp_path / "found", "predict")
    for place in (folder, folder / "videos"):
        (place / ".film.mp4.abc.unfinished").mkdir(parents=True)
        (place / ".film.mp4.abc.unfinished" / "film.mp4").write_text("half")
    claim(folder, "predict")
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert left == [MARKER, "found.json", "videos"]


def test_a_command_that_fails_at_once_leaves_nothing(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mine.txt").write_text("dear")
    for folder in (tmp_path / "new", theirs):
        with pytest.raises(RuntimeError), claim_folder(folder, "predict", overwrite=True):
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs", "mine.txt"]
    claim(theirs, "predict", overwrite=True)
    with pytest.raises(RuntimeError), claim_folder(theirs, "predict"):
        raise RuntimeError
    assert claim(theirs, "predict") == theirs, "still known"


def test_the_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert claim("~/seen", "check-data") == tmp_path / "seen"
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
    assert claim(folder, "predict") == folder
    (folder / "found.json").unlink()
    with files.locked(folder):
        names = sorted(path.name for path in folder.iterdir())
        assert names == [files.MARKER, files.LOCK] or names == [files.LOCK, files.MARKER]
    (folder / ".notes").write_text("mine")
    with files.locked(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [files.MARKER, ".notes"]
    assert not files.is_free(folder)


def test_a_commands_file_that_others_write_is_whole_and_its_own(tmp_path):
    folder = tmp_path / "out"
    with claim_folder(folder, "predict") as out, out.replacing("videos/a.mp4") as place:
        place.write_bytes(b"film")
    assert (folder / "videos" / "a.mp4").read_bytes() == b"film"
    with claim_folder(folder, "predict") as out:  # which makes another file, so that this one goes
        out.write("b.png", b"picture")
    assert not (folder / "videos").exists()
    with (
        pytest.raises(RuntimeError),
        claim_folder(folder, "predict") as out,
        out.replacing("videos/a.mp4") as place,
    ):
        place.write_bytes(b"half")
        raise RuntimeError
    assert not (folder / "videos").exists() and (folder / "b.png").exists()
