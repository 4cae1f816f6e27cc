"""`python -m keras_densepred train` and its siblings run the files of `recipes/` and `tools/`."""

import sys
from pathlib import Path

import pytest

from keras_densepred import cli
from keras_densepred.cli import scripts

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folders with a recipe and a tool that tell how they were run."""
    for folder, name in (("recipes", "coco_retinanet"), ("tools", "export")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(
            f'"""A {name}\nof the test.\n\nMore."""\nimport sys\n'
            'if __name__ == "__main__":\n    print(__file__, sys.argv[1:])\n    sys.exit(3)\n'
        )
    monkeypatch.setattr(scripts, "folder", lambda name: tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "file"),
    [(["train", "coco_retinanet"], "recipes/coco_retinanet.py"), (["export"], "tools/export.py")],
)
def test_the_file_is_run_as_a_program_with_its_flags_and_exit_code(own, capsys, command, file):
    before = list(sys.argv)
    assert cli.main([*command, "--epochs", "2"]) == 3
    assert capsys.readouterr().out == f"{own / file} ['--epochs', '2']\n"
    assert sys.argv == before


def test_recipes_are_listed_with_what_they_are(own, capsys):
    assert cli.main(["train", "--help"]) == 0
    assert "  coco_retinanet     A coco_retinanet of the test.\n" in capsys.readouterr().out
    assert cli.main(["train"]) == 2


@pytest.mark.parametrize(
    ("name", "hint"), [("coco_retinanett", "did you mean coco_retinanet?"), ("x", "give one of")]
)
def test_an_unknown_recipe_is_one_sentence(name, hint, capsys):
    assert cli.main(["train", name]) == 1
    error = capsys.readouterr().err
    assert name in error and hint in error and error.count("\n") == 1


def test_a_clone_has_all_of_them(capsys):
    assert scripts.folder("recipes") == ROOT / "recipes"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in ("train", "export", "convert-weights", "convert-dataset", "benchmark"):
        assert f"\n    {name}" in shown


def test_an_installation_without_them_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(scripts, "__file__", str(tmp_path / "keras_densepred/cli/scripts.py"))
    with pytest.raises(FileNotFoundError, match="no recipes: install the wheel"):
        scripts.folder("recipes")
