"""A backbone by the name or directory of its preset, whichever of our families it is of."""

import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.saved_preset import saved_backbone_class


def load_backbone(preset: str, **options: Any) -> PyramidBackbone:
    """Builds the backbone of a preset, of any family.

    Args:
        preset: name of a built-in preset, such as `"bicsnet_48"`, with random weights, or the
            directory or handle of a saved backbone, with its weights; also a directory that has
            one in `backbone`, as the recipes write it.
        **options: constructor arguments that differ from the preset's. One that the family does
            not have, such as a stochastic depth in a network without residual branches, is left
            out, so that a recipe can say what it wants of every family.

    Returns:
        The backbone.

    Raises:
        ValueError: if there is no such preset, or it is of no backbone of ours.
    """
    built_in = _family_of(preset)
    if built_in is not None:
        return built_in.from_preset(preset, **_known(built_in, options))
    if "://" not in preset:
        preset = _saved_backbone(pathlib.Path(preset))
    family = saved_backbone_class(preset)
    if not issubclass(family, PyramidBackbone):
        raise ValueError(
            f"{preset} holds a {family.__name__}, which is none of keras_densepred's backbones."
        )
    return family.from_preset(preset, **_known(family, options))


def built_in_presets() -> list[str]:
    """The names of all architectures that come with this package, aliases left out."""
    return [name for family in _families(PyramidBackbone) for name in family.architecture_presets()]


def built_in_preset(preset: str) -> str | None:
    """The built-in preset that a name or an alias of it names; None if it names none."""
    family = _family_of(preset)
    return None if family is None else family.architecture_preset_name(preset)


def _family_of(preset: str) -> type[PyramidBackbone] | None:
    families = _families(PyramidBackbone)
    return next((f for f in families if f.architecture_preset_name(preset) is not None), None)


def _families(base: type[PyramidBackbone]) -> Iterator[type[PyramidBackbone]]:
    """All classes derived from one, also from those derived."""
    for family in base.__subclasses__():
        yield family
        yield from _families(family)


def _saved_backbone(directory: pathlib.Path) -> str:
    """Where a backbone is saved: in the directory, or in `backbone` in it."""
    if not directory.is_dir():
        raise ValueError(
            f"There is no directory and no built-in preset {str(directory)!r}; there are "
            f"{', '.join(built_in_presets())}."
        )
    for place in (directory / "backbone", directory):
        if (place / "config.json").is_file():
            return str(place)
    raise ValueError(
        f"{directory} holds no backbone (there is no config.json in it): give the directory that "
        "`save_to_preset` or a recipe wrote."
    )


def _known(family: type[PyramidBackbone], options: dict[str, Any]) -> dict[str, Any]:
    """Those options that the constructor names."""
    names = inspect.signature(family.__init__).parameters
    return {name: value for name, value in options.items() if name in names}
