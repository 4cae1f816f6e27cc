"""What is written about a detector on a split: tables, curves, confusion, the worst pictures."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.readers.readable import readable_items
from keras_densepred.metrics import ERRORS, DetectionReport
from keras_densepred.report.confusion import confusion_png, short_name
from keras_densepred.report.sheet import picture_sheet, sheet_png

Write = Callable[[str, bytes], Any]

_COLUMNS = (
    *("objects", "objects_small", "objects_medium", "objects_large"),
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl"),
)
_CURVES = 10  # classes with a curve of their own, and colours there are
_WORST = 6  # pictures
_SIDE = 512  # longer side of a picture on the sheet
_ERROR_NAMES = tuple(ERRORS)


def write_detection_report(report: DetectionReport, dataset: Any, write: Write) -> tuple[str, ...]:
    """Writes `per_class.csv`, `precision_recall.png`, `confusion.png` and `worst.png`.

    Args:
        report: of the split.
        dataset: the split.
        write: takes the name of a file and its content.

    Returns:
        The names of the files.
    """
    files = {
        "per_class.csv": per_class_csv(report),
        "precision_recall.png": precision_recall_png(report),
        "confusion.png": confusion_png(
            report.confusion,
            (*report.names, "background"),
            counted="objects",
            axes_names=("detected as (background: not found)", "object (background: none there)"),
            title=_confusion_title(report),
        ),
    }
    worst = worst_png(report, dataset)
    if worst is not None:
        files["worst.png"] = worst
    for name, content in files.items():
        write(name, content)
    return tuple(files)


def evaluation_json(content: Mapping[str, Any]) -> bytes:
    """The text of `evaluation.json`."""
    return (json.dumps(content, indent=2) + "\n").encode()


def per_class_csv(report: DetectionReport) -> bytes:
    """A row for each class with its numbers, those of masks behind those of boxes.

    What cannot be measured, such as the average precision of a class without objects, is an empty
    field.
    """
    prefixes = {"boxes": "", "masks": "mask_"}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [(kind, name) for kind in report.by_class for name in _COLUMNS]
    columns = [(kind, name) for kind, name in columns if kind == "boxes" or name[0] == "A"]
    writer.writerow(["class", *(prefixes[kind] + name for kind, name in columns)])
    for label in report.by_class["boxes"]:
        values = (report.by_class[kind][label][name] for kind, name in columns)
        writer.writerow([label, *(_field(value) for value in values)])
    return text.getvalue().encode()


def _field(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if value < 0 else f"{value:.6f}"


def precision_recall_png(report: DetectionReport) -> bytes:
    """Draws precision over recall of the classes with most objects, and what AP50 is lost to."""
    figure = require("matplotlib.figure", "data").Figure((11, 4.6), layout="constrained")
    curves, lost = figure.subplots(1, 2, width_ratios=[3, 2])
    boxes = report.by_class["boxes"]
    order = sorted(report.precisions, key=lambda name: -boxes[name]["objects"])
    for name in order[:_CURVES]:
        label = f"{short_name(name)}  {boxes[name]['AP50']:.2f}"
        curves.plot(report.recalls, report.precisions[name], label=label, linewidth=1)
    if len(order) != 1 and order:
        mean = np.mean(list(report.precisions.values()), axis=0)
        label = f"mean of {len(order)} classes  {report.results['AP50']:.2f}"
        curves.plot(report.recalls, mean, label=label, linewidth=2.5, color="black")
    curves.set_title("precision over recall at IoU 0.5, and AP50", fontsize=10)
    curves.set_xlabel("recall: share of the objects that are found")
    curves.set_ylabel("precision: share of the detections that are right")
    curves.set_xlim(0, 1)
    curves.set_ylim(0, 1.02)
    if order:
        curves.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    values = [report.lost[name] for name in _ERROR_NAMES]
    bars = lost.barh(_ERROR_NAMES, values, color="firebrick")
    lost.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize=8)
    lost.set_xlim(0, max(0.05, 1.2 * max(values)))
    lost.xaxis.set_major_locator(require("matplotlib.ticker", "data").MaxNLocator(5))
    lost.invert_yaxis()
    lost.set_title("AP50 that is lost to", fontsize=10)
    for axes in (curves, lost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="both" if axes is curves else "x")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def worst_png(report: DetectionReport, dataset: Any) -> bytes | None:
    """Draws the pictures with most errors: what was missed (left) and what is wrong (right).

    Args:
        report: of the split.
        dataset: the split.

    Returns:
        A PNG; None where no picture that can be read has an error.
    """
    shown, errors = report.shown, report.errors
    order = np.argsort(-report.cost, kind="stable")
    order = order[report.cost[order] > 0]
    image_module = require("PIL.Image", "data")
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    is_wrong, is_missed = errors.kind >= 0, ~shown.is_found
    rows, captions = [], []
    position_of = {shown.image_ids[position]: position for position in order.tolist()}
    records = readable_items(dataset, (index_of[image_id] for image_id in position_of))
    for record in itertools.islice(records, _WORST):
        position = position_of[record.image_id]
        scale = _SIDE / max(record.image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in record.image.shape[1::-1])
        small = np.asarray(
            image_module.fromarray(record.image).resize(size, image_module.Resampling.BILINEAR)
        )
        missed = is_missed & (shown.object_image == position)
        wrong = is_wrong & (shown.image == position)
        left = draw_objects(
            small, scale * shown.object_box[missed], shown.object_label[missed], report.names
        )
        right = draw_objects(
            small,
            scale * shown.box[wrong],
            shown.label[wrong],
            report.names,
            scores=shown.score[wrong],
            remarks=[_ERROR_NAMES[kind] for kind in errors.kind[wrong]],
        )
        rows.append((image_module.fromarray(left), image_module.fromarray(right)))
        objects = int((shown.object_image == position).sum())
        captions.append(
            f"{record.file_name}: {int(missed.sum())} of {objects} objects not found, "
            f"{int(wrong.sum())} detections wrong"
        )
    if not rows:
        return None
    titles = ("objects not found", f"wrong detections, confidence from {report.threshold:.2f}")
    return sheet_png(picture_sheet(rows, titles, _SIDE, captions))


def _confusion_title(report: DetectionReport) -> str:
    objects = int(report.confusion[:-1].sum())
    right = 100 * np.trace(report.confusion) / max(objects, 1)
    return (
        f"{objects:,} objects, {right:.1f} % found with their class (IoU from 0.5,\n"
        f"confidence from {report.threshold:.2f}: {report.chosen}, F1 {report.f1:.2f})"
    )


def describe_errors(report: DetectionReport) -> str:
    """The kinds of error as text, for printing."""
    count = report.errors.count
    lines = [
        f"AP50 lost to, and errors from confidence {report.threshold:.2f} ({report.chosen}) on:"
    ]
    for name, meaning in ERRORS.items():
        lines.append(f"  {name:10}  {report.lost[name]:.3f}  {count[name]:>7,}  {meaning}")
    if not report.f1:
        lines.append(
            "No detection lies on an object of its class: train longer, or look at the data."
        )
    return "\n".join(lines)
