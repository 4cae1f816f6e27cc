"""What a recipe refuses of its flags before it works: without effect, or numbers that cannot be."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from keras_densepred import backbones
from keras_densepred.faults import SettingsError
from keras_densepred.training.checks import require_size
from keras_densepred.training.settings import flag_of


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting needs of the others.

    Args:
        fault: takes the settings, with those of `asks` decided; the end of a sentence that begins
            with the flag, or None.
        asks: names of the settings that it looks at.
    """

    fault: Callable[[Any], str | None]
    asks: tuple[str, ...] = ()


def where(text: str, holds: Callable[[Any], bool], asks: tuple[str, ...] = ()) -> Rule:
    """The setting has an effect where something holds; elsewhere a flag is told `text`."""
    return Rule(lambda settings: None if holds(settings) else f"{text}: leave it out", asks)


def only(name: str, *values: Any) -> Rule:
    """Another setting has one of these values; without any, it is given and not 0."""
    flag = flag_of(name)
    named = f"{flag} {' or '.join(map(str, values))} alone"

    def holds(settings: Any) -> bool:
        value = getattr(settings, name)
        return value in values if values else bool(value)

    return where(f"is for {named}" if values else f"is for runs with {flag}", holds, (name,))


def not_with(name: str, *values: Any) -> Rule:
    """Another setting has none of these values."""
    text = f"has no effect beside {flag_of(name)} {' or '.join(map(str, values))}"
    return where(text, lambda settings: getattr(settings, name) not in values, (name,))


def only_on(text: str, test: Callable[[backbones.BackboneSource], bool]) -> Rule:
    """The backbone passes a test; else a flag is told `text`."""
    return where(text, lambda settings: test(source_of(settings)), ("preset",))


def one_of(name: str, other: str, choices: Mapping[str, Sequence[str]]) -> Rule:
    """The setting `name` has one of the choices that another setting leaves."""

    def fault(settings: Any) -> str | None:
        value, key = getattr(settings, name), getattr(settings, other)
        if value in choices[key]:
            return None
        return f"{value}: give {' or '.join(choices[key])} for {flag_of(other)} {key}"

    return Rule(fault, (other,))


def has_neck(source: backbones.BackboneSource) -> bool:
    """Whether a detector puts a neck on the backbone, which is no pyramid by itself."""
    pyramids = (backbones.BiCSNetBackbone, backbones.BiCSNetLiteBackbone)
    return not issubclass(source.family, pyramids)


def _with_warmup(settings: Any) -> str | None:
    if settings.schedule == "power4" and settings.warmup_steps:
        return "power4 has no warm-up: give --warmup-steps 0, or --schedule cosine"
    return None


def _with_drops(settings: Any) -> str | None:
    if settings.schedule == "steps":
        return "steps is for papers that say when the rate drops, as none here does: give cosine"
    return None


# `--schedule` of recipes whose experiments have no `drops`.
NO_DROPS = Rule(_with_drops, ("schedule",))
# `--width` of detectors whose heads are as wide as what they stand on.
OF_A_NECK = only_on("is the neck's, and this backbone has none", has_neck)


@dataclasses.dataclass(frozen=True)
class Number:
    """What a whole number must be so that a recipe's model can be built of it.

    Args:
        least: smallest number.
        multiple: of which it must be one.
        where: in which runs; None for all.
    """

    least: int = 1
    multiple: int = 1
    where: Rule | None = None

    def fault(self, value: int) -> str | None:
        """What to give instead of a number; None if it will do."""
        if value < self.least:
            return f"give {self.least} or more"
        below = value // self.multiple * self.multiple
        if below == value:
            return None
        near = [str(number) for number in (below, below + self.multiple) if number >= self.least]
        return f"give a multiple of {self.multiple}, such as {' or '.join(near)}"


def source_of(settings: Any) -> backbones.BackboneSource:
    """The backbone that `--weights` or `--preset` names.

    Args:
        settings: `CommonSettings` with one of both.

    Raises:
        ValueError: if there is no such backbone.
    """
    preset = settings.weights or settings.preset
    return _downloaded(preset) if "://" in preset else backbones.find_backbone(preset)


@functools.cache
def _downloaded(handle: str) -> backbones.BackboneSource:
    """Of handles, the network is built to look at; unlike a directory, it stays what it is."""
    return backbones.find_backbone(handle)


# Settings of all recipes, by what gives them a meaning.
_SHARED = {
    "weights_of": (only("weights"),),
    "layer_scale": (
        only_on(
            "is of new weights, and trained ones have theirs", lambda source: not source.has_weights
        ),
    ),
    "schedule": (Rule(_with_warmup, ("warmup_steps",)),),
    "floor": (only("schedule", "cosine", "linear", "power4"),),
    "layer_decay": (only("optimizer", "adamw"),),
    "backbone_rate": (only("optimizer", "adamw"), only("layer_decay", 1.0)),
    "reduce_zero_label": (only("data_dir"),),
}


def check_flags(
    settings: Any,
    given: Collection[str],
    meaning: Mapping[str, Rule],
    numbers: Mapping[str, Number],
    undecided: Collection[str] = (),
) -> None:
    """Refuses flags that would have no effect, and numbers that no model can be built of.

    Args:
        settings: of a recipe.
        given: names of those that flags gave; what they switch off, such as 0, is accepted.
        meaning: of the recipe: setting to where it means something.
        numbers: of the recipe: setting to what it must be.
        undecided: names of settings that the experiment decides, while it has not; what depends on
            one that is None is not looked at.

    Raises:
        SettingsError: naming the flag.
    """

    for name in sorted(given):
        if not getattr(settings, name):
            continue
        for rule in (*_SHARED.get(name, ()), *([meaning[name]] if name in meaning else [])):
            if any(asked in undecided and getattr(settings, asked) is None for asked in rule.asks):
                continue
            if fault := rule.fault(settings):
                raise SettingsError(f"{flag_of(name)} {fault}.")
    for name, number in numbers.items():
        value = getattr(settings, name)
        if value is None or (number.where is not None and number.where.fault(settings)):
            continue
        if fault := number.fault(value):
            raise SettingsError(f"{flag_of(name)} {value}: {fault}.")
    if settings.image_size is not None and (settings.weights or settings.preset):
        require_size(settings.image_size, source_of(settings).family)
