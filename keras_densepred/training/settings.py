"""The settings that all recipes share, and the command line made from a recipe's settings.

A recipe's settings are one frozen dataclass that inherits `CommonSettings`. None means "not given":
the experiment decides (`experiments.complete`).
"""

import argparse
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from keras_densepred import command, files
from keras_densepred.command import DEBUG_FLAG, DEBUG_HELP
from keras_densepred.faults import SettingsError

__all__ = [
    "CommonSettings",
    "DetectionSettings",
    "PyramidDetectionSettings",
    "RandomScaleSettings",
    "SegmentationSettings",
    "SettingsError",
    "answer_flags",
    "check_numbers",
    "flag_of",
    "head_setting",
    "parse_flags",
    "parse_settings",
    "setting",
    "with_homes",
]

T = TypeVar("T")

GROUPS = ("data", "model", "optimizer", "evaluation and output")  # of `--help`


def setting(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    *,
    group: str = "model",
    flag: str | None = None,
) -> Any:
    """Makes a dataclass field with the text of its flag.

    Args:
        default: the value without the flag.
        help: one line for `--help`.
        choices: the allowed values; None for any.
        group: the heading below which `--help` lists the flag, one of `GROUPS`.
        flag: the flag, where it is not the field's name.

    Returns:
        What `dataclasses.field` returns.
    """
    metadata = {"help": help, "choices": choices, "group": group, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def _data(default: Any, help: str, choices: Sequence[Any] | None = None, **options: Any) -> Any:
    return setting(default, help, choices, group="data", **options)


def _optimizer(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    return setting(default, help, choices, group="optimizer")


def _output(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    return setting(default, help, choices, group="evaluation and output")


def head_setting(choices: Sequence[str]) -> Any:
    """The field `head` of a recipe that can put several heads on a backbone."""
    return setting(None, "what stands on the backbone", choices)


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """What every recipe can be told; None leaves it to the experiment."""

    data_dir: str | None = _data(None, "folder of the data; none: built-in shapes")
    tfds: str | None = _data(None, "TensorFlow Datasets name instead of a folder")
    experiment: str | None = _data(None, "published settings by name (default: by the data)")
    image_size: int | None = _data(None, "side of training images in pixels")
    batch_size: int | None = _data(None, "images of one update, over all devices")
    augment: str | None = _data(None, "your augmentation, as module:function; see the guides")
    imports: str | None = _data(
        None, "modules with your own backbones, separated by commas", flag="--import"
    )
    on_bad_image: str = _data("raise", "at an image that cannot be read", ("raise", "skip"))
    workers: int = _data(0, "processes that read images; 0: a background thread")

    preset: str | None = setting(
        None,
        "backbone: a built-in one or applications/NAME with random weights; "
        "applications/NAME_imagenet or KerasHub's NAME_imagenet with those of ImageNet",
    )
    weights: str | None = setting(None, "run, or preset directory, whose weights to start from")
    weights_of: str = setting(
        "all",
        "of a run: all, classes by name, or its backbone alone",
        ("all", "backbone"),
    )
    extend: str | None = setting(
        None,
        "finished run to train longer, into another --output, for --epochs more: as it was set, "
        "but for other flags that you give",
    )
    freeze_backbone: bool = setting(False, "train only what stands on the backbone")
    drop_path: float | None = setting(None, "drop path rate of the backbone")
    layer_scale: float | None = setting(None, "start of the backbone's layer scale")
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    rematerialize: bool = setting(False, "compute blocks again in the backward pass: less memory")

    epochs: int | None = _optimizer(None, "passes over the training images")
    steps: int | None = _optimizer(None, "steps in all, rounded up to epochs, instead of --epochs")
    minutes: float | None = _optimizer(
        None, "plan the whole run for this time, by the speed of its first steps"
    )
    steps_per_epoch: int | None = _optimizer(None, "steps of an epoch, if not one pass")
    optimizer: str | None = _optimizer(None, "update rule", ("adamw", "sgd"))
    learning_rate: float | None = _optimizer(None, "peak rate")
    schedule: str | None = _optimizer(
        None, "after the warm-up", ("steps", "cosine", "linear", "power4")
    )
    floor: float | None = _optimizer(None, "rate at the end of a cosine or power")
    warmup_steps: int | None = _optimizer(None, "steps of the warm-up")
    weight_decay: float | None = _optimizer(None, "of kernels and matrices")
    ema: float | None = _optimizer(None, "momentum of averaged weights; 0: none")
    seed: int = _optimizer(0, "of weights, order, augmentation and drop path")

    evaluate_every: int | None = _output(None, "epochs between evaluations")
    val_loss: bool | None = _output(
        None,
        "also measure the loss of 64 validation images then (default: of as many as take a "
        "twentieth of the training, from 200 steps on)",
    )
    patience: int | None = _output(
        None, "stop after so many evaluations without a better one, and keep the best epoch"
    )
    logger: str | None = _output(None, "also log to this", ("tensorboard", "wandb", "mlflow"))
    callback: str | None = _output(
        None, "your Keras callbacks, as module:name, separated by commas; made without arguments"
    )
    devices: int | None = _output(None, "GPUs or TPUs in all processes together; none: all")
    processes: int | None = _output(
        None, "processes, each with this command; none: the environment's"
    )
    process_id: int | None = _output(None, "number of this process, from 0")
    coordinator: str | None = _output(
        None, "host:port of process 0 (TensorFlow: of all, by commas); auto: JAX asks the cluster"
    )
    shard_weights: bool = _output(False, "JAX: a device keeps shares of weights and moments")
    checkpoint_minutes: float = _output(10.0, "between checkpoints within an epoch")
    output: str | None = _output(None, "directory for everything written (default: runs/RECIPE)")

    @property
    def step_size(self) -> int:
        """Images of one step."""
        assert self.batch_size is not None
        return self.batch_size


@dataclasses.dataclass(frozen=True)
class RandomScaleSettings(CommonSettings):
    """Of recipes that crop from randomly scaled images and have a head of some width."""

    scale_min: float | None = _data(None, "random scale from")
    scale_max: float | None = _data(None, "random scale to")
    width: int | None = setting(None, "channels of neck and head")


@dataclasses.dataclass(frozen=True)
class DetectionSettings(CommonSettings):
    """Of recipes that train detectors."""

    layout: str | None = _data(
        None, "of a folder that has several", ("coco", "roboflow", "yolo", "voc", "single")
    )
    val_share: float | None = _data(None, "to hold out, of data without a validation split")
    train_annotations: str | None = _data(None, "a COCO file instead of a folder")
    train_images: str | None = _data(None, "the folder of its images")
    val_annotations: str | None = _data(None, "the same of the validation split")
    val_images: str | None = _data(None, "the folder of its images")
    max_boxes: int | None = _data(None, "most objects of an image that train; none: all")

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns instance masks."""
        return False


@dataclasses.dataclass(frozen=True)
class PyramidDetectionSettings(RandomScaleSettings, DetectionSettings):
    """Of detectors on a pyramid, as MMDetection and Detectron2 train them."""

    copy_paste: bool | None = _data(None, "rectangle copy-paste")
    deformable: bool = setting(False, "a ResNet's 3x3 convolutions deformable from stride 8 on")
    layer_decay: float | None = _optimizer(None, "layer-wise decay of the backbone's rate; 1: none")


@dataclasses.dataclass(frozen=True)
class SegmentationSettings(RandomScaleSettings):
    """Of recipes that train segmenters."""

    photometric: bool | None = _data(None, "change brightness, contrast, saturation and hue")
    reduce_zero_label: bool = _data(
        False, "0 in the masks is no class, and 1 the first (ADE20K's tree: by itself)"
    )
    evaluate_train: bool = _output(False, "at the end, also mean IoU of the training split")
    sliding_window: bool | None = _output(
        None, "test at the images' own size (UperNet: the crop's shorter side), in windows"
    )
    multi_scale: bool = _output(False, "test at scales 0.5, 0.75, ... 1.75")
    flip: bool = _output(False, "test mirrored images too")


# Least values of numbers that are given; rates and the like must be larger than 0.
_LEAST = {
    "image_size": 32,  # a cell of P5
    **dict.fromkeys(("batch_size", "accumulate", "width", "max_boxes"), 1),
    **dict.fromkeys(("epochs", "steps", "steps_per_epoch", "evaluate_every", "patience"), 1),
    **dict.fromkeys(("devices", "processes"), 1),
    **dict.fromkeys(("queries", "points", "decoder_layers", "neck_depth"), 1),
    **dict.fromkeys(("encoder_layers", "seed", "gamma"), 0),
    **dict.fromkeys(
        ("workers", "process_id", "head_depth", "plain_epochs", "warmup_steps", "warmup_epochs"), 0
    ),
    **dict.fromkeys(("weight_decay", "floor", "mixup", "cutmix", "layer_scale"), 0),
}
_LARGEST_SEED = 2**32 - 1  # NumPy's
_POSITIVE = (
    "backbone_rate",
    *("learning_rate", "checkpoint_minutes", "minutes", "scale_min", "scale_max", "layer_decay"),
    *("anchor_scale", "focal_gamma", "min_area", "val_share"),
)
# From 0 up to 1.
_SHARES = (
    *("drop_path", "dropout", "smoothing", "erasing", "jitter", "mosaic_share"),
    *("ema", "min_area", "val_share"),
)
_BELOW_ONE = {
    "drop_path": "drops every branch",
    "dropout": "drops everything",
    "smoothing": "leaves nothing of the labels",
    "ema": "never leaves the initial weights",
    "val_share": "leaves no image to train on",
}


def check_numbers(settings: Any) -> None:
    """Refuses numbers that no run can have, before anything is read.

    Raises:
        SettingsError: naming the flag.
    """
    for name, value in vars(settings).items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        number = value if isinstance(value, int) else f"{value:g}"
        flag = f"--{name.replace('_', '-')} {number}"
        if not math.isfinite(value):
            raise SettingsError(f"{flag} is no finite number.")
        if name in _LEAST and value < _LEAST[name]:
            raise SettingsError(f"{flag} is too small: give {_LEAST[name]} or more.")
        if name == "seed" and value > _LARGEST_SEED:
            raise SettingsError(f"{flag} is too large: give {_LARGEST_SEED} or less.")
        if name in _POSITIVE and value <= 0:
            raise SettingsError(f"{flag} must be larger than 0.")
        if name in _SHARES and not 0 <= value <= 1:
            raise SettingsError(f"{flag} must lie from 0 to 1.")
        if name in _BELOW_ONE and value == 1:
            raise SettingsError(f"{flag} {_BELOW_ONE[name]}: give less than 1.")
    low, high = getattr(settings, "scale_min", None), getattr(settings, "scale_max", None)
    if low is not None and high is not None and low > high:
        raise SettingsError(f"--scale-min {low:g} is larger than --scale-max {high:g}: swap them.")


def parse_settings(
    cls: type[T],
    argv: Sequence[str] | None,
    description: str,
    experiments: Mapping[str, Any] | None = None,
) -> T:
    """Reads settings from command-line flags, see `parse_flags`.

    Returns:
        An instance of `cls`, with the defaults of the fields that no flag gives.
    """
    return cls(**parse_flags(cls, argv, description, experiments))


def parse_flags(
    cls: type,
    argv: Sequence[str] | None,
    description: str,
    experiments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads command-line flags, one for each field of the dataclass `cls`.

    A field `image_size: int | None` becomes `--image-size N`, a `bool` becomes `--name` and
    `--no-name`.

    Args:
        cls: a dataclass whose fields were made with `setting`; types are str, int, float or bool,
            or one of them or None.
        argv: the arguments; None for those of the process.
        description: the recipe's docstring, shown by `--help`.
        experiments: name to `Experiment`: the choices of `--experiment`, described by `--help`.

    Returns:
        By the names of the fields, the values of those that a flag gives.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [flags]",
        description=description,
        epilog=_describe(experiments) if experiments else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = _without_none(hints[field.name])
        default = "" if field.default is None else f" (default: {field.default})"
        options: dict[str, Any] = {
            "dest": field.name,
            "help": (field.metadata["help"] + default).replace("%", "%%"),
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            choices = field.metadata["choices"]
            if field.name == "experiment" and experiments:
                choices = tuple(experiments)
            options |= {"type": kind, "choices": choices}
            options["metavar"] = None if choices else kind.__name__.upper()
        flag = field.metadata["flag"] or flag_of(field.name)
        groups[field.metadata["group"]].add_argument(flag, **options)
    parser.add_argument(DEBUG_FLAG, action="store_true", help=DEBUG_HELP)
    values = vars(parser.parse_args(argv))
    values.pop("debug", None)  # for `command.run`
    return values


def answer_flags(cls: type, description: str, experiments: Mapping[str, Any] | None = None) -> None:
    """Ends the process after `--help`, mistyped flags, numbers that no run can have, or no backend.

    A recipe calls it before it imports Keras, which takes seconds; `Recipe.main` reads the flags.

    Args:
        cls: as `parse_settings` takes it.
        description: likewise.
        experiments: likewise.
    """

    def answer(argv: Sequence[str] | None) -> None:
        check_numbers(parse_settings(cls, argv, description, experiments))

    if code := command.run(answer):
        sys.exit(code)


def flag_of(name: str) -> str:
    """The flag of a setting."""
    field = CommonSettings.__dataclass_fields__.get(name)
    own = field.metadata["flag"] if field else None
    return own or f"--{name.replace('_', '-')}"


def with_homes(settings: T) -> T:
    """The settings with `~` replaced in paths."""
    pairs = [f"{s}_{what}" for s in ("train", "val") for what in ("annotations", "images")]
    names = ["data_dir", "weights", "extend", "output", *pairs]
    paths = {
        name: str(files.expanded(path))
        for name in names
        if (path := getattr(settings, name, None)) is not None
    }
    return dataclasses.replace(settings, **paths)  # type: ignore[type-var]


def _describe(experiments: Mapping[str, Any]) -> str:
    lines = ["experiments, and what they set where no flag does:"]
    for name, experiment in experiments.items():
        lines.extend(("", *experiment.describe(name)))
    return "\n".join(lines).replace("%", "%%")


def _without_none(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint
