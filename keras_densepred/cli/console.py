"""The commands' output: one console, and progress bars over counted things."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from keras_densepred._optional import require

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 200


def open_console() -> Console:
    """A console on standard output. Requires rich, extra `data`.

    Without markup, which would take `[x]` in the name of a class or a file for its own. Into files
    and pipes tables are as wide as they need: rich would take 80 columns, and cut names for that.
    """
    console = require("rich.console", "data").Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


@contextlib.contextmanager
def progress(
    console: Console, what: str, total: int | None, counted: str | None = None
) -> Iterator[Callable[..., None]]:
    """Shows a bar; gives a function that takes how many are done, and how many are `counted`.

    Args:
        console: of `open_console`.
        what: is being done.
        total: number of things; None where nobody knows.
        counted: word behind a second number, such as "broken"; None for none.
    """
    module = require("rich.progress", "data")
    columns = [
        module.TextColumn(what, markup=False),
        module.BarColumn(),
        module.MofNCompleteColumn(),
    ]
    if counted:
        columns.append(module.TextColumn("{task.fields[count]} " + counted))
    columns.append(module.TimeRemainingColumn())
    with module.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, count=0)

        def show(done: int, count: int = 0) -> None:
            bar.update(task, completed=done, count=count)

        yield show
