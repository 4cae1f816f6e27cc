"""The families of backbones, and a backbone by the name or directory of its preset."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import keras
import keras_hub

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.saved_preset import saved_backbone_class

Family = TypeVar("Family", bound=type[PyramidBackbone])
_families: dict[str, type[PyramidBackbone]] = {}  # by registered name


def register_backbone(family: Family) -> Family:
    """Makes a family known: its presets by name, and its class to saved files. A decorator.

    Args:
        family: a subclass of `PyramidBackbone`. Unless it is registered with Keras, it becomes
            `"keras_densepred>Name"`.

    Returns:
        `family`.

    Raises:
        ValueError: if another class or family has the same registered name or preset.
    """
    name = keras.saving.get_registered_name(family)
    if name == family.__name__:
        name = f"keras_densepred>{name}"
        taken = keras.saving.get_registered_object(name)
        # A notebook's cell that runs again defines the same class again.
        if taken is not None and taken.__module__ != family.__module__:
            raise ValueError(
                f"{name} is {taken.__module__}.{taken.__qualname__}: register "
                f"{family.__module__}.{family.__qualname__} under another name."
            )
        keras.saving.register_keras_serializable(package="keras_densepred")(family)
    for preset, entry in family.architecture_presets().items():
        for alias in (preset, *entry["aliases"]):
            other = _family_of(alias)
            if other is not None and other is not _families.get(name):
                raise ValueError(f"{other.__name__} has a preset {alias!r} already.")
    _families[name] = family
    return family


def backbone_families() -> tuple[type[PyramidBackbone], ...]:
    """All families, in the order they were registered in."""
    return tuple(_families.values())


@dataclasses.dataclass(frozen=True)
class BackboneSource:
    """A backbone that can be built: what `find_backbone` finds.

    Attributes:
        family: its class.
        config: its constructor's arguments, defaults included.
        architecture: the built-in preset that it is or has the architecture of; None if none.
        preset: what `family.from_preset` takes.
    """

    family: type[PyramidBackbone]
    config: Mapping[str, Any]
    architecture: str | None
    preset: str

    def accepts(self, option: str) -> bool:
        """Whether the family's constructor has an argument of this name."""
        return self.family.accepts(option)

    def build(self, **options: Any) -> PyramidBackbone:
        """Builds the network, with the weights where there are some.

        Args:
            **options: constructor arguments that differ from `config`.

        Raises:
            ValueError: if the family has no such argument, or the weights do not fit.
        """
        self.family._check_options(options)
        return self.family.from_preset(self.preset, **options)


def find_backbone(preset: str) -> BackboneSource:
    """Finds the backbone of a preset, of any family, without building it.

    Args:
        preset: name of a built-in preset, such as `"bicsnet_48"`, with random weights; or with its
            weights the directory of a saved backbone, the `preset` that a recipe wrote, its output
            directory, or a handle (`hf://...`, `kaggle://...`), whose network is built to look at.

    Returns:
        The family, its configuration, and what builds it.

    Raises:
        ValueError: if there is no such preset, or it is of no backbone of ours.
    """
    built_in, name = _family_of(preset), built_in_preset(preset)
    if built_in is not None and name is not None:
        config = built_in.architecture_presets()[name]["config"]
        return BackboneSource(built_in, built_in.complete_config(config), name, preset)
    if "://" in preset:
        backbone = keras_hub.models.Backbone.from_preset(preset, load_weights=False)
        family, config = type(backbone), backbone.get_config()
    else:
        preset = _saved_backbone(pathlib.Path(preset))
        family = saved_backbone_class(preset)
        config = json.loads((pathlib.Path(preset) / "config.json").read_text("utf-8"))["config"]
    if not issubclass(family, PyramidBackbone):
        raise ValueError(
            f"{preset} holds a {family.__name__}, which is none of keras_densepred's backbones."
        )
    return BackboneSource(
        family, family.complete_config(config), family.architecture_of(config), preset
    )


def load_backbone(preset: str, **options: Any) -> PyramidBackbone:
    """Builds the backbone of a preset, of any family.

    Args:
        preset: as of `find_backbone`.
        **options: constructor arguments that differ from the preset's; whether a family has one,
            `find_backbone(preset).accepts(option)` tells.

    Returns:
        The backbone.

    Raises:
        ValueError: if there is no such preset, it is of no backbone of ours, its family has no such
            argument, or the weights do not fit.
    """
    return find_backbone(preset).build(**options)


def built_in_presets() -> list[str]:
    """The names of all registered architectures, aliases left out."""
    return [name for family in backbone_families() for name in family.architecture_presets()]


def built_in_preset(preset: str) -> str | None:
    """The built-in preset that a name or an alias of it names; None if it names none."""
    family = _family_of(preset)
    return None if family is None else family.architecture_preset_name(preset)


def _family_of(preset: str) -> type[PyramidBackbone] | None:
    families = backbone_families()
    return next((f for f in families if f.architecture_preset_name(preset) is not None), None)


def _saved_backbone(directory: pathlib.Path) -> str:
    """Where a backbone is saved: in the directory, or below it as tasks and recipes write it."""
    if not directory.is_dir():
        raise ValueError(
            f"There is no directory and no built-in preset {str(directory)!r}; there are "
            f"{', '.join(built_in_presets())}."
        )
    for place in ("backbone", ".", "preset/backbone", "preset"):
        config = directory / place / "config.json"
        if config.is_file():
            name = json.loads(config.read_text(encoding="utf-8")).get("registered_name")
            if name and ">" in name and keras.saving.get_registered_object(name) is None:
                raise ValueError(
                    f"{directory} holds a {name}, which is not registered: import the module that "
                    "defines it first (`--import MODULE`)."
                )
            return str(directory / place)
    raise ValueError(
        f"{directory} holds no backbone (there is no config.json in it): give the directory that "
        "`save_to_preset` or a recipe wrote."
    )
