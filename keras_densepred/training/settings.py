"""A recipe's settings: one frozen dataclass, its command-line flags, and the claim on an output."""

import argparse
import dataclasses
import json
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence, Sized
from typing import Any, TypeVar

import keras

from keras_densepred.faults import SettingsError
from keras_densepred.files import write_atomically

T = TypeVar("T")

# What changes where a run continues or how fast it goes, but not its result.
_NOT_OF_THE_RESULT = (
    *("workers", "checkpoint_minutes", "output", "rematerialize"),
    *("devices", "processes", "process_id", "coordinator"),
)


def setting(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    """Makes a dataclass field with the text of its flag.

    Args:
        default: the value without the flag.
        help: one line for `--help`.
        choices: the allowed values; None for any.

    Returns:
        What `dataclasses.field` returns.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def parse_settings(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """Reads settings from command-line flags, one for each field of the dataclass `cls`.

    A field `image_size: int | None` becomes `--image-size N`, a `bool` becomes `--name` and
    `--no-name`.

    Args:
        cls: a dataclass whose fields were made with `setting`; types are str, int, float or bool,
            or one of them or None.
        argv: the arguments; None for those of the process.
        description: the recipe's docstring, shown by `--help`.

    Returns:
        An instance of `cls`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = _without_none(hints[field.name])
        default = "" if field.default is None else f" (default: {field.default})"
        flag = f"--{field.name.replace('_', '-')}"
        text = (field.metadata["help"] + default).replace("%", "%%")
        if kind is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=field.default, help=text
            )
        else:
            choices = field.metadata["choices"]
            parser.add_argument(
                flag,
                type=kind,
                default=field.default,
                choices=choices,
                metavar=None if choices else kind.__name__.upper(),
                help=text,
            )
    return cls(**vars(parser.parse_args(argv)))


def decisive_settings(settings: Any, train: Sized, but: Sequence[str] = ()) -> dict[str, Any]:
    """Gives what decides a run's result: with other values it is another run.

    Args:
        settings: a dataclass made by `parse_settings`, complete.
        train: the training images.
        but: more settings that leave the weights as they are.

    Returns:
        The settings by name without those of workers, devices and output, and the backend and the
        number of training images.
    """
    decisive = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _NOT_OF_THE_RESULT and name not in but
    }
    return decisive | {"backend": keras.config.backend(), "train_images": len(train)}


def _without_none(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def claim_output(output: str | pathlib.Path, settings: Mapping[str, Any]) -> pathlib.Path:
    """Takes a directory for a run: a new or empty one, or one of a run with the same settings.

    Writes `settings.json` there, by which the next start recognises the run.

    Args:
        output: the directory.
        settings: JSON-able; what decides the run's result.

    Returns:
        The directory.

    Raises:
        SettingsError: if another run or other files are there.
    """
    output = pathlib.Path(output)
    path = output / "settings.json"
    ours = json.loads(json.dumps(dict(settings)))
    if path.is_file():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SettingsError(
                f"{path} is not readable, so the run in {output} cannot be recognised: give "
                "another --output."
            ) from error
        different = [
            f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            raise SettingsError(
                f"{output} holds a run with other settings ({'; '.join(different)}): give another "
                "--output, or the command of that run to continue it."
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(
            f"{output} exists and is not the output of a run (it has no settings.json): give "
            "another --output."
        )
    write_atomically(path, (json.dumps(ours, indent=2) + "\n").encode())
    return output
