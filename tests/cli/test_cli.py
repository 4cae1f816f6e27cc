"""The command line itself, `info`, and how images are prepared as a file."""

import pytest
from rich.table import Table

from keras_densepred import training
from keras_densepred.cli import info, main
from keras_densepred.cli.console import open_console
from keras_densepred.data.readers.unlabelled import output_names

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "command", [[], ["predict"], ["evaluate"], ["check-data"], ["info"], ["push"]]
)
def test_help_and_usage(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert f"usage: {' '.join(['python -m keras_densepred', *command])}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*command, "--no-such-flag"])
    assert ended.value.code == 2


def test_data_are_named_once(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "model.keras", "--annotations", "a.json"])
    assert ended.value.code == 2
    assert "--images goes with" in capsys.readouterr().err


def test_a_table_in_a_pipe_keeps_its_names(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "pedestrian_with_umbrella_and_a_very_long_name"
    table = Table(*(f"column {number}" for number in range(9)))
    table.add_row(name, *["0.123"] * 8)
    open_console().print(table)
    assert name in capsys.readouterr().out


def test_info_shows_levels_and_the_paper(capsys):
    assert main(["info", "peleenet", "--image-size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "PeleeNetBackbone" in printed and "G multiply-adds at 64 x 64 pixels" in printed
    for row in ("P3", "P5", "2 x 2", "In its paper", "224x224"):
        assert row in printed
    assert main(["info", "cednet_next_pico", "--image-size", "65"]) == 1
    assert "multiples of 32" in capsys.readouterr().err
    assert main(["info", "no_such_preset"]) == 1
    error = capsys.readouterr().err
    assert "no_such_preset" in error and error.count("\n") == 1


def test_the_model_table_is_there():
    rows = info.read_model_table()
    assert any("cednet_next_tiny" in row["preset"] and row["paper_parameters"] for row in rows)


def test_results_of_images_of_one_name(tmp_path):
    names = ["one/a.jpg", "one/a.png", "two/a.jpg", "two/b.jpg"]
    printed = output_names([tmp_path / name for name in names])
    assert [str(name) for name in printed] == [
        "one/a.jpg.png",
        "one/a.png.png",
        "two/a.png",
        "two/b.png",
    ]


def test_preprocessing_comes_back(tmp_path):
    frame = training.Preprocessing("detection", (1, 2, 3), (4, 5, 6), short_side=8, long_side=9)
    assert training.Preprocessing.read(tmp_path) is None
    frame.write(tmp_path)
    assert training.Preprocessing.read(tmp_path) == frame
    assert frame.batch_options() == {
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
        "short_side": 8,
        "long_side": 9,
    }
    for changes, words in (
        ({"task": "art"}, "must be one of"),
        ({"std": (1, 0, 1)}, "must be positive"),
        ({"mean": (1, 2)}, "three numbers"),
        ({"image_size": 8}, "either `image_size`"),
    ):
        with pytest.raises(training.SettingsError, match=words):
            training.Preprocessing(
                **{"task": "detection", "mean": (0, 0, 0), "std": (1, 1, 1), **changes}
                | ({"short_side": 8, "long_side": 9})
            )
