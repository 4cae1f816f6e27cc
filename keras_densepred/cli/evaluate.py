"""Measures a trained model on a split: average precision, mean IoU, or top-1 and top-5.

  python -m keras_densepred evaluate runs/mine --data-dir MY_IMAGES
  python -m keras_densepred evaluate runs/mine --data-dir MY_IMAGES --split test
  python -m keras_densepred evaluate detector.keras --annotations val.json --images val/

The data are in COCO's layout, Roboflow's, YOLO's or Pascal VOC's for a detector, in Pascal VOC's or
folders of images and masks for a segmenter, and in class folders for a classifier. Prints tables
and writes all numbers as JSON (OUTPUT.json), and beside it into the folder OUTPUT

  detectors:    per_class.csv, precision_recall.png, confusion.png, worst.png (most errors)
  segmenters:   iou.csv, confusion.png
  classifiers:  confusion.png"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_densepred import data, metrics, report, saved
from keras_densepred._optional import require
from keras_densepred.cli.arguments import (
    add_data_arguments,
    add_model_arguments,
    add_output_arguments,
    check_data_arguments,
    detection_files,
    open_chosen_model,
)
from keras_densepred.cli.console import progress
from keras_densepred.data.readers.mask_files import MaskFiles
from keras_densepred.files import claim_folder, require_new_file, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

NAME = "evaluate"
SUMMARY = "average precision, mean IoU or top-1 of a model on a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="of --data-dir (default: val)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("raise", "skip"),
        default="raise",
        help="at an image that cannot be read: stop before anything is evaluated, or leave it out",
    )
    add_output_arguments(parser, "JSON file", "runs/evaluation.json")


def run(options: argparse.Namespace, console: Console) -> int:
    """Evaluates; returns the exit code."""
    check_data_arguments(options)
    options.output = require_new_file(
        options.output,
        inputs=[options.model],
        overwrite=options.overwrite,
        is_ours=lambda path: _is_evaluation(path, options.model),
    )
    suffix = "" if options.output.suffix else "_files"
    with claim_folder(
        f"{options.output.with_suffix('')}{suffix}",
        NAME,
        inputs=[options.model, *filter(None, [options.data_dir, options.images])],
        overwrite=options.overwrite,
    ) as options.folder:
        model = open_chosen_model(options)
        task = {"detection": _detector, "segmentation": _segmenter, "classification": _classifier}
        split, results = task[model.task](model, options, console)
        content = {"model": str(model.path), "data": repr(split), **results}
        replaces = " in place of an earlier evaluation" if options.output.exists() else ""
        write_atomically(options.output, report.evaluation_json(content))
        console.print(f"Wrote {options.output}{replaces}, and more in {options.folder.path}")
    return 0


def _detector(
    model: saved.SavedModel, options: argparse.Namespace, console: Console
) -> tuple[Any, dict[str, Any]]:
    if options.mask_dir:
        raise ValueError("--mask-dir is for segmenters, and this is a detector: give --data-dir.")
    predicts_masks = bool(getattr(model.model, "with_masks", False))
    if options.masks and not predicts_masks:
        raise ValueError(f"{model.path} predicts no masks: leave --masks out.")
    split = _open_objects(model, options, console, with_masks=predicts_masks)
    _require_classes(model, split.class_names, split.source)
    batches = data.eval_batches(split, **_batch_options(model, split, options, console))
    with progress(console, "Evaluating, in batches", len(batches)) as show:
        found = metrics.find_objects(model.predictor, batches, split, show)
    results = found.results()
    images = len(split) - len(batches.skipped_images)
    _print_table(console, model, images, results)
    evaluation = metrics.DetectionReport.of(found, results)
    _print_classes(console, evaluation)
    console.print(report.describe_errors(evaluation))
    report.write_detection_report(evaluation, split, options.folder.write)
    return split, {"images": images, **evaluation.as_json()}


def _open_objects(
    model: saved.SavedModel, options: argparse.Namespace, console: Console, with_masks: bool
) -> Any:
    """The split; masks of which the data have none are asked for by --masks only."""
    files = detection_files(options)
    if options.annotations:
        pair = dict(train_annotations=options.annotations, train_images=options.images)
        files = data.DetectionFiles(**pair)
    name = "train" if options.annotations else options.split
    known = model.class_names if model.is_named else ()

    def opened(masks: bool, say: Any) -> Any:
        return data.open_splits(files, with_masks=masks, only=name, known=known, say=say)[name]

    try:
        return opened(with_masks, console.print)
    except data.DatasetError as error:
        if not with_masks or options.masks:
            raise
        split = opened(False, lambda text: None)
        console.print(f"! boxes alone are evaluated, not masks: {error}", style="yellow")
        return split


def _segmenter(
    model: saved.SavedModel, options: argparse.Namespace, console: Console
) -> tuple[Any, dict[str, Any]]:
    if options.annotations:
        raise ValueError("--annotations is for detectors, and this is a segmenter.")
    split = _open_masks(options, None)
    if model.is_named and split.class_names[0] == "class_0":
        # The masks have no names: take the model's, of which some may be missing in this split.
        _require_at_most(model, len(split.class_names), split.name)
        split = _open_masks(options, model.class_names)
    _require_classes(model, split.class_names, split.name)
    batches = data.eval_mask_batches(split, **_batch_options(model, split, options, console))
    with progress(console, "Evaluating, in batches", len(batches)) as show:
        counts = metrics.count_pixels(
            model.predictor.predict_on_batch, batches, len(split.class_names), show
        )
    results = counts.results(split.class_names)
    images = len(split) - len(batches.skipped_images)
    _print_table(console, model, images, results)
    options.folder.write("iou.csv", report.iou_csv({options.split: results}))
    confusion = _with_confusion(options, results, counts.confusion, split, "pixels")
    return split, {"images": images, **confusion}


def _open_masks(options: argparse.Namespace, names: tuple[str, ...] | None) -> MaskFiles:
    if options.mask_dir:
        reduce = options.reduce_zero_label
        return data.MaskFolder(options.images, options.mask_dir, names, reduce_zero_label=reduce)
    _require_folder(options)
    where = options.data_dir, names, options.reduce_zero_label
    if options.split == "test":
        return data.find_segmentation_test(*where)
    return data.find_segmentation_splits(*where)[options.split]


def _classifier(
    model: saved.SavedModel, options: argparse.Namespace, console: Console
) -> tuple[Any, dict[str, Any]]:
    if not options.data_dir:
        raise ValueError("A classifier is evaluated on class folders: give --data-dir.")
    _require_folder(options)
    if options.split == "test":
        folder = data.find_class_test(options.data_dir)
    else:
        folder = data.find_class_folders(options.data_dir)[options.split]
    split = data.ImageFolder(folder, model.class_names if model.is_named else None)
    _require_classes(model, split.class_names, folder)
    batches = data.eval_class_batches(split, **_batch_options(model, split, options, console))
    with progress(console, "Evaluating, in batches", len(batches)) as show:
        counts = metrics.count_predictions(model.predictor, batches, len(split.class_names), show)
    results = counts.results()
    images = len(split) - len(batches.skipped_images)
    _print_table(console, model, images, results)
    confusion = _with_confusion(options, results, counts.confusion, split, "images")
    return split, {"images": images, **confusion}


def _with_confusion(
    options: argparse.Namespace,
    results: dict[str, float],
    confusion: np.ndarray,
    split: Any,
    counted: str,
) -> dict[str, Any]:
    """Draws the confusion of classes; returns what goes into the JSON file."""
    names = list(split.class_names)
    drawn = report.confusion_png(confusion, names, counted=counted)
    options.folder.write("confusion.png", drawn)
    return {"results": results, "classes": names, "confusion": confusion.tolist()}


def _batch_options(
    model: saved.SavedModel, split: Any, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Arguments of the batches, once it is known that the images can be read."""
    for fault in data.require_readable(split, options.on_bad_image):
        console.print(f"! left out: {fault}", style="yellow")
    return {
        "batch_size": options.batch_size,
        "on_bad_image": options.on_bad_image,
        **model.preprocessing.batch_options(),
    }


