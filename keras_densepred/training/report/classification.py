"""A classifier's confusion matrix, and images with their true and predicted class."""

import io
import os
from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.files import write_atomically

_WRITTEN = 30  # classes up to which names and shares are written into the matrix
_LISTED = 20  # pairs of classes beside it
_COLUMNS = 4
_SIDE = 224
_MOST_LETTERS = 24  # of a class name


def draw_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws a confusion matrix, each row as shares of its class, and the most common mistakes.

    Args:
        confusion: `(num_classes, num_classes)`, images by true (row) and predicted label.
        class_names: by label; written at the axes of up to 30 classes.
        path: of the PNG.

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
    images = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(images, 1)
    side = 5.0 + 0.22 * min(count, _WRITTEN)
    figure = figure_module.Figure(figsize=(side + 4.5, side), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=[side, 3.5])
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    right = np.trace(confusion) / max(int(images.sum()), 1)
    axes.set_title(f"{int(images.sum()):,} images, {100 * right:.1f} % right")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    names = [_short(name) for name in class_names]
    if count <= _WRITTEN:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            ink = "white" if share[row, column] > 0.5 else "black"
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=7)
    _list_mistakes(beside, confusion, names)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def draw_classified(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    logits: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draws images in a grid, above each its true and predicted class, red if wrong.

    Args:
        images: (H, W, 3) uint8 RGB each.
        labels: true label of each.
        logits: `(N, num_classes)`; the share beside a prediction is its softmax.
        class_names: by label.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "data")
    rows = max(1, -(-len(images) // _COLUMNS))
    inches = _SIDE / 100
    figure = figure_module.Figure((inches * _COLUMNS, (inches + 0.5) * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for axes in panels:
        axes.set_axis_off()
    used = panels[: len(images)]
    for axes, image, label, share in zip(used, images, labels, shares, strict=True):
        found = int(share.argmax())
        axes.imshow(image)
        truth, guess = _short(class_names[label]), _short(class_names[found])
        axes.set_title(
            f"{truth}\n→ {guess} {100 * share[found]:.0f} %",
            fontsize=8,
            color="darkgreen" if found == label else "firebrick",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _list_mistakes(axes, confusion: np.ndarray, names: Sequence[str]) -> None:
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
    axes.set_xlabel("images")
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    """A name that fits; `$` does not start mathematics."""
    name = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
    return name.replace("$", r"\$")
