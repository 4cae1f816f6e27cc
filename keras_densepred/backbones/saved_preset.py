"""Presets that KerasHub saved: which backbone is in one, its weights, tasks that take several."""

import contextlib
import contextvars
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub

from keras_densepred import start

# Arguments that decide the classes of batch norms, by which Keras addresses weights in a file.
BATCH_NORM_ARGUMENTS = ("sync_batch_norm", "fixed_batch_norm")
# Class of the backbone in the preset that is being loaded; None outside of `any_backbone`.
_found: contextvars.ContextVar[type | None] = contextvars.ContextVar("found", default=None)


class BackboneClass:
    """The `backbone_cls` of a KerasHub task that takes backbones of several classes.

    `Task.from_preset` refuses every backbone whose class is not exactly `backbone_cls` (keras-hub
    0.32.0). Within `any_backbone` this is the class found in the preset, elsewhere the one given.

    Args:
        default: the class that the task is made for, or what its backbones have in common.
    """

    def __init__(self, default: type):
        self.default = default

    def __get__(self, instance: Any, owner: type | None = None) -> type:
        return _found.get() or self.default


def reading(preset: str) -> contextlib.AbstractContextManager[None]:
    """For KerasHub's `from_preset`, which asks TensorFlow whose path it is (keras-hub 0.32.0).

    A directory on this machine needs no TensorFlow: seconds, and log lines. A handle may.
    """
    return contextlib.nullcontext() if "://" in preset else start.without_tensorflow()


@contextlib.contextmanager
def any_backbone(preset: str) -> Iterator[None]:
    """Within it, tasks with a `BackboneClass` load a preset whichever backbone it has.

    Args:
        preset: directory or handle of a preset of a task or a backbone. If it is no preset, then
            KerasHub, which is to load it, says so.
    """
    with reading(preset):
        try:
            found = saved_backbone_class(preset)
        except ValueError:
            found = None
        token = _found.set(found)
        try:
            yield
        finally:
            _found.reset(token)


def saved_backbone_class(preset: str) -> type[keras.Model]:
    """The class of the backbone in a preset's directory or handle; `keras.Model` if functional.

    Raises:
        ValueError: if there is no such preset, or its class is not registered with Keras.
    """
    config = pathlib.Path(preset) / "config.json"
    if "://" not in preset and config.is_file():
        name = json.loads(config.read_text(encoding="utf-8")).get("registered_name")
        if name in ("Functional", "Sequential"):
            return keras.Model
        saved = None if name is None else keras.saving.get_registered_object(name)
        if saved is not None:
            return saved
    # Only KerasHub knows where a handle's files are, or how to read another library's directory;
    # it has no public way to ask for the class alone. What is wrong it says itself.
    return type(keras_hub.models.Backbone.from_preset(preset, load_weights=False))


def changes_batch_norms(preset: str, options: Mapping[str, Any]) -> bool:
    """Whether options give a saved backbone batch norms of another class than it was saved with."""
    changed = {name: options[name] for name in BATCH_NORM_ARGUMENTS if name in options}
    config = pathlib.Path(preset) / "config.json"
    if not changed or not config.is_file():
        return bool(changed)
    saved = json.loads(config.read_text(encoding="utf-8"))["config"]
    return any(saved.get(name, False) != value for name, value in changed.items())


def copy_weights(source: keras.Model, target: keras.Model, preset: str) -> None:
    """Copies weights by path; ValueError if the two networks do not have the same ones."""
    values = {weight.path: weight for weight in source.weights}
    missing = [weight.path for weight in target.weights if weight.path not in values]
    if missing or len(values) != len(target.weights):
        raise ValueError(
            f"{preset} holds the weights of another network than these options make: "
            f"{missing[0] if missing else 'some of its weights'} would have no place."
        )
    for weight in target.weights:
        weight.assign(values[weight.path])
