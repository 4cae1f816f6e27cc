"""`metrics.csv` and the curves drawn from it."""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.files import write_atomically
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.optim import current_learning_rate

_VAL_PANELS = {
    "average precision on val": ("val_AP", "val_AP50", "val_AP75"),
    "mask AP on val": ("val_mask_AP", "val_mask_AP50", "val_mask_AP75"),
    "mean IoU on val": ("val_mIoU", "val_pixel_accuracy"),
    "accuracy on val": ("val_top1", "val_top5", "ema_val_top1", "ema_val_top5"),
}


class MetricsLog(keras.callbacks.Callback):
    """Writes one row per epoch to a CSV file and draws the curves; both are complete at any time.

    The rows are kept in memory and saved with `ResumableCheckpoint`, so that a resumed run writes
    the same file as one that was never interrupted; for the same reason they hold no times. With
    several processes the main one writes.

    Args:
        csv_path: the columns are `epoch` (from 1), `learning_rate` (of the epoch's last step) and
            what `fit` logs, in the order in which it first appeared.
        curves_path: a PNG, drawn after every epoch; None for none.

    Attributes:
        rows: what has been written, one dictionary per epoch.
    """

    def __init__(
        self,
        csv_path: str | os.PathLike[str],
        curves_path: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        self.csv_path = pathlib.Path(csv_path)
        self.curves_path = curves_path
        self.rows: list[dict[str, float]] = []

    def get_state(self) -> list[dict[str, float]]:
        """Returns the rows."""
        return [dict(row) for row in self.rows]

    def set_state(self, state: Sequence[Mapping[str, float]]) -> None:
        """Takes the rows of a checkpoint and writes the files as they were then."""
        self.rows = [dict(row) for row in state]
        self._write()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Adds a row."""
        row = {"epoch": epoch + 1, "learning_rate": current_learning_rate(self.model)}
        self.rows.append({**row, **{name: float(value) for name, value in (logs or {}).items()}})
        self._write()

    def _write(self) -> None:
        if not current_cluster().is_main:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.csv_path, text.getvalue().encode())
        if self.curves_path is not None and self.rows:
            plot_curves(self.rows, self.curves_path)


def plot_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> None:
    """Draws the losses (left) and what was measured on the validation split (right) by epoch.

    Args:
        rows: `MetricsLog.rows`; columns with "loss" in their name go left, and right `val_AP`,
            `val_AP50` and `val_AP75`, the same of masks, `val_mIoU` and `val_pixel_accuracy`, or
            `val_top1` and `val_top5` and those of averaged weights.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    buffer = io.BytesIO()
    figure_of_curves(rows).savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def figure_of_curves(rows: Sequence[Mapping[str, float]]) -> Any:
    """The `matplotlib` figure of `plot_curves`: panels of the same epochs side by side."""
    figure_module = require("matplotlib.figure", "data")
    ticker = require("matplotlib.ticker", "data")
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels: dict[str, list[str]] = {
        "loss": [name for name in names if "loss" in name],
        **{title: [n for n in columns if n in names] for title, columns in _VAL_PANELS.items()},
    }
    panels = {title: columns for title, columns in panels.items() if columns}
    figure = figure_module.Figure(figsize=(6.4 * max(1, len(panels)), 3.6), layout="constrained")
    for index, (title, columns) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name in columns:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            label = name.replace("val_", "" if title != "loss" else "val ").replace("_", " ")
            axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=2.5)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0.0)
        # Whatever was measured when, if only once.
        axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
