"""Drawn predictions of a segmenter, and its intersection over union by class."""

import csv
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.semantic import Colour, draw_legend, draw_semantic
from keras_densepred.files import write_atomically
from keras_densepred.report.sheet import picture_sheet, sheet_png


def draw_segmentations(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    side: int = 400,
    colours: Sequence[Colour] | None = None,
) -> None:
    """Draws truth (left) and predictions (right) of some images as one PNG with a legend.

    Args:
        images: (H, W, 3) uint8 RGB each.
        truth: (H, W) integers each, labels or 255 for ignored pixels.
        predictions: (H, W) integers each.
        class_names: by label; the legend has those that are visible.
        path: of the PNG.
        side: longer side of each image on the sheet, in pixels.
        colours: of each label, where the data set has its own.

    Raises:
        ImportError: if Pillow is not installed.
    """
    image_module = require("PIL.Image", "data")
    rows = []
    for image, *labels in zip(images, truth, predictions, strict=True):
        scale = side / max(image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
        rows.append(
            tuple(
                image_module.fromarray(draw_semantic(image, label, class_names, colours)).resize(
                    size, image_module.Resampling.BILINEAR
                )
                for label in labels
            )
        )
    sheet = picture_sheet(rows, ("ground truth", "prediction"), side)
    seen = {int(label) for part in (*truth, *predictions) for label in np.unique(part)}
    legend = image_module.fromarray(draw_legend(sorted(seen), class_names, sheet.width, colours))
    whole = image_module.new("RGB", (sheet.width, sheet.height + legend.height), "white")
    whole.paste(legend, (0, 0))
    whole.paste(sheet, (0, legend.height))
    write_atomically(path, sheet_png(whole))


def write_iou(path: str | os.PathLike[str], results: Mapping[str, Mapping[str, float]]) -> None:
    """Writes the text of `iou_csv`.

    Args:
        path: of the CSV.
        results: as of `iou_csv`.
    """
    write_atomically(path, iou_csv(results))


def iou_csv(results: Mapping[str, Mapping[str, float]]) -> bytes:
    """The intersection over union of each class as CSV, one column for each evaluation.

    Args:
        results: name of the evaluation, such as `"val"`, to what `metrics.PixelCounts.results`
            gave.

    Returns:
        A row for each class, then the numbers of all classes together. A class that neither truth
        nor prediction has is an empty field.
    """
    rows = _rows_of(results)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *results])
    writer.writerows(
        [name, *("" if value < 0 else f"{value:.6f}" for value in values)]
        for name, values in rows.items()
    )
    return text.getvalue().encode()


def describe_iou(results: Mapping[str, Mapping[str, float]]) -> str:
    """The table of `write_iou` as text, for printing.

    Args:
        results: as of `write_iou`.

    Returns:
        A line for each class; "-" where neither truth nor prediction has it.
    """
    rows = _rows_of(results)
    width = max(len(name) for name in (*rows, "IoU of"))
    lines = [f"{'IoU of':{width}}" + "".join(f"  {name:>12}" for name in results)]
    for name, values in rows.items():
        shown = ("-" if value < 0 else f"{value:.3f}" for value in values)
        lines.append(f"{name:{width}}" + "".join(f"  {text:>12}" for text in shown))
    return "\n".join(lines)


def _rows_of(results: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Class name to its value in each evaluation, and the numbers of all classes at the end."""
    first = next(iter(results.values()))
    classes = [name for name in first if name.startswith("IoU/")]
    rows = {name.removeprefix("IoU/"): [r[name] for r in results.values()] for name in classes}
    totals = [name for name in first if name not in classes]
    return rows | {name: [r[name] for r in results.values()] for name in totals}
