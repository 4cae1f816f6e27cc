"""Runs a trained model on images and videos: draws what it finds, and writes it down.

  python -m keras_densepred predict runs/mine photos/ --output found
  python -m keras_densepred predict runs/mine film.mp4 --output found
  python -m keras_densepred predict detector.keras "photos/*.jpg" --image-size 512 --score 0.5
  python -m keras_densepred predict runs/mine --data-dir MY_IMAGES --split val

Into the output folder go

  detectors:    pictures/*.png with boxes (and masks), detections.json with COCO results
  segmenters:   pictures/*.png tinted by class, masks/*.png with class numbers and a palette
                (--ade20k-labels: numbers from 1, in gray)
                --save-crops: crops/CLASS/*.png, each object by itself
  classifiers:  classes.csv with the most probable classes of each image
  of videos:    videos/*.mp4 of the same size and frame rate, without sound; JSON and CSV tell the
                frame, from 0, and the time in seconds; masks and crops lie in a folder a video

Videos are files by their own names or a pattern's; of a folder the images are taken. What cannot
be read is named and left out; the exit code is 1 then."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred import data, metrics, saved
from keras_densepred.cli.arguments import (
    add_data_dir_arguments,
    add_model_arguments,
    add_output_arguments,
    detection_files,
    open_chosen_model,
)
from keras_densepred.cli.console import progress
from keras_densepred.cli.predict_output import (
    in_background,
    json_list,
    mask_png,
    png,
    write_crops,
)
from keras_densepred.cli.predict_videos import predict_videos
from keras_densepred.command import on_interrupt
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.readers.unlabelled import (
    UnlabelledClassImages,
    UnlabelledImages,
    find_images,
    output_names,
)
from keras_densepred.data.video_files import is_video
from keras_densepred.files import claim_folder

if TYPE_CHECKING:
    from rich.console import Console

NAME = "predict"
SUMMARY = "find objects in images and videos, label their pixels, or tell their class"
_TOP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument(
        "images",
        nargs="*",
        help="image and video files, folders of images, or patterns in quotes",
    )
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
    inputs = [options.model, *options.images, *filter(None, [options.data_dir])]
    hint = f"What {options.output} holds may be of this run and of one before: run it again."
    with (
        claim_folder(
            options.output, NAME, inputs=inputs, overwrite=options.overwrite
        ) as options.folder,
        on_interrupt(hint),
    ):
        return _predict(paths, options, console)


def _predict(paths: list[Path], options: argparse.Namespace, console: Console) -> int:
    """Into the folder."""
    if options.tile is not None and options.tile < 1:
        raise ValueError(f"--tile {options.tile} is too small: give 1 or more pixels.")
    if not 0 <= options.score <= 1:
        raise ValueError(f"--score {options.score:g} is no confidence: give one from 0 to 1.")
    if not 0 <= options.overlap < 1:
        raise ValueError(f"--overlap {options.overlap:g} must be from 0 on and less than 1.")
    model = open_chosen_model(options)
    if options.data_dir:
        paths = _images_of_split(model, options)
    videos = [path for path in paths if is_video(path)]
    paths = [path for path in paths if not is_video(path)]
    counts = [
        f"{len(files):,} {what}{'' if len(files) == 1 else 's'}"
        for files, what in ((paths, "image"), (videos, "video"))
        if files
    ]
    console.print(f"{model.path}: {type(model.model).__name__}, {', '.join(counts)}")
    if not model.is_named:
        console.print(
            f"! there is no classes.json beside {model.path}: its classes are class_0 and so on, "
            "and its categories are numbered like them",
            style="yellow",
        )
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
    faults = task[model.task](model, paths, videos, options, console)
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


def _detect(
    model: saved.SavedModel,
    paths: list[Path],
    videos: list[Path],
    options: argparse.Namespace,
    console: Console,
) -> list[str]:
    names, count = output_names(paths), 0
    faults: list[str] = []
    with json_list(options.folder, "detections.json") as add, in_background() as soon:

        def note(found: saved.Objects, name: str, told: dict[str, Any]) -> saved.Objects:
            nonlocal count
            objects = (found.boxes, found.labels, found.scores, found.masks)
            results = metrics.objects_to_coco(told["image_id"], model.category_ids, *objects)
            add(result | told for result in results)
            sure = found.at_least(options.score)
            count += len(sure)
            if options.save_crops:
                write_crops(options.folder, sure, name)
            return sure

        def write_picture(name: Path, sure: saved.Objects) -> None:
            drawn = draw_objects(
                *(sure.image, sure.boxes, sure.labels, sure.class_names),
                scores=sure.scores,
                masks=sure.masks,
                note=f"nothing with a confidence from {options.score:g}",
            )
            options.folder.write(f"pictures/{name}", png(drawn))

        look = _look if options.tile is None else _look_at_pieces
        for index, found in look(model, paths, options, console, faults):
            told = {"image_id": index + 1, "file_name": str(paths[index])}
            sure = note(found, str(names[index].with_suffix("")), told)
            soon(write_picture, names[index], sure)
        faults += predict_videos(model, videos, options, console, note, len(paths) + 1)
    wrote = _wrote(options, ("pictures", "videos", "detections.json"))
    console.print(f"{count:,} objects with a confidence from {options.score:g}; wrote {wrote}")
    return faults


def _look(
    model: saved.SavedModel,
    paths: list[Path],
    options: argparse.Namespace,
    console: Console,
    faults: list[str],
) -> Iterator[tuple[int, Any]]:
    """The index of each image and what is found in it; `faults` gets broken ones."""
    if not paths:
        return
    images = (UnlabelledClassImages if model.task == "classification" else UnlabelledImages)(paths)
    size = min(options.batch_size, len(images))
    batches = saved.prediction.open_batches(model, images, size, on_bad_image="skip")
    with progress(console, "Predicting, in batches", len(batches)) as show:

        def counted() -> Iterator[Any]:
            for done, batch in enumerate(batches):
                show(done)
                yield batch
            show(len(batches))

        yield from saved.prediction.found_in(model, images, counted(), score=0)
    faults += batches.skipped_images


def _look_at_pieces(
    model: saved.SavedModel,
    paths: list[Path],
    options: argparse.Namespace,
    console: Console,
    faults: list[str],
) -> Iterator[tuple[int, Any]]:
    """As `_look`, each image in pieces."""
    with progress(console, "Predicting, in pieces", len(paths)) as show:
        for index, path in enumerate(paths):
            try:
                image = data.load_image(path)
            except data.ImageError as error:
                faults.append(str(error))
                continue
            yield index, model.predict(image, score=0, tile=options.tile, overlap=options.overlap)
            show(index + 1)


def _segment(
    model: saved.SavedModel,
    paths: list[Path],
    videos: list[Path],
    options: argparse.Namespace,
    console: Console,
) -> list[str]:
    names = output_names(paths)
    faults: list[str] = []

    def note(found: saved.LabelMap, name: str, told: dict[str, Any]) -> saved.LabelMap:
        options.folder.write(f"masks/{name}.png", mask_png(found, options.ade20k_labels))
        return found

    def write_picture(name: Path, found: saved.LabelMap) -> None:
        note(found, str(name.with_suffix("")), {})
        options.folder.write(f"pictures/{name}", png(np.asarray(found.draw())))

    with in_background() as soon:
        for index, found in _look(model, paths, options, console, faults):
            soon(write_picture, names[index], found)
    faults += predict_videos(model, videos, options, console, note)
    wrote = _wrote(options, ("pictures", "videos", "masks"))
    console.print(f"Wrote {wrote}")
    return faults


def _classify(
    model: saved.SavedModel,
    paths: list[Path],
    videos: list[Path],
    options: argparse.Namespace,
    console: Console,
) -> list[str]:
    faults: list[str] = []
    text = io.StringIO(newline="")
    # Of pictures alone the table has no columns for frames.
    columns = ["file_name", *(["frame", "time"] if videos else [])]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "rank", "label", "class", "probability"])

    def note(found: saved.ClassScores, name: str, told: dict[str, Any]) -> saved.ClassScores:
        best = np.argsort(-found.probabilities, kind="stable")[:_TOP].tolist()
        for rank, label in enumerate(best, start=1):
            place = [told.get(column, "") for column in columns]
            value = f"{found.probabilities[label]:.6f}"
            writer.writerow([*place, rank, label, model.class_names[label], value])
        return found

    for index, found in _look(model, paths, options, console, faults):
        note(found, "", {"file_name": paths[index]})
        console.print(f"{paths[index]}: {found.name}", markup=False)
    faults += predict_videos(model, videos, options, console, note)
    file = options.folder.write("classes.csv", text.getvalue().encode())
    console.print(f"Wrote {file}")
    return faults


def _wrote(options: argparse.Namespace, parts: Sequence[str]) -> str:
    """Which of its outputs the command wrote, in words."""
    found = {name.partition("/")[0] for name in options.folder.written}
    names = [str(options.folder.path / part) for part in parts if part in found] or ["nothing"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if names[1:] else names[0]
