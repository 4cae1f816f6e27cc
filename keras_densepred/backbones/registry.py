"""The families of backbones."""

from typing import TypeVar

import keras

from keras_densepred.backbones.backbone import PyramidBackbone

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
            other = family_of_preset(alias)
            if other is not None and other is not _families.get(name):
                raise ValueError(f"{other.__name__} has a preset {alias!r} already.")
    _families[name] = family
    return family


def backbone_families() -> tuple[type[PyramidBackbone], ...]:
    """All families, in the order they were registered in."""
    return tuple(_families.values())


def built_in_presets() -> list[str]:
    """The names of all registered architectures, aliases left out."""
    return [name for family in backbone_families() for name in family.architecture_presets()]


def built_in_preset(preset: str) -> str | None:
    """The built-in preset that a name or an alias of it names; None if it names none."""
    family = family_of_preset(preset)
    return None if family is None else family.architecture_preset_name(preset)


def family_of_preset(preset: str) -> type[PyramidBackbone] | None:
    """The family that has a built-in preset of this name or alias; None if none has."""
    families = backbone_families()
    return next((f for f in families if f.architecture_preset_name(preset) is not None), None)
