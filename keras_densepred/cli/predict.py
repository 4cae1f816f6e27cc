"""Runs a trained model on images: draws what it finds, and writes it down.

  python -m keras_densepred predict runs/mine photos/ --output found
  python -m keras_densepred predict detector.keras "photos/*.jpg" --image-size 512 --score 0.5
  python -m keras_densepred predict runs/mine --data-dir MY_IMAGES --split val

Into the output folder go

  detectors:    pictures/*.png with boxes (and masks), detections.json with COCO results
  segmenters:   pictures/*.png tinted by class, masks/*.png with class numbers and a palette
                (--ade20k-labels: numbers from 1, in gray)
                --save-crops: crops/CLASS/*.png, each object by itself
  classifiers:  classes.csv with the most probable classes of each image

An image that cannot be read is named and left out; the exit code is 1 then."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred import data, metrics, saved
from keras_densepred._optional import require
from keras_densepred.cli.arguments import (
    add_data_dir_arguments,
    add_model_arguments,
    add_output_arguments,
    detection_files,
    open_chosen_model,
)
from keras_densepred.cli.console import progress
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.drawing.semantic import (
    IGNORED_COLOUR,
    draw_semantic,
    label_colour,
    with_legend,
)
from keras_densepred.data.readers.unlabelled import (
    UnlabelledClassImages,
    UnlabelledImages,
    find_images,
    output_names,
)
from keras_densepred.files import claim_folder

if TYPE_CHECKING:
    from rich.console import Console

NAME = "predict"
SUMMARY = "find objects in images, label their pixels, or tell their class"
_TOP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument("images", nargs="*", help="image files, folders, or patterns in quotes")
    group = parser.add_argument_group("labelled data, of which the images are taken")
    add_data_dir_arguments(group)
    group.add_argument(
        "--split", choices=("train", "val", "test"), default="val", help="default: val"
    )
    add_output_arguments(parser, "folder", "runs/predict")
    parser.add_argument(
        "--ade20k-labels",
        action="store_true",
        help="masks as ADE20K's server wants them: gray, 1 for the first class",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        help="least confidence of a box that is drawn; detections.json has all (default: 0.3)",
    )
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="look at larger images in pieces of this side"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.2, help="share of a piece seen twice (default: 0.2)"
    )
    parser.add_argument(
        "--save-crops", action="store_true", help="write each drawn object as a picture of its own"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Predicts; returns the exit code."""
    if bool(options.images) == bool(options.data_dir):
        options.refuse("give images, or --data-dir")
    paths = find_images(options.images)
    with claim_folder(
        options.output,
        NAME,
        inputs=[options.model, *options.images, *filter(None, [options.data_dir])],
        overwrite=options.overwrite,
    ) as options.folder:
        return _predict(paths, options, console)


def _predict(paths: list[Path], options: argparse.Namespace, console: Console) -> int:
    """Into the folder."""
    if options.tile is not None and options.tile < 1:
        raise ValueError(f"--tile {options.tile} is too small: give 1 or more pixels.")
    if not 0 <= options.overlap < 1:
        raise ValueError(f"--overlap {options.overlap:g} must be from 0 on and less than 1.")
    model = open_chosen_model(options)
    if options.data_dir:
        paths = _images_of_split(model, options)
    count = f"{len(paths):,} image{'' if len(paths) == 1 else 's'}"
    console.print(f"{model.path}: {type(model.model).__name__}, {count}")
    if options.ade20k_labels and model.task != "segmentation":
        raise ValueError(f"--ade20k-labels is for segmenters: {model.path} is none.")
    if options.ade20k_labels and len(model.class_names) > 254:
        raise ValueError(
            f"--ade20k-labels has no room for {len(model.class_names)} classes: leave it out."
        )
    if (options.tile or options.save_crops) and model.task != "detection":
        raise ValueError(f"--tile and --save-crops are for detectors: {model.path} is none.")
    task: dict[str, Callable[..., list[str]]] = {
        "detection": _detect,
        "segmentation": _segment,
        "classification": _classify,
    }
    faults = task[model.task](model, paths, options, console)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _images_of_split(model: saved.SavedModel, options: argparse.Namespace) -> list[Path]:
    """The images of a split of --data-dir."""
    split: Any
    if model.task == "detection":
        split = data.open_splits(detection_files(options), only=options.split)[options.split]
    elif model.task == "segmentation":
        where, reduce = options.data_dir, options.reduce_zero_label
        if options.split == "test":
            split = data.find_segmentation_test(where, reduce_zero_label=reduce)
        else:
            split = data.find_segmentation_splits(where, reduce_zero_label=reduce)[options.split]
    elif options.split == "test":
        split = data.ImageFolder(data.find_class_test(options.data_dir))
    else:
        split = data.ImageFolder(data.find_class_folders(options.data_dir)[options.split])
    return [Path(split.image_path(index)) for index in range(len(split))]


