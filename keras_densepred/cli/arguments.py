"""Arguments that several commands share: which model, which data, which modules of the user's."""

from __future__ import annotations

import argparse
from typing import Any

from keras_densepred import data, saved, start
from keras_densepred.data.layouts import LAYOUTS
from keras_densepred.plugins import import_modules

OTHER_LAYOUTS = ("masks", "classes")  # of data that are not for detectors


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """The argument by which a user's own backbones, heads and models become known."""
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        default="",
        help="modules, separated by commas, that register your own backbones and models",
    )


def import_user_modules(options: argparse.Namespace) -> None:
    """Imports the package and what `add_import_argument` asked for.

    Raises:
        ImportError: if a module cannot be imported.
    """
    start.load()
    import_modules(name.strip() for name in options.modules.split(",") if name.strip())


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a user says which model, and how its images are prepared."""
    parser.add_argument(
        "model",
        help="a run's directory, its preset, a saved .keras file, or a classifier's preset",
    )
    add_import_argument(parser)
    group = parser.add_argument_group(
        "the model's input",
        "By default as in the recipe's preprocessing.json beside the model.",
    )
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the input")
    for name, text in (("mean", "subtracted from"), ("std", "that divides")):
        group.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{text} channels of 0..255",
        )
    group.add_argument("--batch-size", type=int, default=8, help="images at a time (default: 8)")


def open_chosen_model(options: argparse.Namespace) -> saved.SavedModel:
    """Loads the model that `add_model_arguments` asked for.

    Raises:
        ValueError: as `saved.open_model`, or if the batch size is not positive.
        ImportError: if a user's module cannot be imported.
    """
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, and is {options.batch_size}.")
    import_user_modules(options)
    return saved.open_model(
        options.model, image_size=options.image_size, mean=options.mean, std=options.std
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a user says where labelled data are."""
    group = parser.add_argument_group(
        "the data", "One of --data-dir, --annotations, --mask-dir, --train-annotations."
    )
    add_data_dir_arguments(group)
    for split in ("train", "val"):
        group.add_argument(
            f"--{split}-annotations",
            metavar="FILE",
            help=f"a COCO JSON file, with --{split}-images",
        )
        group.add_argument(f"--{split}-images", metavar="DIR", help="the folder of its images")
    group.add_argument("--annotations", metavar="FILE", help="a COCO JSON file, with --images")
    group.add_argument("--mask-dir", metavar="DIR", help="semantic masks, with --images")
    group.add_argument("--images", metavar="DIR", help="the folder of the images of either")
    group.add_argument("--masks", action="store_true", help="use COCO's instance masks too")


def add_data_dir_arguments(group: Any) -> None:
    """The arguments by which a user says which folder, and which layout it has."""
    group.add_argument("--data-dir", metavar="DIR", help="folder of the data, in any known layout")
    group.add_argument(
        "--layout", choices=(*LAYOUTS, *OTHER_LAYOUTS), help="of a folder that has several"
    )
    group.add_argument(
        "--val-share", type=float, metavar="SHARE", help="to hold out, of data without validation"
    )
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 in semantic masks is no class, and 1 the first (ADE20K's tree: by itself)",
    )


def detection_files(options: argparse.Namespace) -> data.DetectionFiles:
    """Where the detection data are that the arguments name."""
    names = ("data_dir", "layout", "val_share")
    pairs = [f"{s}_{what}" for s in ("train", "val") for what in ("annotations", "images")]
    return data.DetectionFiles(**{name: getattr(options, name, None) for name in (*names, *pairs)})


def check_data_arguments(options: argparse.Namespace) -> None:
    """Ends the program with its usage unless the data are named exactly once."""
    names = ("data_dir", "annotations", "mask_dir", "train_annotations")
    given = [name for name in names if getattr(options, name)]
    if len(given) != 1:
        options.refuse(
            "give one of --data-dir, --annotations with --images, --mask-dir with --images, "
            "--train-annotations with --train-images"
        )
    if (options.images is None) != (given[0] in ("data_dir", "train_annotations")):
        options.refuse("--images goes with --annotations or --mask-dir")


def add_output_arguments(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """The arguments by which a user says where to write.

    Args:
        parser: of the command.
        what: is written, such as `"folder"`.
        default: its name.
    """
    parser.add_argument("--output", default=default, help=f"{what} (default: {default})")
    parser.add_argument(
        "--overwrite", action="store_true", help="also where other files are, which are replaced"
    )
