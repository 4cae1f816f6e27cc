"""Opens what a recipe saved: the model, how its images are prepared, what its labels mean."""

import argparse
import dataclasses
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_densepred import models
from keras_densepred.cli.console import sentence
from keras_densepred.saved.preprocessing import FILE_NAME, Preprocessing

_TASKS = {
    **dict.fromkeys(
        (
            *("RetinaNetKerasHub", "RetinaNetKerasCV", "YOLOv3Detector", "YOLOV8KerasCV"),
            *("FasterRCNN", "MaskRCNN", "CascadeRCNN", "CascadeMaskRCNN"),
        ),
        "detection",
    ),
    **dict.fromkeys(("DeepLabV3", "DeepLabV3KerasHub", "DeepLabV3PlusKerasCV"), "segmentation"),
    **dict.fromkeys(
        ("CEDNetImageClassifier", "BiCSNetImageClassifier", "CSPNetImageClassifier"),
        "classification",
    ),
}
_FILES = ("detector.keras", "segmenter.keras", "classifier")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A saved model and what its user must know.

    Args:
        path: of the file or the preset directory.
        model: for inference, not compiled.
        preprocessing: how images become its input.
        class_names: name of each label; `class_0`, `class_1` and so on where none are saved.
        category_ids: of each label in the data that it was trained on; the labels themselves
            where none are saved.
        is_named: whether names were saved.
    """

    path: Path
    model: keras.Model
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    is_named: bool

    @property
    def task(self) -> str:
        """`"detection"`, `"segmentation"` or `"classification"`."""
        return self.preprocessing.task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a user says which model, and how its images are prepared."""
    parser.add_argument(
        "model",
        help="a run's directory, its preset, a saved .keras file, or a classifier's preset",
    )
    group = parser.add_argument_group(
        "the model's input", f"By default as the recipe wrote it into {FILE_NAME} beside the model."
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


def open_trained(options: argparse.Namespace) -> Trained:
    """Loads the model that `add_arguments` asked for.

    Raises:
        ValueError: if there is no such model, it is none of ours, or it is not known how its images
            are prepared.
    """
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, and is {options.batch_size}.")
    path = find_model(options.model)
    class_name = _class_of(path)
    if class_name not in _TASKS:
        raise ValueError(
            f"{path} holds a {class_name}, which is no detector, segmenter or classifier of "
            "keras_densepred: give one that a recipe of this package saved."
        )
    preprocessing = _preprocessing(path, _TASKS[class_name], options)
    model = load_model(path)
    boxes = getattr(model, "bounding_box_format", "xyxy")
    if boxes != "xyxy":
        raise ValueError(
            f"{path} gives its boxes as {boxes!r}: build it with bounding_box_format='xyxy'."
        )
    classes = _read_classes(path)
    count = model.num_classes
    if classes is None:
        names = tuple(f"class_{label}" for label in range(count))
        return Trained(path, model, preprocessing, names, tuple(range(count)), False)
    if len(classes) != count:
        raise ValueError(
            f"{path} has {count} classes and the classes.json beside it {len(classes)}: put that "
            "of the run there."
        )
    names = tuple(name for _, name in classes)
    return Trained(path, model, preprocessing, names, tuple(i for i, _ in classes), True)


def find_model(name: str) -> Path:
    """The saved model that a user means: the file itself, or what is in a run's directory.

    Raises:
        ValueError: if there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"There is no file or directory {path}: give a saved model or a run.")
    if (path / "task.json").is_file():
        return path
    for folder in (path / "preset", path):
        for file in _FILES:
            if (folder / file).exists():
                return folder / file
    raise ValueError(
        f"{path} holds no trained model, looked for {', '.join(_FILES)} in it and in preset/: give "
        "the --output of a recipe that has ended."
    )


def load_model(path: Path) -> keras.Model:
    """Loads a `.keras` file or a classifier's preset, for inference.

    Raises:
        ValueError: if it is neither, or damaged.
    """
    class_name = _class_of(path)
    try:
        if class_name in _TASKS:
            model_class = getattr(models, class_name)  # what needs KerasCV is imported by this
            if path.is_dir():
                return model_class.from_preset(str(path))
        with warnings.catch_warnings():
            # Its state is in the file and not wanted here.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            return keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} cannot be loaded ({_why(error)}): save it again with this version."
        ) from error


def _class_of(path: Path) -> str:
    """Name of the class of a saved model, without loading it."""
    try:
        if path.is_dir():
            content = (path / "task.json").read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                content = archive.read("config.json")
        return str(json.loads(content)["class_name"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no saved Keras model ({_why(error)}): give the .keras file that a "
            "recipe wrote."
        ) from error


def _why(error: BaseException) -> str:
    return sentence(error).rstrip(".")


def _beside(path: Path) -> tuple[Path, ...]:
    """Where the files about a model lie: in a preset's directory or beside it, or beside a file."""
    return (path, path.parent) if path.is_dir() else (path.parent,)


def saved_preprocessing(path: Path) -> Preprocessing | None:
    """What a recipe wrote beside a model, or None.

    Raises:
        ValueError: if it is there and not readable.
    """
    read = (Preprocessing.read(folder) for folder in _beside(path))
    return next((found for found in read if found is not None), None)


def _preprocessing(path: Path, task: str, options: argparse.Namespace) -> Preprocessing:
    saved = saved_preprocessing(path)
    given: dict[str, Any] = {
        name: value
        for name in ("image_size", "mean", "std")
        if (value := getattr(options, name)) is not None
    }
    if saved is None:
        missing = [f"--{name.replace('_', '-')}" for name in ("image_size", "mean", "std")]
        missing = [flag for flag in missing if flag[2:].replace("-", "_") not in given]
        if missing:
            raise ValueError(
                f"There is no {FILE_NAME} beside {path}, so how its images are prepared is not "
                f"known: give {', '.join(missing)}."
            )
        return Preprocessing(task, **given)
    if saved.task != task:
        raise ValueError(f"The {FILE_NAME} beside {path} is for {saved.task}: put the run's there.")
    if "image_size" in given:
        saved = saved.at_size(given.pop("image_size"))
    return dataclasses.replace(saved, **given)


def _read_classes(path: Path) -> list[tuple[int, str]] | None:
    """Category id and name of each label, from `training.write_classes`."""
    for folder in _beside(path):
        file = folder / "classes.json"
        if not file.is_file():
            continue
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            return [(int(entry["id"]), str(entry["name"])) for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no list of classes with ids and names ({_why(error)}): put that "
                "of the run there."
            ) from error
    return None