def _open(
    make: Callable[..., data.EvalBatches],
    images: UnlabelledImages | UnlabelledClassImages,
    model: saved.SavedModel,
    options: argparse.Namespace,
) -> data.EvalBatches:
    """The images in batches, prepared as the model wants them, without broken ones."""
    return make(
        images,
        batch_size=min(options.batch_size, len(images)),
        on_bad_image="skip",
        **model.preprocessing.batch_options(),
    )


def _batches(
    batches: data.EvalBatches, model: saved.SavedModel, console: Console
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Predictions and batch, with progress."""
    with progress(console, "Predicting, in batches", len(batches)) as show:
        for done, batch in enumerate(batches, start=1):
            inputs = data.model_input(model.model, batch)
            yield model.predictor.predict_on_batch(inputs), batch
            show(done)


def _detect(
    model: saved.SavedModel, paths: list[Path], options: argparse.Namespace, console: Console
) -> list[str]:
    images, names = UnlabelledImages(paths), output_names(paths)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    batches = None
    if options.tile is None:
        batches = _open(data.eval_batches, images, model, options)
        predicted = _batches(batches, model, console)
    else:
        predicted = _in_pieces(images, model, options, console, skipped)
    for predictions, batch in predicted:
        sizes: dict[int, tuple[int, int]] = {}
        for row in np.flatnonzero(batch["valid"]).tolist():
            index = int(batch["image_ids"][row]) - 1
            record = images[index]
            sizes[record.image_id] = record.size
            found = metrics.detections_on_image(predictions, batch, row, record.size)
            sure = found["confidence"] >= options.score
            drawn = draw_objects(
                record.image,
                found["boxes"][sure],
                found["labels"][sure],
                model.class_names,
                scores=found["confidence"][sure],
                masks=found["masks"][sure] if "masks" in found else None,
                note=f"nothing with a confidence from {options.score:g}",
            )
            options.folder.write(f"pictures/{names[index]}", _png(drawn))
            if options.save_crops:
                _write_crops(options, model, record.image, found, sure, names[index])
        results += metrics.detections_to_coco(predictions, batch, model.category_ids, sizes)
    for result in results:
        result["file_name"] = str(paths[result["image_id"] - 1])
    file = options.folder.write("detections.json", (json.dumps(results) + "\n").encode())
    drawn_objects = sum(result["score"] >= options.score for result in results)
    console.print(
        f"{drawn_objects:,} objects with a confidence from {options.score:g}; wrote "
        f"{options.folder.path / 'pictures'} and {file}"
    )
    return skipped if batches is None else list(batches.skipped_images)


def _in_pieces(
    images: UnlabelledImages,
    model: saved.SavedModel,
    options: argparse.Namespace,
    console: Console,
    skipped: list[str],
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Predictions and a batch for each image, in its own pixels; `skipped` gets broken ones."""
    with progress(console, "Predicting, in pieces", len(images)) as show:
        for index in range(len(images)):
            try:
                image = images[index].image
            except data.ImageError as error:
                skipped.append(str(error))
                continue
            found = model.predict(image, score=0, tile=options.tile, overlap=options.overlap)
            rows = {"boxes": found.boxes, "labels": found.labels, "confidence": found.scores}
            batch = {
                "valid": np.ones(1, bool),
                "image_ids": np.array([images.image_ids[index]]),
                "scales": np.ones((1, 2), np.float32),
            }
            yield {name: values[None] for name, values in rows.items()}, batch
            show(index + 1)


def _write_crops(
    options: argparse.Namespace,
    model: saved.SavedModel,
    image: np.ndarray,
    found: dict[str, np.ndarray],
    sure: np.ndarray,
    name: Path,
) -> None:
    """Each object of an image by itself, in a folder of its class."""
    height, width = image.shape[:2]
    for number, index in enumerate(np.flatnonzero(sure).tolist(), start=1):
        left, top, right, bottom = found["boxes"][index].tolist()
        rows = slice(max(0, int(top)), min(height, int(np.ceil(bottom))))
        columns = slice(max(0, int(left)), min(width, int(np.ceil(right))))
        crop = image[rows, columns]
        if crop.size:
            kind = re.sub(r"[^\w-]+", "_", model.class_names[int(found["labels"][index])])
            options.folder.write(f"crops/{kind}/{name.with_suffix('')}_{number}.png", _png(crop))


def _segment(
    model: saved.SavedModel, paths: list[Path], options: argparse.Namespace, console: Console
) -> list[str]:
    images, names = UnlabelledImages(paths), output_names(paths)
    batches = _open(data.eval_mask_batches, images, model, options)
    for scores, batch in _batches(batches, model, console):
        for row in np.flatnonzero(batch["valid"]).tolist():
            index = int(batch["indices"][row])
            labels = metrics.labels_at_own_size(np.asarray(scores), batch, row).astype(np.uint8)
            classes, colours = model.class_names, model.class_colours
            drawn = draw_semantic(images[index].image, labels, classes, colours)
            seen = np.unique(labels).tolist()
            drawn = with_legend(drawn, seen, classes, colours)
            options.folder.write(f"pictures/{names[index]}", _png(drawn))
            if options.ade20k_labels:
                mask = _png(labels + np.uint8(1))
            else:
                mask = _png(labels, _palette(model))
            options.folder.write(f"masks/{names[index]}", mask)
    places = (options.folder.path / name for name in ("pictures", "masks"))
    console.print(f"Wrote {' and '.join(map(str, places))}")
    return list(batches.skipped_images)


def _classify(
    model: saved.SavedModel, paths: list[Path], options: argparse.Namespace, console: Console
) -> list[str]:
    batches = _open(data.eval_class_batches, UnlabelledClassImages(paths), model, options)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "rank", "label", "class", "probability"])
    for scores, batch in _batches(batches, model, console):
        probabilities = saved.prediction.probabilities(model, scores)
        for row in np.flatnonzero(batch["valid"]).tolist():
            path = paths[int(batch["indices"][row])]
            best = np.argsort(-probabilities[row], kind="stable")[:_TOP].tolist()
            for rank, label in enumerate(best, start=1):
                name, value = model.class_names[label], probabilities[row, label]
                writer.writerow([path, rank, label, name, f"{value:.6f}"])
            console.print(f"{path}: {model.class_names[best[0]]}", markup=False)
    file = options.folder.write("classes.csv", text.getvalue().encode())
    console.print(f"Wrote {file}")
    return list(batches.skipped_images)


def _palette(model: saved.SavedModel) -> list[int]:
    """The colours of the model's labels, as Pillow takes them."""
    names = model.class_names
    colours = [
        label_colour(label, names, model.class_colours) or (0, 0, 0) for label in range(len(names))
    ]
    colours += [(0, 0, 0)] * (255 - len(colours)) + [IGNORED_COLOUR]
    return [tone for colour in colours for tone in colour]


def _png(pixels: np.ndarray, palette: list[int] | None = None) -> bytes:
    """A PNG file of `(H, W, 3)` colours, or `(H, W)` labels, with a palette or in gray."""
    image = require("PIL.Image", "data").fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
