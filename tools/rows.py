"""Rows of figures in CSV files, each with where it comes from."""

import csv
import io
import subprocess
from pathlib import Path

from keras_densepred import files


def commit() -> str:
    """The commit of this working tree, marked where it has changes."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows to a CSV file of the same columns; the file is replaced as a whole."""
    old = read(path)
    if old and list(old[0]) != list(rows[0]):
        raise ValueError(f"{path} has other columns: give another file to --output.")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*old, *rows])
    files.write_atomically(path, text.getvalue().encode())
