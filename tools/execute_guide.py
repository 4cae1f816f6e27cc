"""Runs a guide in this process and writes it as a page with what its cells print and draw.

    python tools/execute_guide.py GUIDE.py FOLDER

writes `FOLDER/GUIDE.md` and `FOLDER/pictures/GUIDE_1.jpg` and so on. `tools/run_guides.py` starts
it for each guide in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keras_densepred.files import write_atomically
from tools.tutobook import Cell, Guide, read_guide

BEGIN, END = "<!-- output:begin -->", "<!-- output:end -->"
_DPI = 100


def main(argv: list[str] | None = None) -> int:
    """Runs one guide.

    Args:
        argv: the guide's file and the folder to write to; None takes them from the process.

    Returns:
        0. An error of a cell is raised as it is.
    """
    source, folder = (Path(text) for text in (sys.argv[1:] if argv is None else argv))
    guide = read_guide(source)
    page = page_text(guide, Execution(guide.name, source, folder).run)
    write_atomically(folder / f"{guide.name}.md", page.encode("utf-8"))
    return 0


def page_text(guide: Guide, output_of: Callable[[Cell], str]) -> str:
    """The guide as Markdown.

    Args:
        guide: the guide.
        output_of: called with each code cell in order; returns the Markdown of its outputs, or "".
    """
    links = f"[Notebook]({guide.name}.ipynb) · [Python source]({guide.name}.py)"
    parts = [guide.heading, links]
    for cell in guide.cells:
        if not cell.is_code:
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        output = output_of(cell)
        if output:
            parts.append(f"{BEGIN}\n\n{output}\n\n{END}")
    parts.append("<!-- made by tools/run_guides.py from the Python source -->")
    return "\n\n".join(parts) + "\n"


def without_outputs(page: str) -> str:
    """A page as `page_text` makes it where no cell gives anything."""
    return re.sub(rf"\n\n{BEGIN}.*?{END}", "", page, flags=re.DOTALL)


class Execution:
    """Runs cells one after another as a notebook does, and keeps what they show.

    Args:
        name: of the guide, for the names of its pictures.
        source: of the guide, for tracebacks.
        folder: what `pictures/` is made in.
    """

    def __init__(self, name: str, source: Path, folder: Path):
        self._name = name
        self._source = source
        self._folder = folder
        self._pictures = 0
        self._shown: list[str] = []
        self._globals: dict[str, Any] = {"__name__": "__main__"}

    def run(self, cell: Cell) -> str:
        """Executes a cell.

        Returns:
            Markdown of its output.
        """
        self._shown = []
        # Lines are those of the file, so that a traceback leads there.
        code = compile("\n" * (cell.line - 1) + cell.text, str(self._source), "exec")
        began = time.monotonic()
        printed = _Tee(self._keep_text)
        with contextlib.redirect_stdout(printed):
            exec(code, self._globals)
            printed.end()
            self._take_figures()
        print(f"[line {cell.line}: {time.monotonic() - began:.1f} s]", flush=True)
        return "\n\n".join(self._shown)

    def _keep_text(self, text: str) -> None:
        if text.strip():
            self._shown.append(f"```text\n{text.strip()}\n```")

    def _take_figures(self) -> None:
        """Saves the figures that the cell left open, as a notebook shows them."""
        if "matplotlib.pyplot" not in sys.modules:
            return
        pyplot = sys.modules["matplotlib.pyplot"]
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            buffer = io.BytesIO()
            figure.savefig(
                buffer, format="jpg", dpi=_DPI, bbox_inches="tight", pil_kwargs={"quality": 88}
            )
            pyplot.close(figure)
            self._pictures += 1
            path = f"pictures/{self._name}_{self._pictures}.jpg"
            write_atomically(self._folder / path, buffer.getvalue())
            self._shown.append(f"![Picture {self._pictures} of this guide]({path})")


class _Tee(io.TextIOBase):
    """Passes text on to the real standard output and keeps it."""

    def __init__(self, keep: Callable[[str], None]):
        self._keep = keep
        self._real = sys.stdout
        self._text: list[str] = []

    def write(self, text: str) -> int:
        self._text.append(text)
        return self._real.write(text)

    def flush(self) -> None:
        self._real.flush()

    def end(self) -> None:
        self._keep("".join(self._text))


if __name__ == "__main__":
    sys.exit(main())
