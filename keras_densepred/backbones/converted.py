"""Presets of KerasHub and timm whose weights go into networks of our own.

`convert` knows how and stands above the backbones: it registers its converters here.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, ClassVar

import keras_hub

from keras_densepred._optional import require
from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.pretrained import APPLICATIONS, application, downloading, network_of
from keras_densepred.backbones.saved_preset import saved_backbone_class

TIMM = "hf://timm/"


@dataclasses.dataclass(frozen=True)
class Converter:
    """What builds a backbone of a family with other libraries' weights.

    Attributes:
        from_keras_hub: takes their network and a dictionary of constructor arguments.
        from_timm: takes timm's name, a checkpoint file and a dictionary of constructor arguments.
    """

    from_keras_hub: Callable[..., Any]
    from_timm: Callable[..., Any]


_converters: dict[type, Converter] = {}


def register_converter(family: type, converter: Converter) -> None:
    """Makes known how a `ConvertedPresets` family takes over weights."""
    _converters[family] = converter


class ConvertedPresets(PyramidBackbone):
    """Base of families whose `from_preset` takes other libraries' presets too.

    Attributes:
        _counterparts: classes of KerasHub's, or starts of names in keras.applications, whose
            weights fit.
        _timm: regular expression of timm's names of the networks whose weights fit.
    """

    _counterparts: ClassVar[tuple[str, ...]] = ()
    _timm: ClassVar[str]

    @classmethod
    def takes_timm(cls, architecture: str) -> bool:
        """Whether the family has a network of timm's, by timm's name."""
        return re.fullmatch(cls._timm, architecture) is not None

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> Any:
        """Builds a model from a preset, see `PyramidBackbone.from_preset`.

        Args:
            preset: as there; also a preset of KerasHub's of the same network
                (`"resnet_50_imagenet"`), a word of keras.applications, `"hf://timm/NAME"`, or
                a directory of one of these.
            load_weights: whether to load the preset's weights.
            **kwargs: constructor arguments that replace the preset's.

        Raises:
            ValueError: if there is no such preset, it cannot be downloaded, or it does not fit.
        """
        if cls.architecture_preset_name(preset) is None:
            if is_timm(preset):
                cls._check_options(kwargs)
                architecture = timm_architecture(preset)
                if not cls.takes_timm(architecture):
                    raise ValueError(f"{preset} is timm's {architecture}, no {cls.__name__}.")
                file = _timm_file(preset, "model.safetensors")
                return cls._converter().from_timm(architecture, file, kwargs)
            if cls._is_counterpart(preset):
                cls._check_options(kwargs)
                return cls._converter().from_keras_hub(network_of(preset, load_weights), kwargs)
        return super().from_preset(preset, load_weights, **kwargs)

    @classmethod
    def _converter(cls) -> Converter:
        return next(_converters[base] for base in cls.__mro__ if base in _converters)

    @classmethod
    def _is_counterpart(cls, preset: str) -> bool:
        if preset.startswith(APPLICATIONS):
            found = application(preset)
            return found is not None and found[0].startswith(cls._counterparts)
        theirs = [getattr(keras_hub.models, n) for n in cls._counterparts if n[0].isupper()]
        if "/" not in preset and preset in keras_hub.models.Backbone.presets:  # see `is_host`
            return any(preset in kind.presets for kind in theirs)
        if "://" not in preset and not (pathlib.Path(preset) / "config.json").is_file():
            return False
        with downloading(preset):
            return saved_backbone_class(preset) in theirs


def is_timm(preset: str) -> bool:
    """Whether a handle or directory is of a network of timm's, as Hugging Face has them."""
    if preset.startswith(TIMM):
        return True
    config = pathlib.Path(preset) / "config.json"
    return config.is_file() and "architecture" in json.loads(config.read_text(encoding="utf-8"))


def timm_architecture(preset: str) -> str:
    """The name that timm gives the network of `is_timm`; of a handle, a file is downloaded."""
    path = _timm_file(preset, "config.json")
    return str(json.loads(path.read_text(encoding="utf-8"))["architecture"])


def _timm_file(preset: str, name: str) -> pathlib.Path:
    if not preset.startswith(TIMM):
        return pathlib.Path(preset) / name
    hub = require("huggingface_hub", "convert")
    with downloading(preset):
        return pathlib.Path(hub.hf_hub_download(preset.removeprefix("hf://"), name))
