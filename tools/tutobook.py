"""Reads a guide in keras-io's tutobook form: a Python file whose bare strings are text.

A string that stands alone at the outermost level is a text cell (Markdown); what is between two of
them is a code cell. The first one is the header: `Title`, `Author`, `Date created`,
`Last modified` and `Description`, each on a line of its own.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

FIELDS = ("Title", "Author", "Date created", "Last modified", "Description")
GUIDES = Path(__file__).resolve().parents[1] / "guides"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A piece of a guide.

    Attributes:
        is_code: whether it is Python, and not Markdown.
        text: without empty lines around it.
        line: of the file where it begins, from 1.
    """

    is_code: bool
    text: str
    line: int


@dataclasses.dataclass(frozen=True)
class Guide:
    """A guide's header and cells.

    Attributes:
        name: of the file, without its ending.
        header: the fields of `FIELDS`.
        cells: in order, the header left out.
    """

    name: str
    header: dict[str, str]
    cells: tuple[Cell, ...]

    @property
    def heading(self) -> str:
        """The Markdown that begins the notebook and the page."""
        head = self.header
        return (
            f"# {head['Title']}\n\n"
            f"**Author:** {head['Author']}<br>\n"
            f"**Date created:** {head['Date created']}<br>\n"
            f"**Last modified:** {head['Last modified']}<br>\n"
            f"**Description:** {head['Description']}"
        )


def find_guides() -> list[Path]:
    """The guides of this repository, by name."""
    return sorted(GUIDES.glob("*.py"))


def read_guide(path: Path) -> Guide:
    """Reads a guide.

    Args:
        path: of the `.py` file.

    Returns:
        The guide.

    Raises:
        ValueError: if it is not Python, or has no header with all fields.
    """
    source = path.read_text(encoding="utf-8")
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{path} is not Python: {error}.") from error
    lines = source.splitlines()
    cells: list[Cell] = []
    end = 0  # line where the last text ended
    for node in body:
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        text = node.value.value
        if not isinstance(text, str):
            continue
        cells += _code(lines, end, node.lineno - 1)
        cells.append(Cell(False, text.strip("\n"), node.lineno))
        end = node.end_lineno or node.lineno
    cells += _code(lines, end, len(lines))
    header = _header(cells[0].text) if cells and not cells[0].is_code else {}
    missing = [field for field in FIELDS if field not in header]
    if missing:
        raise ValueError(
            f"{path} does not begin with a string that has a line for each of {', '.join(FIELDS)}: "
            f"{', '.join(missing)} is missing."
        )
    return Guide(path.stem, header, tuple(cells[1:]))


def _code(lines: list[str], start: int, stop: int) -> list[Cell]:
    """The lines `start` to `stop`, counted from 0, as a cell; none if they are empty."""
    used = [number for number in range(start, stop) if lines[number].strip()]
    if not used:
        return []
    return [Cell(True, "\n".join(lines[used[0] : used[-1] + 1]), used[0] + 1)]


def _header(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip()}
