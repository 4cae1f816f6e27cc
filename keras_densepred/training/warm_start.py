"""From one run to the next: a detector or segmenter starts from a whole trained one."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_densepred import saved
from keras_densepred.faults import SettingsError
from keras_densepred.models.class_axis import copy_weights
from keras_densepred.saved.opening import task_of


def start_from(model: Any, weights: str | os.PathLike[str], class_names: Sequence[str]) -> str:
    """Copies neck and heads of a trained model, class by class by name, where there is one.

    Args:
        model: the model to train, whose backbone has its weights.
        weights: of `--weights`.
        class_names: of the training data.

    Returns:
        What to say about it; empty if `weights` holds a backbone alone, or a model of another task.

    Raises:
        SettingsError: if the trained model has other layers, or it is not known what its classes
            are and they are not as many.
    """
    try:
        path = saved.find_model(weights)
        task = task_of(path)
    except ValueError:
        return ""  # a backbone
    if task != model.task or not hasattr(model, "class_axes"):
        return ""
    return _start(model, path, class_names)


def go_on_from(model: Any, run: str | os.PathLike[str], class_names: Sequence[str]) -> str:
    """Copies everything that a finished run trained, see `start_from`; classifiers too.

    Where the run averages its weights, they are the averages, which is what it saves.

    Args:
        model: the model to train, of the same settings.
        run: of `--extend`.
        class_names: of the training data.

    Returns:
        What to say about it.

    Raises:
        SettingsError: if the run's model is another one, or a classifier of other classes.
    """
    return _start(model, saved.find_model(run), class_names)


def _start(model: Any, path: pathlib.Path, class_names: Sequence[str]) -> str:
    trained = saved.load_model(path)
    classes = saved.read_classes(path.parent)
    if classes is None and trained.num_classes != len(class_names):
        raise SettingsError(
            f"{path} has {trained.num_classes} classes without names and the data "
            f"{len(class_names)}: put the run's classes.json beside it, or use --weights-of "
            "backbone."
        )
    names = tuple(class_names) if classes is None else classes.class_names
    if not hasattr(model, "class_axes") and names != tuple(class_names):
        raise SettingsError(
            f"{path} classifies {', '.join(names)}, and the data have {', '.join(class_names)}: "
            "extend it on data of the same classes, or start another run with --weights."
        )
    try:
        copied = copy_weights(model, trained, class_names, names)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise SettingsError(
            f"{path} cannot be started from as a whole ({reason}): give the settings of that run, "
            "or use --weights-of backbone."
        ) from error
    anchors = _other_anchors(model, trained)
    if not copied.fresh:
        return f"Starting from {path}, all {len(copied.known)} classes included{anchors}"
    return (
        f"Starting from {path}{anchors}; of the {len(class_names)} classes {len(copied.known)} are "
        f"known to it, and these start fresh: {', '.join(copied.fresh)}"
    )


def _other_anchors(model: Any, trained: Any) -> str:
    """What to say where boxes that were learned from other anchors begin at the wrong size."""
    own, before = (getattr(x, "anchor_scale", None) for x in (model, trained))
    if own == before or None in (own, before):
        return ""
    return (
        f" (its boxes are from anchors of {before:g} strides, here they are {own:g}: "
        f"--anchor-scale {before:g} keeps them)"
    )
