"""Published training settings by name, and how they fill in what a user's flags leave open."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sized
from typing import Any, TypeVar

from keras_densepred import backbones, data
from keras_densepred.faults import SettingsError
from keras_densepred.training.length import (
    EVALUATIONS,
    objects_of,
    often_enough,
    steps_of_short_epochs,
)
from keras_densepred.training.settings import CommonSettings

S = TypeVar("S", bound=CommonSettings)

# Settings that go to the backbone's constructor, by the name of its argument.
BACKBONE_OPTIONS = {
    "drop_path": "drop_path_rate",
    "layer_scale": "layer_scale_init",
    "activation": "activation",
    "deformable": "deformable_stages",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings that belong together, such as those of a paper's experiment.

    Args:
        source: where they are published, or what they are for.
        settings: name of a setting to its value, or to a function that takes the `Plan`, for what
            depends on the data, the network or other settings.
        families: names of the classes of backbones whose default this experiment is on large data.
        on_shapes: settings that differ on the built-in shapes.
        drops: after which shares of the run `--schedule steps` takes a tenth of the rate.
    """

    source: str
    settings: Mapping[str, Any]
    families: tuple[str, ...] = ()
    on_shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drops: tuple[float, ...] = ()

    def describe(self, name: str) -> list[str]:
        """Lines for `--help`."""
        values = [
            f"{setting.replace('_', '-')} {value}"
            for setting, value in self.settings.items()
            if not callable(value) or dataclasses.is_dataclass(value)
        ]
        return [
            f"  {name}: {self.source}",
            *textwrap.wrap(
                ", ".join(values),
                94,
                initial_indent="    ",
                subsequent_indent="    ",
                break_on_hyphens=False,
            ),
        ]


@dataclasses.dataclass(frozen=True)
class ByArchitecture:
    """A setting that a paper gives network by network.

    Args:
        values: by the name of the built-in preset that has the network's architecture.
        otherwise: of any other network.
    """

    values: Mapping[str, Any]
    otherwise: Any

    def __call__(self, plan: "Plan") -> Any:
        return self.values.get(plan.network.architecture, self.otherwise)

    def __str__(self) -> str:
        return "by network"


@dataclasses.dataclass(frozen=True)
class PerBatch:
    """A learning rate that follows the batch linearly: `rate` for a batch of `batch_size`."""

    rate: float
    batch_size: int

    def __call__(self, plan: "Plan") -> float:
        return self.rate * (plan.batch_size / self.batch_size)

    def __str__(self) -> str:
        return f"{self.rate:g} for a batch of {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class Epochs:
    """A number of steps given in epochs."""

    count: float

    def __call__(self, plan: "Plan") -> int:
        return round(self.count * plan.steps_per_pass)

    def __str__(self) -> str:
        return f"{self.count:g} epochs"


