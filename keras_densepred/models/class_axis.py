"""From one model to another with other classes: weights copied class by class, by name."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassAxis:
    """How the last axis of a weight holds classes: `groups` times (`before`, C `each`, `after`).

    Attributes:
        groups: times that all classes follow each other, as for the anchors of a cell.
        before: values in front of the classes, such as a box and its objectness.
        each: values of a class.
        after: values behind the classes, such as the background.
    """

    groups: int = 1
    before: int = 0
    each: int = 1
    after: int = 0

    def size(self, num_classes: int) -> int:
        """Length of the axis."""
        return self.groups * (self.before + num_classes * self.each + self.after)


def axes_of(weights: Sequence[keras.Variable], axis: ClassAxis) -> dict[str, ClassAxis]:
    """The same axis for several weights, by their paths."""
    return {weight.path: axis for weight in weights}


@dataclasses.dataclass(frozen=True)
class Copied:
    """What `copy_weights` did.

    Attributes:
        known: names of the classes that both models have.
        fresh: names of the model's classes that the other lacks: they start as they were.
    """

    known: tuple[str, ...]
    fresh: tuple[str, ...]


def copy_weights(
    model: keras.Model,
    other: keras.Model,
    class_names: Sequence[str],
    other_names: Sequence[str],
) -> Copied:
    """Gives a model the weights of another of the same architecture; nothing, if they do not fit.

    Args:
        model: a `Detector` or `Segmenter`, whose `class_axes` say where its classes are, or any
            other, whose classes are the same.
        other: one that differs in its classes at most.
        class_names: of the model's labels.
        other_names: of the other's.

    Returns:
        Which classes were taken over.

    Raises:
        ValueError: if the models have other layers than each other.
    """
    axes: Mapping[str, ClassAxis] = model.class_axes() if hasattr(model, "class_axes") else {}
    ours, theirs = (_without_seeds(m) for m in (model, other))
    values = []
    for index, weight in enumerate(ours):
        source = theirs[index] if index < len(theirs) else None
        axis = axes.get(weight.path)
        expected = tuple(weight.shape)
        if axis is not None:
            expected = (*expected[:-1], axis.size(len(other_names)))
        if source is None or tuple(source.shape) != expected or source.name != weight.name:
            raise ValueError(
                f"{type(other).__name__} has other layers than this {type(model).__name__}: the "
                f"first that differs is {weight.path}, of shape {tuple(weight.shape)}."
            )
        value = keras.ops.convert_to_numpy(source)
        if axis is not None:
            before = keras.ops.convert_to_numpy(weight)
            value = _by_name(before, value, axis, class_names, other_names)
        values.append(value)
    if len(theirs) != len(ours):
        raise ValueError(
            f"{type(other).__name__} has {len(theirs)} weights, this {type(model).__name__} "
            f"{len(ours)}: they have other layers."
        )
    for weight, value in zip(ours, values, strict=True):
        weight.assign(value)
    known = tuple(name for name in class_names if name in other_names)
    return Copied(known, tuple(name for name in class_names if name not in other_names))


def _without_seeds(model: keras.Model) -> list[keras.Variable]:
    return [weight for weight in model.weights if "seed_generator" not in weight.path]


def _by_name(
    value: np.ndarray,
    source: np.ndarray,
    axis: ClassAxis,
    class_names: Sequence[str],
    other_names: Sequence[str],
) -> np.ndarray:
    """`value` with what `source` has of the same classes, and of all that is of no class."""

    def grouped(array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-1], axis.groups, -1).copy()

    def of_class(label: int) -> slice:
        return slice(axis.before + label * axis.each, axis.before + (label + 1) * axis.each)

    ours, theirs = grouped(value), grouped(source)
    ours[..., : axis.before] = theirs[..., : axis.before]
    if axis.after:
        ours[..., -axis.after :] = theirs[..., -axis.after :]
    for label, name in enumerate(class_names):
        if name in other_names:
            ours[..., of_class(label)] = theirs[..., of_class(list(other_names).index(name))]
    return ours.reshape(value.shape)
