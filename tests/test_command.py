"""What every command has around it."""

import errno
import io

import pytest

from keras_densepred import command

pytestmark = pytest.mark.backend_free


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("--steps must be at least 1."), "error: --steps must be at least 1.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.csv"), "The disk is full where"),
        (MemoryError(), "take a smaller --batch-size"),
        (RuntimeError("a worker died\nlong text"), "RuntimeError: a worker died (--debug shows"),
    ],
)
def test_an_error_is_one_sentence(capsys, error, said):
    assert command.run(raising(error), []) == 1
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_debug_shows_the_traceback_and_is_no_argument_of_the_command(capsys):
    seen = []

    def main(argv):
        seen.extend(argv)
        raise ValueError("no")

    assert command.run(main, ["--debug", "--epochs", "1"]) == 1
    assert seen == ["--epochs", "1"]
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(capsys):
    def main(argv):
        with command.on_interrupt("The same command continues the run in out."):
            raise KeyboardInterrupt

    assert command.run(main, []) == 130
    assert "Interrupted. The same command continues the run in out." in capsys.readouterr().err


def test_the_exit_code_is_what_main_returns():
    assert command.run(lambda argv: 3, []) == 3
    assert command.run(lambda argv: {"AP": 0.5}, []) == 0


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_characters_that_a_console_lacks_are_replaced(encoding):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    command.show_what_can_be_shown(stream)
    stream.write("━━━ 3×3 \N{LATIN SMALL LETTER E WITH ACUTE} \N{GRINNING FACE}")
    stream.flush()
    assert buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "said"), [("jaxx", "set it to one of jax"), ("torch", "which is not installed")]
)
def test_a_backend_that_is_not_there_is_one_sentence(monkeypatch, capsys, name, said):
    monkeypatch.setenv("KERAS_BACKEND", name)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.run(lambda argv: 0, []) == 1
    assert said in capsys.readouterr().err
