"""The model table as text, CSV and Markdown, and read back from CSV."""

import csv
import dataclasses
import io
from pathlib import Path

from keras_densepred.analysis.model_table.counting import COLUMNS, Count

HEADINGS = (
    "preset",
    "head, input",
    "parameters",
    "paper",
    "%",
    "G",
    "paper",
    "%",
    "before fusion",
    "status",
)


def cells(counts: list[Count]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of the printed table, and the reasons its notes refer to."""
    reasons: list[str] = []
    lines: list[tuple[str, ...]] = []
    for c in counts:
        status = f"{c.basis}, {c.status}" if c.basis else c.status
        if c.reason and c.status in ("known difference", "not built"):
            if c.reason not in reasons:
                reasons.append(c.reason)
            status += f" ({reasons.index(c.reason) + 1})"
        lines.append(
            (
                c.preset,
                f"{c.head}, {c.image_size}",
                f"{int(c.parameters):,}" if c.parameters else "",
                f"{c.paper_parameters}M" if c.paper_parameters else "",
                c.parameters_percent,
                _multiply_adds_cell(c),
                c.paper_multiply_adds,
                c.multiply_adds_percent,
                _fusion_cell(c),
                status,
            )
        )
    return lines, reasons


def _multiply_adds_cell(c: Count) -> str:
    if not c.multiply_adds:
        return ""
    if c.operations:
        return f"{_billions(int(c.operations))} BF"
    cell = _billions(int(c.multiply_adds))
    if c.norm_elements:
        cell += f" ({_billions(int(c.multiply_adds) + int(c.norm_elements))})"
    if c.attention_products:
        cell += f" + {_billions(int(c.attention_products))}"
    return cell


def _fusion_cell(c: Count) -> str:
    return f"{c.fusion_percent} %" if c.fusion_layer else c.fusion_percent


def _billions(value: int) -> str:
    return f"{value / 1e9:.3f}" if value < 1e10 else f"{value / 1e9:.2f}"


def as_csv(counts: list[Count]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(c) for c in counts)
    return text.getvalue()


def as_markdown(counts: list[Count]) -> str:
    lines, reasons = cells(counts)
    table = [HEADINGS, tuple("---" for _ in HEADINGS), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    if reasons:
        text += "\n" + "\n".join(f"{n}. {reason}" for n, reason in enumerate(reasons, 1)) + "\n"
    return text


def as_text(counts: list[Count]) -> str:
    lines, reasons = cells(counts)
    table = [HEADINGS, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
    text = ""
    for line in table:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        text += "  ".join(padded).rstrip() + "\n"
    if reasons:
        text += "\n" + "".join(f"({n}) {reason}\n" for n, reason in enumerate(reasons, 1))
    return text


FORMATS = {"text": as_text, "csv": as_csv, "markdown": as_markdown}


def read_csv(path: Path) -> list[Count]:
    """The rows of a CSV that this tool wrote.

    Raises:
        ValueError: if `path` is not such a file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{path} has other columns than this tool writes; make it anew with --format csv."
            )
        return [Count(**row) for row in reader]
