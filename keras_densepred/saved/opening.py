"""Opens what a recipe saved: the model, how its images are prepared, what its labels mean."""

import dataclasses
import functools
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras

from keras_densepred import models
from keras_densepred._optional import require
from keras_densepred.faults import sentence
from keras_densepred.files import expanded
from keras_densepred.models.inference.optimized import fastest_predictor
from keras_densepred.saved import prediction, tiles, videos
from keras_densepred.saved.classes import Classes, read_classes
from keras_densepred.saved.other_classes import load_by_layer_names
from keras_densepred.saved.preprocessing import FILE_NAME, TASKS, Preprocessing

T = TypeVar("T")

_PACKAGE = "keras_densepred"
_HUB = "hf://"
_MODEL_FILES = ("detector.keras", "segmenter.keras", "classifier")


@dataclasses.dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained model and what its user must know.

    Attributes:
        path: of the file or the preset directory.
        model: for inference, not compiled.
        preprocessing: how images become its input.
        class_names: name of each label; `class_0`, `class_1` and so on where none are saved.
        category_ids: of each label in the data that it was trained on; the labels themselves
            where none are saved.
        is_named: whether names were saved.
        class_colours: red, green, blue of each label, 0 to 255, where its data set had colours.
    """

    path: Path
    model: keras.Model
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    is_named: bool
    class_colours: tuple[tuple[int, int, int], ...] | None = None

    @property
    def task(self) -> str:
        """`"detection"`, `"segmentation"` or `"classification"`."""
        return self.preprocessing.task

    @functools.cached_property
    def predictor(self) -> keras.Model:
        """Predicts batches as `model` does, in less time where there is a faster form of it.

        Made at the first use; later changes of the model's weights are not seen.
        """
        return fastest_predictor(self.model)

    def predict(
        self,
        images: Any,
        *,
        score: float = 0.3,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Any:
        """What the model finds in photographs, in their own pixels.

        Args:
            images: a file's path, an `(H, W, 3)` uint8 array in RGB, a Pillow image; or a list.
            score: least confidence of an object.
            tile: side in pixels of the pieces in which a larger image is looked at, so that small
                objects are not made smaller; of detectors without masks.
            overlap: share of a piece that the next one sees again.

        Returns:
            `Objects`, a `LabelMap` or `ClassScores`, by `task`; for a list a list of them.

        Raises:
            ImageError: if a file is no image.
            ValueError: if an argument is out of range.
        """
        several = isinstance(images, (list, tuple))
        pictures = [prediction.as_pixels(image) for image in (images if several else [images])]
        if tile is not None:
            found = [tiles.in_tiles(self, image, score, tile, overlap) for image in pictures]
        else:
            found = prediction.predict(self, pictures, score)
        return found if several else found[0]

    def predict_video(
        self,
        video: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        score: float = 0.3,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> list[dict[str, Any]]:
        """Draws what the model finds in each frame of a video, as `predict` finds it.

        Requires OpenCV, extra `data`. Frames are in memory a batch at a time; sound is left out.

        Args:
            video: a file that OpenCV reads.
            output: the video to write, such as `"found.mp4"`, of the same size and frame rate; a
                file of that name is replaced.
            score: as in `predict`, like `tile` and `overlap`.

        Returns:
            A dictionary for each object, with `frame` from 0, `time` in seconds, `name`, `score`
            and `box` (x1, y1, x2, y2 in pixels); of segmenters one for each frame, with the
            `shares` of the classes; of classifiers with `name` and `probability`.

        Raises:
            VideoError: if the video cannot be read.
            OutputError: if `output` cannot be written.
            ValueError: if an argument is out of range.
        """
        return videos.predict_video(self, video, output, score=score, tile=tile, overlap=overlap)


def open_model(
    name: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> SavedModel:
    """Loads a model with everything that was saved beside it.

    Args:
        name: a run's directory, its preset, a saved `.keras` file, a classifier's preset, or
            `hf://user/name`.
        image_size: side of the input in pixels, in place of the saved one.
        mean: of the three channels, RGB in 0..255, likewise.
        std: of the three channels, likewise.

    Raises:
        ValueError: if there is no such model, it has no task, or it is not known how its images
            are prepared.
    """
    path = find_model(name)
    task = task_of(path)
    given = {"image_size": image_size, "mean": mean, "std": std}
    preprocessing = _preprocessing(path, task, given)
    model = load_model(path)
    if preprocessing.image_size is not None:
        require_size(model, preprocessing.image_size)
    boxes = getattr(model, "bounding_box_format", "xyxy")
    if boxes != "xyxy":
        raise ValueError(
            f"{path} gives its boxes as {boxes!r}: build it with bounding_box_format='xyxy'."
        )
    count = model.num_classes
    saved = _beside(path, read_classes)
    if saved is not None and len(saved.class_names) != count:
        raise ValueError(
            f"{path} has {count} classes and the classes.json beside it {len(saved.class_names)}: "
            "put that of the run there."
        )
    labels = tuple(range(count))
    classes = saved or Classes(labels, tuple(f"class_{label}" for label in labels))
    return SavedModel(
        path,
        model,
        preprocessing,
        classes.class_names,
        classes.category_ids,
        saved is not None,
        classes.class_colours,
    )


def require_size(model: keras.Model, side: int) -> None:
    """Refuses images that a model cannot take.

    Args:
        model: a detector, segmenter, classifier or backbone.
        side: of the images in pixels.

    Raises:
        ValueError: if it is not positive, or no multiple of the model's `size_divisor`.
    """
    divisor = getattr(model, "size_divisor", 1)
    if side < 1 or side % divisor:
        near = max(divisor, round(side / divisor) * divisor)
        raise ValueError(
            f"--image-size {side} does not fit {type(model).__name__}, whose images have sides "
            f"that are multiples of {divisor}: {near} is the nearest."
        )


def find_model(name: str | os.PathLike[str]) -> Path:
    """The saved model that a user means: the file itself, or the one in a run's directory.

    `hf://user/name` is fetched from the Hugging Face Hub, where `push` brought it.

    Raises:
        ValueError: if there is none.
        ImportError: for such a handle without huggingface_hub.
    """
    if str(name).startswith(_HUB):
        hub = require("huggingface_hub", "hub")
        name = hub.snapshot_download(str(name).removeprefix(_HUB))
    path = expanded(name)
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"There is no file or directory {path}: give a saved model or a run.")
    if (path / "task.json").is_file():
        return path
    for folder in (path / "preset", path):
        for file in _MODEL_FILES:
            if (folder / file).exists():
                return folder / file
    raise ValueError(
        f"{path} holds no trained model, looked for {', '.join(_MODEL_FILES)} in it and in "
        "preset/: give the --output of a recipe that has ended."
    )


def is_backbone(name: str | os.PathLike[str]) -> bool:
    """Whether a directory is the preset of a backbone alone, without a head."""
    path = expanded(name)
    return (path / "config.json").is_file() and not (path / "task.json").exists()


def load_model(path: Path, compile: bool = False) -> keras.Model:
    """Loads a `.keras` file or a classifier's preset.

    Args:
        path: the file or the preset's directory.
        compile: whether a file's model gets the losses that it was saved with. What its optimizer
            had learned is not promised.

    Raises:
        ValueError: if it is neither, or damaged.
    """
    model_class = _class_of(path)  # which imports KerasCV for a model that needs it
    try:
        with warnings.catch_warnings():
            # Its state is in the file and not wanted here.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            if path.is_dir() and model_class is not None:
                return model_class.from_preset(str(path))
            return _load_file(path, compile)
    except (OSError, zipfile.BadZipFile) as error:
        if getattr(error, "errno", None) is not None:  # of the machine; h5py's have no number
            raise
        raise ValueError(f"{path} is damaged ({_why(error)}): copy it again.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be loaded ({_why(error)}): save it again with this version."
        ) from error


def _load_file(path: Path, compile: bool) -> keras.Model:
    # Of layers that it does not find, which are found below or named by the error.
    warnings.filterwarnings("ignore", message="Skipping nested container")
    try:
        return keras.saving.load_model(path, compile=compile)
    except ValueError as error:
        if "objects could not be loaded" not in str(error):
            raise
    return load_by_layer_names(path, compile)


def task_of(path: Path) -> str:
    """What a saved model is for, as its class says; the model is not loaded.

    Returns:
        `"detection"`, `"segmentation"` or `"classification"`.

    Raises:
        ValueError: if its class is unknown or has no task.
    """
    task = getattr(_class_of(path), "task", None)
    if task not in TASKS:
        raise ValueError(
            f"{path} holds a {_saved_class(path)[1]}, which is no detector, segmenter or "
            "classifier: give one that a recipe of this package saved, or import the module that "
            "registers its class (--import)."
        )
    return task


def saved_preprocessing(path: Path) -> Preprocessing | None:
    """What a recipe wrote beside a model, or None.

    Raises:
        ValueError: if it is there and not readable.
    """
    return _beside(path, Preprocessing.read)


def _class_of(path: Path) -> Any:
    """The class of a saved model; None if no imported module registered it."""
    registered_name, class_name = _saved_class(path)
    registered = keras.saving.get_registered_object(registered_name)
    if registered is None and registered_name == f"{_PACKAGE}>{class_name}":
        return getattr(models, class_name, None)
    return registered


def _saved_class(path: Path) -> tuple[str, str]:
    """Registered name and name of the class of a saved model, without loading it."""
    try:
        if path.is_dir():
            content = (path / "task.json").read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                content = archive.read("config.json")
        config = json.loads(content)
        return str(config["registered_name"]), str(config["class_name"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        why = f"missing: {error}" if isinstance(error, KeyError) else _why(error)
        raise ValueError(
            f"{path} is no saved Keras model, or a damaged one ({why}): give the .keras file that "
            "a recipe wrote."
        ) from error


def _preprocessing(path: Path, task: str, given: dict[str, Any]) -> Preprocessing:
    """The saved preprocessing with what the user gives instead."""
    changes = {name: value for name, value in given.items() if value is not None}
    saved = saved_preprocessing(path)
    if saved is None:
        missing = [f"--{name.replace('_', '-')}" for name in given if name not in changes]
        if missing:
            raise ValueError(
                f"There is no {FILE_NAME} beside {path}, so how its images are prepared is not "
                f"known: give {', '.join(missing)}."
            )
        return Preprocessing(task, **changes)
    if saved.task != task:
        raise ValueError(f"The {FILE_NAME} beside {path} is for {saved.task}: put the run's there.")
    if "image_size" in changes:
        saved = saved.at_size(changes.pop("image_size"))
    return dataclasses.replace(saved, **changes)


def _beside(path: Path, read: Callable[[Path], T | None]) -> T | None:
    """What `read` finds in a preset's directory or beside it, or beside a file."""
    folders = (path, path.parent) if path.is_dir() else (path.parent,)
    return next((found for folder in folders if (found := read(folder)) is not None), None)


def _why(error: BaseException) -> str:
    return sentence(error).rstrip(".")
