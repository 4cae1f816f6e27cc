"""What every command has around it: an output that any console shows, and one sentence for faults.

Recipes, tools and `python -m keras_densepred` run their `main` through `run`.
"""

import contextlib
import errno
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from keras_densepred.faults import sentence

DEBUG_FLAG = "--debug"
DEBUG_HELP = "show the traceback of an error, for a report"
BACKENDS = ("jax", "tensorflow", "torch")
_FAULT, _INTERRUPTED = 1, 130
_hints: list[str] = []  # what to do after an interruption, innermost last


def run(main: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main`; what goes wrong ends in one sentence and an exit code.

    Args:
        main: takes the command line without the program's name. An integer that it returns is the
            exit code.
        argv: the command line; None for that of the process. `--debug` in it shows tracebacks.

    Returns:
        The exit code: 0; 1 after a sentence on what is at fault; 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG_FLAG in argv
    for stream in (sys.stdout, sys.stderr):
        show_what_can_be_shown(stream)
    try:
        require_backend()
        code = main([argument for argument in argv if argument != DEBUG_FLAG])
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("\n" + " ".join(["Interrupted.", *_hints[-1:]]), file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        # Python flushes standard output at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAULT
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {explained(error)}", file=sys.stderr)
        return _FAULT


def explained(error: BaseException) -> str:
    """One sentence on an error, and how to see more where it is none that a user can mend."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" where {error.filename} was to be written" if error.filename else ""
        return f"The disk is full{place}: free some space, then run the same command again."
    if isinstance(error, MemoryError):
        return "The memory does not suffice: take a smaller --batch-size or --image-size."
    if isinstance(error, (ValueError, ImportError, OSError)) or _is_ours(error):
        return sentence(error)
    return f"{type(error).__name__}: {sentence(error)} ({DEBUG_FLAG} shows where it comes from)"


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "keras_densepred"


@contextlib.contextmanager
def on_interrupt(hint: str) -> Iterator[None]:
    """Within it, an interruption (Ctrl-C) is followed by this sentence."""
    _hints.append(hint)
    try:
        yield
    except KeyboardInterrupt:
        raise  # `run` still wants the hint
    except BaseException:
        _hints.pop()
        raise
    else:
        _hints.pop()


def show_what_can_be_shown(stream: TextIO) -> None:
    """Replaces characters that the console's encoding lacks, instead of stopping at them.

    Python's output to a file or a pipe on Windows is in the code page (cp1252, cp932), which has
    no box-drawing characters.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def require_backend() -> None:
    """Refuses a `KERAS_BACKEND` that Keras does not have or that is not installed.

    Raises:
        ValueError: for a name that is none.
        ImportError: for a backend that is not installed.
    """
    name = os.environ.get("KERAS_BACKEND")
    if not name:
        return
    if name not in BACKENDS:
        raise ValueError(f"KERAS_BACKEND is {name!r}: set it to one of {', '.join(BACKENDS)}.")
    if importlib.util.find_spec(name) is None:
        raise ImportError(
            f"KERAS_BACKEND is {name!r}, which is not installed: run "
            f'`pip install ".[{name}]"` in a clone of keras_densepred, or set another.'
        )
