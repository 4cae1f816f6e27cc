"""A backbone by the name, word or directory of its preset."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.backbone import Normalization, PyramidBackbone
from keras_densepred.backbones.converted import ConvertedPresets, is_timm, timm_architecture
from keras_densepred.backbones.host import HostBackbone
from keras_densepred.backbones.pretrained import downloading, has_weights, images_of, is_host
from keras_densepred.backbones.registry import (
    backbone_families,
    built_in_preset,
    built_in_presets,
    family_of_preset,
)
from keras_densepred.backbones.saved_preset import saved_backbone_class


@dataclasses.dataclass(frozen=True)
class BackboneSource:
    """A backbone that can be built: what `find_backbone` finds.

    Attributes:
        family: its class.
        config: its constructor's arguments, defaults included.
        architecture: the built-in preset that it is or has the architecture of; None if none.
        preset: what `family.from_preset` takes.
        has_weights: whether it comes with trained weights.
    """

    family: type[PyramidBackbone]
    config: Mapping[str, Any]
    architecture: str | None
    preset: str
    has_weights: bool = True

    @property
    def normalization(self) -> Normalization | None:
        """What images the weights are for, see `PyramidBackbone.normalization_of`."""
        return self.family.normalization_of(self.config)

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
        preset: with random weights, name of a built-in preset, such as `"bicsnet_48"`, or
            `"applications/mobilenet_v2"` for a network of keras.applications; with weights,
            `"applications/mobilenet_v2_imagenet"`, a preset of KerasHub's such as
            `"resnet_50_imagenet"`, the directory of a saved backbone of ours or KerasHub's, the
            `preset` that a recipe wrote, its output directory, or a handle (`hf://...`,
            `kaggle://...`), whose network is built to look at.

    Returns:
        The family, its configuration, and what builds it.

    Raises:
        ValueError: if there is no such preset, it is of no network of feature maps, or it cannot be
            downloaded.
    """
    built_in, name = family_of_preset(preset), built_in_preset(preset)
    if built_in is not None and name is not None:
        config = built_in.architecture_presets()[name]["config"]
        return BackboneSource(built_in, built_in.complete_config(config), name, preset, False)
    if is_timm(preset):
        architecture = timm_architecture(preset)
        for family in backbone_families():
            if issubclass(family, ConvertedPresets) and family.takes_timm(architecture):
                return BackboneSource(family, family.complete_config({}), None, preset)
    if is_host(preset):
        return _host_source(preset)
    if "://" in preset:
        with downloading(preset):
            backbone = keras_hub.models.Backbone.from_preset(preset, load_weights=False)
        family, config = type(backbone), backbone.get_config()
    else:
        preset = _saved_backbone(pathlib.Path(preset))
        if is_host(preset):
            return _host_source(preset)
        family = saved_backbone_class(preset)
        config = json.loads((pathlib.Path(preset) / "config.json").read_text("utf-8"))["config"]
    if not issubclass(family, PyramidBackbone):
        raise ValueError(
            f"{preset} holds a {family.__name__}, which is no backbone: make one of it with "
            "`keras_densepred.HostBackbone(model)` and save that."
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
        ValueError: if there is no such preset, it cannot be downloaded, it is of no network of
            feature maps, its family has no such argument, or the weights do not fit.
    """
    return find_backbone(preset).build(**options)


def _host_source(preset: str) -> BackboneSource:
    config = HostBackbone.complete_config(images_of(preset))
    return BackboneSource(HostBackbone, config, None, preset, has_weights(preset))


def _saved_backbone(directory: pathlib.Path) -> str:
    """Where a backbone is saved: in the directory, or below it as tasks and recipes write it."""
    if not directory.is_dir():
        near = difflib.get_close_matches(str(directory), built_in_presets(), 3)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"There is no directory and no built-in preset {str(directory)!r}. {meant}Give the "
            "directory of a run or of a saved preset, one of the names that `python -m "
            "keras_densepred model-table` lists, one of KerasHub's presets or applications/NAME "
            "for those of keras.applications."
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
