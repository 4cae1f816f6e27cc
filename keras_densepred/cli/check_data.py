"""Tells whether a data set can be trained on, and shows what is in it.

  python -m keras_densepred check-data --data-dir DIR --output OUT
  python -m keras_densepred check-data --annotations FILE.json --images DIR --samples 9
  python -m keras_densepred check-data --images DIR --mask-dir DIR

Detection: COCO, Roboflow's COCO, YOLO, Pascal VOC's XML. Segmentation: Pascal VOC's layout, or
images with masks. Classification: train/<class>/<image> and val likewise. Finds out which it is,
decodes every image and mask, prints a summary of each split, and draws samples with their boxes or
labels into the output folder. What is suspicious has an exclamation mark. The exit code is 0 when
the data can be trained on; otherwise it is 1, and each fault is one sentence."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred import data
from keras_densepred._optional import require
from keras_densepred.cli.arguments import (
    add_data_arguments,
    add_output_arguments,
    check_data_arguments,
    detection_files,
)
from keras_densepred.cli.console import progress
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.drawing.semantic import draw_legend, draw_semantic, with_legend
from keras_densepred.data.layouts import LAYOUTS, layout_evidence
from keras_densepred.data.open import hold_out_split, same_classes
from keras_densepred.data.readers.class_folders import is_class_tree
from keras_densepred.data.readers.mask_files import MaskFiles
from keras_densepred.data.readers.mask_folders import is_segmentation_tree
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.readable import find_unreadable
from keras_densepred.data.readers.summary import DatasetSummary
from keras_densepred.data.readers.trainable import Summary, require_evaluable_data
from keras_densepred.files import CommandFolder, claim_folder

if TYPE_CHECKING:
    from rich.console import Console

NAME = "check-data"
SUMMARY = "tell whether a data set can be trained on, and show what is in it"
_MAX_FAULTS = 20
_NAMED = 8  # classes without objects
_SAMPLE_HEIGHT = 480  # pixels of one image in the sheet of samples

Split = ObjectFiles | MaskFiles | data.ImageFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_data_arguments(parser)
    parser.add_argument(
        "--samples", type=int, default=9, help="images to draw for each split (default: 9)"
    )
    add_output_arguments(parser, "folder for the drawings", "runs/check_dataset")


def run(options: argparse.Namespace, console: Console) -> int:
    """Checks; returns the exit code, 0 when the data can be trained on."""
    check_data_arguments(options)
    if options.samples < 0:
        options.refuse("--samples must not be negative")
    if not options.samples:
        return _check(options, console, None)
    inputs = (
        *(options.data_dir, options.images, options.mask_dir, options.annotations),
        *(options.train_annotations, options.train_images),
        *(options.val_annotations, options.val_images),
    )
    with claim_folder(
        options.output, NAME, inputs=filter(None, inputs), overwrite=options.overwrite
    ) as folder:
        return _check(options, console, folder)


def _check(options: argparse.Namespace, console: Console, folder: CommandFolder | None) -> int:
    """Checks; drawings go to the folder, if any."""
    faults: list[str] = []
    splits: Mapping[str, Split]
    try:
        kind = _kind(options)
        if kind == "masks":
            splits = _open_masks(options)
        elif kind == "classes":
            splits = _open_class_folders(options)
        else:
            splits = _open_objects(console, options, faults)
    except (data.DatasetError, data.ImageError) as error:
        return _refuse(console, [str(error)])

    summaries: list[Summary] = []
    for name, dataset in splits.items():
        broken = _decode_all(console, name, dataset)
        faults += broken.values()
        # The summary of masks counts pixels, so it comes when every mask is known to be readable.
        if not (broken and isinstance(dataset, MaskFiles)):
            summaries.append(dataset.summary())
            console.print(summaries[-1])
            _tell_unused(console, name, summaries[-1])
        if folder is not None:
            path = _write_samples(folder, name, dataset, options.samples, set(broken))
            if path is not None:
                console.print(f"Samples of {name} with their labels: {path}")
    try:
        if summaries and len(summaries) == len(splits):
            for finding in data.require_trainable_data(*summaries[:2]):
                console.print(f"! {finding}", style="yellow")
            for summary in summaries[2:]:
                require_evaluable_data(summary)
        else:
            for summary in summaries:
                require_evaluable_data(summary)
    except data.DatasetError as error:
        faults.append(str(error))
    if faults:
        return _refuse(console, faults)
    console.print("This data set can be trained on.", style="bold green")
    return 0


def _kind(options: argparse.Namespace) -> str:
    """What the data are for: `"masks"`, `"classes"` or `"objects"`."""
    if options.mask_dir:
        return "masks"
    if not options.data_dir:
        return "objects"
    if options.layout is not None:
        return "objects" if options.layout in LAYOUTS else options.layout
    found = layout_evidence(options.data_dir)
    has_masks = is_segmentation_tree(options.data_dir)
    if found and has_masks:
        names = list(found)
        raise data.DatasetError(
            f"{options.data_dir} has more than one layout: {LAYOUTS[names[0]][0]} "
            f"({found[names[0]]}) and masks: choose by --layout {names[0]} or --layout masks."
        )
    if found or not (has_masks or is_class_tree(options.data_dir)):
        return "objects"
    return "masks" if has_masks else "classes"


def _open_objects(
    console: Console, options: argparse.Namespace, faults: list[str]
) -> dict[str, ObjectFiles]:
    """Reads the annotations of each split and says where they are; adds to `faults`."""
    splits: dict[str, ObjectFiles] = {}
    if options.annotations:
        console.print(f"Reading {options.annotations} ...")
        files = options.annotations, options.images
        dataset = _with_masks(
            lambda masks: data.CocoDataset(*files, with_masks=masks), options, console
        )
        return same_classes({"data": dataset})
    layout = detection_files(options).find()
    console.print(f"Found {layout}")
    for name, place in layout.splits.items():
        console.print(f"Reading {name} ...")
        try:
            splits[name] = _with_masks(place.open, options, console)
        except data.DatasetError as error:
            faults.append(str(error))
    if options.val_share is not None and set(splits) == {"train"}:
        splits = hold_out_split(splits, options.val_share)
    elif len(layout.splits) == 1:
        console.print(
            "! no validation split: train with --val-share 0.1, or add one", style="yellow"
        )
    try:
        return same_classes(splits)
    except data.DatasetError as error:
        faults.append(str(error))
    return splits


def _with_masks(
    open_split: Callable[[bool], ObjectFiles], options: argparse.Namespace, console: Console
) -> ObjectFiles:
    """Opens a split with its masks, where it has some that can be used; with --masks it must."""
    dataset = open_split(options.masks)
    if options.masks or not dataset.segmented:
        return dataset
    try:
        return open_split(True)
    except data.DatasetError as error:
        console.print(f"! boxes can be used, masks cannot: {error}", style="yellow")
        return dataset


def _open_masks(options: argparse.Namespace) -> dict[str, MaskFiles]:
    if options.mask_dir:
        reduce = options.reduce_zero_label
        folder = data.MaskFolder(options.images, options.mask_dir, reduce_zero_label=reduce)
        return {"data": folder}
    return data.find_segmentation_splits(
        options.data_dir, reduce_zero_label=options.reduce_zero_label
    )


def _open_class_folders(options: argparse.Namespace) -> dict[str, data.ImageFolder]:
    folders = data.find_class_folders(options.data_dir)
    train = data.ImageFolder(folders["train"])
    return {"train": train, "val": data.ImageFolder(folders["val"], train.class_names)}


def _decode_all(console: Console, name: str, dataset: Split) -> dict[int, str]:
    """Reads every image; returns position and fault of those that cannot be used."""
    faults: dict[int, str] = {}
    with progress(console, f"Decoding the images of {name}", len(dataset), "broken") as show:
        for index, fault in enumerate(find_unreadable(dataset, range(len(dataset)))):
            if fault is not None:
                faults[index] = fault
            show(index + 1, len(faults))
    return faults


def _tell_unused(console: Console, name: str, summary: Summary) -> None:
    """Names classes without objects."""
    if not isinstance(summary, DatasetSummary):
        return
    unused = [label for label, count in summary.boxes_per_class.items() if not count]
    if not unused or not summary.boxes:
        return
    named = ", ".join(unused[:_NAMED]) + (" ..." if len(unused) > _NAMED else "")
    classes = "1 class has" if len(unused) == 1 else f"{len(unused)} classes have"
    console.print(f"  ! {classes} no object in {name}: {named}", style="yellow")


def _write_samples(
    folder: CommandFolder, name: str, dataset: Split, count: int, broken: set[int]
) -> Path | None:
    """Draws images spread evenly over the split into one sheet; None without usable images."""
    usable = [index for index in range(len(dataset)) if index not in broken]
    if not usable:
        return None
    count = min(count, len(usable))
    pil = require("PIL.Image", "data")
    tiles: list[Any] = []
    seen: set[int] = set()
    colours = getattr(dataset, "class_colours", None)
    for position in np.linspace(0, len(usable) - 1, count).astype(int):
        record = dataset[usable[position]]
        if isinstance(record, data.LabelledImage):
            drawn = with_legend(record.image, [record.label], dataset.class_names)
        elif record.semantic is not None:
            drawn = draw_semantic(record.image, record.semantic, dataset.class_names, colours)
            seen |= set(np.unique(record.semantic).tolist())
        else:
            drawn = draw_objects(
                record.image,
                record.boxes,
                record.labels,
                dataset.class_names,
                crowd=record.crowd,
                masks=record.masks,
            )
        width = max(1, round(drawn.shape[1] * _SAMPLE_HEIGHT / drawn.shape[0]))
        tiles.append(pil.fromarray(drawn).resize((width, _SAMPLE_HEIGHT), pil.LANCZOS))
    columns = int(np.ceil(np.sqrt(count)))
    rows = [tiles[start : start + columns] for start in range(0, count, columns)]
    gap = 8
    sheet_width = max(sum(tile.width + gap for tile in row) for row in rows) + gap
    legend = None
    if seen:
        legend = draw_legend(sorted(seen), dataset.class_names, sheet_width, colours)
    top = gap + (0 if legend is None else len(legend))
    sheet = pil.new("RGB", (sheet_width, top + len(rows) * (_SAMPLE_HEIGHT + gap)), "white")
    if legend is not None:
        sheet.paste(pil.fromarray(legend), (0, 0))
    for row_number, row in enumerate(rows):
        x = gap
        for tile in row:
            sheet.paste(tile, (x, top + row_number * (_SAMPLE_HEIGHT + gap)))
            x += tile.width + gap
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return folder.write(f"samples_{name}.png", buffer.getvalue())


def _refuse(console: Console, faults: list[str]) -> int:
    for fault in faults[:_MAX_FAULTS]:
        console.print(f"- {fault}", style="red")
    if len(faults) > _MAX_FAULTS:
        console.print(f"- and {len(faults) - _MAX_FAULTS:,} more faults", style="red")
    counted = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
    console.print(f"This data set cannot be trained on: {counted}.", style="bold red")
    return 1
