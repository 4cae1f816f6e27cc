"""A confusion matrix as a picture."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.files import write_atomically

_WRITTEN = 30  # classes up to which names and shares are written into the matrix
_LISTED = 20  # pairs of classes beside it
_MOST_LETTERS = 24  # of a class name


def draw_confusion(
    confusion: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    counted: str = "images",
) -> None:
    """Writes the picture of `confusion_png`; the arguments are its."""
    write_atomically(path, confusion_png(confusion, class_names, counted=counted))


def confusion_png(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    counted: str = "images",
    title: str | None = None,
    axes_names: tuple[str, str] = ("predicted", "true"),
) -> bytes:
    """Draws a confusion matrix, each row as shares of its class, and the most common mistakes.

    Args:
        confusion: `(num_classes, num_classes)` by true (row) and predicted label.
        class_names: by label; written at the axes of up to 30 classes.
        counted: what is counted.
        axes_names: of columns and rows.
        title: instead of how many there are, and how many of them are right.

    Returns:
        A PNG.

    Raises:
        ValueError: if the matrix does not have a row and a column for each class.
        ImportError: if matplotlib is not installed.
    """
    count = len(class_names)
    if confusion.shape != (count, count):
        raise ValueError(
            f"`confusion` must be of shape {(count, count)} for {count} classes, and is of shape "
            f"{confusion.shape}."
        )
    figure_module = require("matplotlib.figure", "data")
    of_class = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(of_class, 1)
    side = 5.0 + 0.22 * min(count, _WRITTEN)
    figure = figure_module.Figure(figsize=(side + 4.5, side), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=[side, 3.5])
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    total = int(of_class.sum())
    right = 100 * np.trace(confusion) / max(total, 1)
    axes.set_title(title or f"{total:,} {counted}, {right:.1f} % right", fontsize=10)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    names = [short_name(name) for name in class_names]
    if count <= _WRITTEN:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            ink = "white" if share[row, column] > 0.5 else "black"
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=7)
    _list_mistakes(beside, confusion, names, counted)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _list_mistakes(axes: Any, confusion: np.ndarray, names: Sequence[str], counted: str) -> None:
    """Bars of the pairs of classes that are confused most often."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    pairs = [divmod(int(cell), len(names)) for cell in order if wrong.flat[cell]]
    axes.barh(range(len(pairs)), [int(wrong[pair]) for pair in pairs], color="firebrick")
    axes.set_yticks(
        range(len(pairs)), [f"{names[true]} → {names[found]}" for true, found in pairs], fontsize=7
    )
    axes.set_ylim(_LISTED - 0.5, -0.5)
    axes.set_title("most frequent mistakes" if pairs else "no mistakes")
    axes.set_xlabel(counted)
    axes.spines[["top", "right"]].set_visible(False)


def short_name(name: str) -> str:
    """A name that fits; `$` does not start mathematics."""
    name = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
    return name.replace("$", r"\$")