# What an experiment says if it does not say otherwise.
_DEFAULTS: dict[str, Any] = {
    "preset": "cednet_next_pico",
    "drop_path": 0.0,
    # Random weights learn slowly through layer scales of 1e-6, which are for long schedules.
    "layer_scale": lambda plan: None if plan.pretrained else 0.2,
    "steps_per_epoch": lambda plan: max(1, plan.images // plan.batch_size),
    "epochs": lambda plan: -(-plan.steps // plan.steps_per_epoch),
    "schedule": "cosine",
    "floor": lambda plan: 0.01 * plan.learning_rate,
    "warmup_steps": lambda plan: min(100, plan.total_steps // 10),
    "layer_decay": 1.0,
    "ema": 0.0,
    "evaluate_every": often_enough,
}


class Plan:
    """The settings of a run while they are decided: each is an attribute, decided when asked for.

    Attributes:
        images: number of training images.
        evaluated: number of validation images.
        classes: number of classes.
        objects: in all training images; 0 where they were not counted.
        most_objects: in one of the training images.
        network: what `backbones.find_backbone` says of the backbone.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        rules: Mapping[str, Any],
        images: int,
        evaluated: int = 0,
        classes: int = 1,
        objects: int = 0,
        count_most: Callable[[], int] = lambda: 1,
    ):
        self._decided = dict(given)
        self._rules = rules
        self.images = images
        self.evaluated = evaluated
        self.classes = classes
        self.objects = objects
        self._count_most = count_most
        self._network: Any = None
        self._steps_per_pass: int | None = None

    @property
    def network(self) -> Any:
        if self._network is None:
            self._network = backbones.find_backbone(self.weights or self.preset)
        return self._network

    @property
    def pretrained(self) -> bool:
        """Whether the backbone comes with trained weights."""
        return self.network.has_weights

    @property
    def most_objects(self) -> int:
        return self._count_most()

    @property
    def steps_per_pass(self) -> int:
        """Steps of an epoch as flags or the data have it, before `shorten_epochs`."""
        return int(self.steps_per_epoch if self._steps_per_pass is None else self._steps_per_pass)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def shrink_batch(self, unit: int) -> int | None:
        """Makes a batch no larger than the training split, in `unit`s; the size it had, if so."""
        fits, wanted = self.images // unit * unit, self.batch_size
        if not 0 < fits < (wanted or 0):
            return None
        self._decided["batch_size"] = fits
        return int(wanted)

    def shorten_epochs(self, steps: int) -> None:
        """Makes epochs so short that a run of `steps` is evaluated often enough."""
        self._steps_per_pass = self.steps_per_epoch
        self._decided["steps_per_epoch"] = of_epoch = steps_of_short_epochs(self, steps)
        self._decided["epochs"] = -(-steps // of_epoch)

    def __getattr__(self, name: str) -> Any:
        if name not in self._decided:
            rule = self._rules.get(name)
            self._decided[name] = rule(self) if callable(rule) else rule
        return self._decided[name]


def complete(
    settings: S,
    experiments: Mapping[str, Experiment],
    train: Any,
    *,
    large: int,
    defaults: Mapping[str, Any] | None = None,
    val: Sized = (),
    devices: int = 1,
    say: Callable[[str], None] | None = None,
) -> S:
    """Fills in what the flags left open from the experiment.

    Args:
        settings: as parsed.
        experiments: by name; the last, `"small"`, is for few images.
        train: the training split.
        large: training images from which on a paper's experiment is the default, that of the
            backbone's family or else the first.
        defaults: settings that hold for all experiments which do not say otherwise.
        val: the validation split.
        devices: that a step is divided over.
        say: takes a line on what is not as the experiment has it.

    Returns:
        The settings with every value decided. A batch that no flag gives has at most as many images
        as the training split.

    Raises:
        SettingsError: if flags contradict each other, or ask a backbone for what it does not have.
        ValueError: if there is no such backbone.
    """
    given = {name: value for name, value in vars(settings).items() if value is not None}
    if "minutes" in given and "steps" in given:
        raise SettingsError("Give --minutes or --steps, not both.")
    if "steps" in given and "epochs" in given:
        raise SettingsError("Give --steps or --epochs, not both.")
    source = settings.weights or settings.preset
    network = backbones.find_backbone(source) if source else None
    shapes = (data.ShapesDataset, data.ShapesSegmentation, data.ShapesClassification)
    is_shapes = isinstance(train, shapes)
    if settings.experiment is not None:
        name = settings.experiment
    elif len(train) < large or is_shapes:
        name = "small"
    else:
        name = _published(experiments, network)
    rules = _rules(experiments[name], defaults, is_shapes)
    if "steps" in given:
        rules["epochs"] = _DEFAULTS["epochs"]
    if settings.weights and network is not None:
        _check_preset(settings, network)
        rules["preset"] = network.architecture  # a fact of the weights
    few = name == "small"
    plan = Plan(
        {**given, "experiment": name},
        rules,
        len(train),
        len(val),
        len(train.class_names),
        objects_of(train, is_shapes) if few else 0,
        lambda: data.most_boxes(train),
    )
    _check_options(given, plan.network)
    if "batch_size" not in given:
        wanted = plan.shrink_batch(devices * getattr(settings, "accumulate", 1))
        if wanted and say:
            say(
                f"There are {len(train)} training images: a batch has {plan.batch_size} of them, "
                f"not {wanted} (--batch-size)."
            )
    if plan.network.family.layer_depth is backbones.PyramidBackbone.layer_depth:
        rules["layer_decay"] = 1.0  # its layers have no depths
    if not given.keys() & {"epochs", "steps_per_epoch"} and plan.epochs < EVALUATIONS:
        plan.shorten_epochs(given.get("steps", plan.total_steps))
    names = [field.name for field in dataclasses.fields(settings)]
    decided: dict[str, Any] = {name: getattr(plan, name) for name in names}
    return type(settings)(**{**decided, "steps": plan.total_steps})


def decided_by(
    experiments: Mapping[str, Experiment], defaults: Mapping[str, Any] | None = None
) -> set[str]:
    """Names of the settings that `complete` may fill in.

    Args:
        experiments: as `complete` takes them.
        defaults: likewise.
    """
    of_experiments = (
        name for found in experiments.values() for name in (*found.settings, *found.on_shapes)
    )
    return {"experiment", *_DEFAULTS, *(defaults or {}), *of_experiments}


def follows(
    recorded: Mapping[str, Any],
    name: str,
    experiments: Mapping[str, Experiment],
    defaults: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a setting of a run is what its other settings make it, so that no flag was needed.

    Args:
        recorded: what `identity.decisive_settings` gave for the run.
        name: of the setting; one that does not depend on the network.
        experiments: as `complete` takes them.
        defaults: likewise.
    """
    is_shapes = not any(recorded.get(key) for key in ("data_dir", "tfds", "train_annotations"))
    others = {key: value for key, value in recorded.items() if key != name}
    rules = _rules(experiments[recorded["experiment"]], defaults, is_shapes)
    return getattr(Plan(others, rules, recorded["train_images"]), name) == recorded[name]


def _rules(
    experiment: Experiment, defaults: Mapping[str, Any] | None, is_shapes: bool
) -> dict[str, Any]:
    """How the settings of an experiment are decided."""
    on_shapes = experiment.on_shapes if is_shapes else {}
    return {**_DEFAULTS, **(defaults or {}), **experiment.settings, **on_shapes}


def _published(experiments: Mapping[str, Experiment], network: Any) -> str:
    """The experiment of a backbone's family, or else the first."""
    classes = {base.__name__ for base in network.family.__mro__} if network is not None else set()
    for name, experiment in experiments.items():
        if classes & set(experiment.families):
            return name
    return next(iter(experiments))


def _check_preset(settings: CommonSettings, network: Any) -> None:
    """Refuses weights of another network than the preset that is asked for."""
    if settings.preset is None:
        return
    asked = backbones.find_backbone(settings.preset)
    names = asked.architecture, network.architecture
    if asked.family is not network.family or (all(names) and names[0] != names[1]):
        raise SettingsError(
            f"{settings.weights} holds the weights of {names[1] or network.family.__name__}, and "
            f"--preset asks for {names[0] or settings.preset}: leave --preset out."
        )


def _check_options(given: Mapping[str, Any], network: Any) -> None:
    """Refuses flags for what the backbone's family does not have."""
    for name, option in BACKBONE_OPTIONS.items():
        if given.get(name) and not network.accepts(option):
            flag = name.replace("_", "-")
            raise SettingsError(
                f"{network.family.__name__} has no {option}: leave --{flag} out, or use another "
                "backbone."
            )
