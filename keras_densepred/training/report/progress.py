"""What a run shows and leaves behind: progress, `metrics.csv`, curves, predictions, class names."""

import csv
import io
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.files import write_atomically
from keras_densepred.training.devices.cluster import current_cluster

_SECONDS_BETWEEN_REFRESHES = 0.5


def current_learning_rate(model: keras.Model) -> float:
    """Returns the rate that the optimizer of `model` uses for its next step."""
    optimizer = model.optimizer
    # `optimizer.learning_rate` computes with variables that lie on all processes' devices, which a
    # process must not do alone; there is no public name for the schedule (keras 3.15.1).
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(keras.ops.convert_to_numpy(optimizer._iterations))
    return float(keras.ops.convert_to_numpy(rate))


class MetricsLog(keras.callbacks.Callback):
    """Writes one row per epoch to a CSV file and draws the curves, both whole at every moment.

    The rows are kept in memory and saved with `ResumableCheckpoint`, so that a resumed run writes
    the same file as one that was never interrupted. They hold no times, for the same reason. With
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


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, images a second, the parts of the loss, learning rate and time left.

    In a terminal it is a bar that `rich` redraws; elsewhere (a file, a notebook's log) a line is
    printed ten times an epoch. Losses are fetched from the accelerator only when they are shown.
    With several processes the main one shows; on PyTorch the losses of its own rows.

    Args:
        batch_size: images per step, over all devices.
        stream: where to write; standard output by default.

    Raises:
        ImportError: in a terminal, if `rich` is not installed.
    """

    lazy_logs = True

    def __init__(self, batch_size: int, stream: TextIO | None = None):
        super().__init__()
        self.batch_size = batch_size
        self.stream = stream or sys.stdout
        self._bar: Any = None
        self._epoch = 0
        self._counted_from: float | None = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        self._last_step_at = 0.0
        self._shown_at = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the bar if there is a terminal."""
        self._counted_from = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        if current_cluster().is_main and self.stream.isatty():
            require("rich", "data")
            progress = require("rich.progress", "data")
            console = require("rich.console", "data").Console(file=self.stream)
            self._bar = progress.Progress(
                progress.TextColumn("epoch {task.fields[epoch]}"),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[shown]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task("train", epoch="", shown="compiling the first step")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Shows the epoch's number."""
        self._epoch = epoch
        self._last_step_at = time.monotonic()
        if self._bar is not None:
            label = f"{epoch + 1}/{self.params['epochs']}"
            self._bar.update(self._task, completed=0, total=self.params["steps"], epoch=label)
        elif self._counted_from is None:
            self._print(f"epoch {epoch + 1}: compiling and running the first step ...")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the step and refreshes what is shown when it is time."""
        now = time.monotonic()
        if self._counted_from is None:  # the first step compiles: it says nothing about speed
            self._counted_from = now
        else:
            self._steps_counted += 1
            self._step_seconds += now - self._last_step_at
        self._last_step_at = now
        steps = self.params["steps"]
        done = batch + 1
        if self._bar is not None:
            if now - self._shown_at >= _SECONDS_BETWEEN_REFRESHES or done == steps:
                self._bar.update(self._task, completed=done, shown=self._describe(done, logs, now))
                self._shown_at = now
        elif current_cluster().is_main and (done == steps or done % max(1, steps // 10) == 0):
            label = f"epoch {self._epoch + 1}/{self.params['epochs']}, step {done}/{steps}: "
            self._print(label + self._describe(done, logs, now))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Prints the epoch's results as a line that stays."""
        values = [f"{name} {float(value):.4g}" for name, value in (logs or {}).items()]
        self._print(f"epoch {epoch + 1}/{self.params['epochs']} done: {', '.join(values)}")

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the bar."""
        self.close()

    def close(self) -> None:
        """Removes the bar; to be called if training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, done: int, logs: Mapping[str, Any] | None, now: float) -> str:
        parts = [f"{name} {float(value):.3f}" for name, value in (logs or {}).items()]
        parts.append(f"lr {current_learning_rate(self.model):.2e}")
        if self._steps_counted and self._counted_from is not None:
            speed = self.batch_size * self._steps_counted / max(self._step_seconds, 1e-9)
            parts.append(f"{speed:.1f} images/s")
            # The time left counts evaluations, the speed does not.
            seconds = (now - self._counted_from) / self._steps_counted
            left = (self.params["epochs"] - self._epoch) * self.params["steps"] - done
            parts.append(f"{_duration(left * seconds)} left")
        return ", ".join(parts)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif current_cluster().is_main:
            print(line, file=self.stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


_VAL_PANELS = {
    "average precision on val": ("val_AP", "val_AP50", "val_AP75"),
    "mean IoU on val": ("val_mIoU", "val_pixel_accuracy"),
    "accuracy on val": ("val_top1", "val_top5", "ema_val_top1", "ema_val_top5"),
}


def plot_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> None:
    """Draws the losses (left) and what was measured on the validation split (right) by epoch.

    Args:
        rows: `MetricsLog.rows`; columns with "loss" in their name go left, and right `val_AP`,
            `val_AP50` and `val_AP75`, `val_mIoU` and `val_pixel_accuracy`, or `val_top1` and
            `val_top5` and those of averaged weights.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "data")
    ticker = require("matplotlib.ticker", "data")
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels: dict[str, list[str]] = {
        "loss": [name for name in names if "loss" in name],
        **{title: [n for n in columns if n in names] for title, columns in _VAL_PANELS.items()},
    }
    panels = {title: columns for title, columns in panels.items() if columns}
    figure = figure_module.Figure(figsize=(5.2 * max(1, len(panels)), 3.6), layout="constrained")
    for index, (title, columns) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name in columns:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            label = name.replace("val_", "" if title != "loss" else "val ").replace("_", " ")
            axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=2.5)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def draw_predictions(
    images: Sequence[np.ndarray],
    truth: Sequence[Mapping[str, np.ndarray]],
    predictions: Sequence[Mapping[str, np.ndarray]],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    min_confidence: float = 0.3,
    side: int = 512,
) -> None:
    """Draws ground truth (left) and predictions (right) of some images as one PNG sheet.

    Args:
        images: (H, W, 3) uint8 RGB each.
        truth: `{"boxes": (N, 4) xyxy in pixels of the image, "labels": (N,)}` each, and of
            instances `"masks": (N, H, W)` bool.
        predictions: the same with `"confidence": (N,)`.
        class_names: by label.
        path: of the PNG.
        min_confidence: predictions below it are not drawn.
        side: longer side of each image on the sheet, in pixels; at least 512, for legible names.

    Raises:
        ImportError: if Pillow is not installed.
    """
    image_module = require("PIL.Image", "data")
    rows = []
    for image, real, found in zip(images, truth, predictions, strict=True):
        scale = side / max(image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
        bilinear = image_module.Resampling.BILINEAR
        small = np.asarray(image_module.fromarray(image).resize(size, bilinear))
        sure = np.asarray(found["confidence"]) >= min_confidence
        left = draw_objects(
            small,
            real["boxes"] * scale,
            real["labels"],
            class_names,
            masks=_resized_masks(real.get("masks"), small),
        )
        right = draw_objects(
            small,
            found["boxes"][sure] * scale,
            found["labels"][sure],
            class_names,
            scores=found["confidence"][sure],
            masks=_resized_masks(found["masks"][sure] if "masks" in found else None, small),
        )
        rows.append((image_module.fromarray(left), image_module.fromarray(right)))
    titles = ("ground truth", f"predictions, confidence from {min_confidence:g}")
    buffer = io.BytesIO()
    picture_sheet(rows, titles, side).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _resized_masks(masks: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    """`(N, H, W)` masks at the size of an image, by nearest neighbours."""
    if masks is None:
        return None
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(image.shape[:2], masks.shape[1:], strict=True)
    )
    return masks[:, rows].take(columns, axis=2)


def picture_sheet(rows: Sequence[tuple[Any, Any]], titles: tuple[str, str], side: int) -> Any:
    """Lays out pairs of Pillow images below two titles, two pairs beside each other."""
    image_module = require("PIL.Image", "data")
    draw_module = require("PIL.ImageDraw", "data")
    font = require("PIL.ImageFont", "data").load_default(size=18)
    gap, title_height = 6, 30
    pair_width = 2 * side + gap
    across = 1 if len(rows) < 2 else 2
    lines = [rows[start : start + across] for start in range(0, len(rows), across)]
    heights = [max(panel.height for row in line for panel in row) for line in lines]
    sheet = image_module.new(
        "RGB",
        (
            across * pair_width + (across + 1) * 3 * gap,
            title_height + sum(heights) + gap * (len(heights) + 1),
        ),
        "white",
    )
    draw = draw_module.Draw(sheet)
    top = title_height
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            left = 3 * gap + column * (pair_width + 3 * gap)
            for panel, title in zip(row, titles, strict=True):
                draw.text((left, 4), title, fill="black", font=font)
                sheet.paste(panel, (left, top))
                left += side + gap
        top += height + gap
    return sheet