def _require_folder(options: argparse.Namespace) -> None:
    if not options.data_dir:
        raise ValueError("--train-annotations is for detectors: give --data-dir.")


def _require_classes(model: saved.SavedModel, names: tuple[str, ...], place: Any) -> None:
    """Refuses data whose labels mean something else."""
    ours = len(model.class_names)
    if len(names) != ours:
        raise ValueError(
            f"{model.path} has {ours} classes and {place} {len(names)}: evaluate on data with the "
            "classes that the model was trained on."
        )
    different = [pair for pair in zip(model.class_names, names, strict=True) if len(set(pair)) > 1]
    if model.is_named and different:
        (one, other), label = different[0], model.class_names.index(different[0][0])
        raise ValueError(
            f"Label {label} is {one!r} for {model.path} and {other!r} in {place}: evaluate on data "
            "with the classes that the model was trained on, in their order."
        )


def _require_at_most(model: saved.SavedModel, count: int, place: str) -> None:
    if count > len(model.class_names):
        raise ValueError(
            f"{model.path} has {len(model.class_names)} classes and {place} labels up to "
            f"{count - 1}: evaluate on data with the classes that the model was trained on."
        )


def _print_table(
    console: Console, model: saved.SavedModel, images: int, results: dict[str, float]
) -> None:
    """All classes together; masks in a column beside boxes, and single classes where no other
    table has them."""
    table_module = require("rich.table", "data")
    has_masks = any(name.startswith(metrics.MASK_PREFIX) for name in results)
    table = table_module.Table(title=f"{model.path}, {images:,} images", title_justify="left")
    table.add_column("measure")
    is_detector = model.task == "detection"
    for column in ("boxes", "masks") if has_masks else ("boxes",) if is_detector else ("value",):
        table.add_column(column, justify="right")
    for name, value in results.items():
        if name.startswith((metrics.MASK_PREFIX, "AP/")):
            continue
        values = (value, results[f"{metrics.MASK_PREFIX}{name}"]) if has_masks else (value,)
        table.add_row(name, *map(_cell, values))
    console.print(table)


def _print_classes(console: Console, evaluation: metrics.DetectionReport) -> None:
    """Class by class."""
    table = require("rich.table", "data").Table()
    table.add_column("class")
    columns = ("objects", "AP", "AP50", "APs", "APm", "APl", "AR100")
    for column in columns:
        table.add_column(column, justify="right")
    masks = evaluation.by_class.get("masks")
    for column in ("AP", "AP50") if masks else ():
        table.add_column(f"mask {column}", justify="right")
    for name, row in evaluation.by_class["boxes"].items():
        cells = [f"{row['objects']:,}", *(_cell(row[column]) for column in columns[1:])]
        cells += [_cell(masks[name][column]) for column in ("AP", "AP50")] if masks else []
        table.add_row(name, *cells)
    console.print(table)


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _is_evaluation(path: Path, model: str) -> bool:
    """Whether a file is what this command wrote of this model, and of no other."""
    try:
        content = json.loads(path.read_text("utf-8"))
        known = {"model", "data", "results"} <= content.keys()
        return known and Path(content["model"]).resolve() == saved.find_model(model).resolve()
    except (OSError, ValueError, AttributeError, TypeError):
        return False
