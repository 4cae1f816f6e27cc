"""How images become a trained model's input: written beside the model, read where it is used."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from keras_densepred.faults import SettingsError
from keras_densepred.files import write_atomically

FILE_NAME = "preprocessing.json"
TASKS = ("detection", "segmentation", "classification")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What evaluation does to an image, and so whoever uses the model has to do.

    Either `image_size` is given, or both of `short_side` and `long_side`.

    Args:
        task: one of `TASKS`.
        mean: of the three channels, RGB in 0..255, that is subtracted.
        std: of the three channels, that the difference is divided by.
        image_size: side in pixels of the square that images are fitted into, of classifiers that
            of the crop.
        short_side: for detection: as in `data.eval_batches`, in pixels.
        long_side: likewise.
        stretch: for detection: whether images fill the square and lose their aspect ratio.
        crop_ratio: for classification: as in `data.evaluation_crop`.

    Raises:
        SettingsError: if a value is none of these.
    """

    task: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None = None
    short_side: int | None = None
    long_side: int | None = None
    stretch: bool = False
    crop_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise SettingsError(f"`task` must be one of {', '.join(TASKS)}, and is {self.task!r}.")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if not isinstance(numbers, (tuple, list)) or len(numbers) != 3:
                raise SettingsError(f"`{name}` must be three numbers, and is {numbers!r}.")
            if not all(_is_number(value) for value in numbers):
                raise SettingsError(f"`{name}` must be three numbers, and is {numbers!r}.")
            object.__setattr__(self, name, tuple(float(value) for value in numbers))
        if min(self.std) <= 0:
            raise SettingsError(f"`std` must be positive, and is {self.std}.")
        sides = (self.image_size, self.short_side, self.long_side)
        given = tuple(side is not None for side in sides)
        if given not in ((True, False, False), (False, True, True)):
            raise SettingsError(
                "Give either `image_size`, or both `short_side` and `long_side`: they are "
                f"{self.image_size}, {self.short_side} and {self.long_side}."
            )
        if not all(isinstance(side, int) and side > 0 for side in sides if side is not None):
            raise SettingsError(f"Sides must be positive whole numbers of pixels, and are {sides}.")

    def batch_options(self) -> dict[str, Any]:
        """The arguments by which batches are made so.

        Returns:
            Keywords of `data.eval_batches`, `data.eval_mask_batches` or `data.eval_class_batches`,
            whichever is for the task.
        """
        options: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if self.task == "detection" and self.image_size is None:
            return {**options, "short_side": self.short_side, "long_side": self.long_side}
        options["image_size"] = self.image_size
        if self.task == "detection":
            options["stretch"] = self.stretch
        if self.task == "classification":
            options["crop_ratio"] = self.crop_ratio
        return options

    def at_size(self, image_size: int) -> "Preprocessing":
        """The same for a square of another side, in pixels."""
        return dataclasses.replace(self, image_size=image_size, short_side=None, long_side=None)

    def write(self, directory: str | os.PathLike[str]) -> pathlib.Path:
        """Writes `preprocessing.json` into a directory; returns its path."""
        path = pathlib.Path(directory) / FILE_NAME
        write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())
        return path

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "Preprocessing | None":
        """Reads what `write` wrote into a directory; None if nothing is there.

        Raises:
            SettingsError: if the file is not such a file.
        """
        path = pathlib.Path(directory) / FILE_NAME
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise SettingsError("it is no JSON object")
            fields = dataclasses.fields(cls)
            needed = {field.name for field in fields if field.default is dataclasses.MISSING}
            if wrong := (needed - values.keys()) | (values.keys() - {f.name for f in fields}):
                raise SettingsError(f"missing or unknown: {', '.join(sorted(wrong))}")
            return cls(**values)
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError, SettingsError) as error:
            raise SettingsError(
                f"{path} does not say how images are prepared ({str(error).rstrip('.')}): correct "
                "it, or copy that of the run again."
            ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
