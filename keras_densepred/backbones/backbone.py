"""The contract all backbones share: named levels with channels and stride, and presets."""

import dataclasses
import functools
import importlib.resources
import json
import os

import keras
import keras_hub

from keras_densepred.backbones.rematerialization import Rematerialization


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """What a neck or head must know of one pyramid level.

    Attributes:
        channels: number of channels of the map.
        stride: input pixels per position.
    """

    channels: int
    stride: int


class PyramidBackbone(Rematerialization, keras_hub.models.FeaturePyramidBackbone):
    """A functional model from images to a pyramid of feature maps, `{"P2": ..., "P3": ...}`.

    Level `"Pn"` has stride `2**n`. A subclass builds its graph in the constructor and calls
    `super().__init__(inputs=..., pyramid_outputs=..., ...)`; necks and heads build themselves from

    * `pyramid_outputs`: level to symbolic tensor, what KerasHub's tasks read;
    * `pyramid_level_inputs`: level to the name of the layer that ends it, what KerasCV's read;
    * `feature_info`: level to `FeatureInfo`;
    * `size_divisor`: image height and width must be multiples of it.

    `rematerialize()` makes training take less memory and more time.
    """

    size_divisor: int = 32
    _preset_file: str | None = None  # below backbones/presets, for a family with presets

    def __init__(self, *, inputs, pyramid_outputs, image_shape, data_format, dtype, **kwargs):
        super().__init__(inputs=inputs, outputs=pyramid_outputs, dtype=dtype, **kwargs)
        self.pyramid_outputs = pyramid_outputs
        self.image_shape = tuple(image_shape)
        self.data_format = data_format

    @property
    def pyramid_level_inputs(self) -> dict[str, str]:
        """Level to the name of the layer whose output is that level's map."""
        return {
            level: tensor._keras_history.operation.name
            for level, tensor in self.pyramid_outputs.items()
        }

    @property
    def feature_info(self) -> dict[str, FeatureInfo]:
        """Level to its channels and stride, finest level first."""
        channel_axis = -1 if self.data_format == "channels_last" else 1
        return {
            level: FeatureInfo(channels=tensor.shape[channel_axis], stride=2 ** int(level[1:]))
            for level, tensor in self.pyramid_outputs.items()
        }

    @property
    def levels(self) -> tuple[int, ...]:
        """The pyramid's levels, finest first."""
        return tuple(sorted(int(level[1:]) for level in self.pyramid_outputs))

    @property
    def is_pyramid(self) -> bool:
        """Whether levels are contiguous and equally wide, so that heads can run on them."""
        contiguous = self.levels == tuple(range(self.levels[0], self.levels[-1] + 1))
        return contiguous and len({info.channels for info in self.feature_info.values()}) == 1

    def get_config(self):
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "data_format": self.data_format,
        }

    @classmethod
    def architecture_presets(cls) -> dict[str, dict]:
        """Built-in presets: name to its description and constructor arguments (`"config"`)."""
        return _read_presets(cls._preset_file) if cls._preset_file else {}

    @classmethod
    def architecture_preset_name(cls, preset: str) -> str | None:
        """The built-in preset that `preset` names, itself or by an alias; None if none does."""
        for name, entry in cls.architecture_presets().items():
            if preset == name or preset in entry["aliases"]:
                return name
        return None

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs):
        """Builds a model from a preset.

        Args:
            preset: a built-in name (`architecture_presets()` lists them; they work offline), a
                local preset directory, or a `kaggle://`, `hf://` or `modelscope://` handle.
            load_weights: whether to load the preset's weights. The built-in presets are
                architectures only: their weights are random whatever this says, because the
                authors published none.
            **kwargs: constructor arguments that replace the preset's.

        Returns:
            An instance of this class.

        Raises:
            ValueError: if `preset` is neither a built-in name nor a directory nor a handle.
        """
        name = cls.architecture_preset_name(preset)
        if name is not None:
            return cls(**{**cls.architecture_presets()[name]["config"], **kwargs})
        if "://" not in preset and not os.path.isdir(preset):
            presets = cls.architecture_presets()
            names = [n for name, entry in presets.items() for n in (name, *entry["aliases"])]
            raise ValueError(
                f"{cls.__name__} has no preset {preset!r}, nor is there a directory of that name. "
                f"Built-in presets: {', '.join(names) if names else 'none'}."
            )
        return super().from_preset(preset, load_weights=load_weights, **kwargs)


@functools.cache
def _read_presets(file_name: str) -> dict[str, dict]:
    text = importlib.resources.files("keras_densepred.backbones.presets").joinpath(file_name)
    return json.loads(text.read_text(encoding="utf-8"))


def resolve_data_format(data_format: str | None) -> str:
    """`data_format`, or Keras' default where it is None; ValueError if it is neither format."""
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f'`data_format` must be "channels_last" or "channels_first", got {data_format!r}.'
        )
    return data_format


def to_channels_last(x, data_format: str, name: str, dtype=None):
    """Turns a `data_format` map into a channels-last one, with a layer where one is needed."""
    if data_format == "channels_last":
        return x
    return keras.layers.Permute((2, 3, 1), name=name, dtype=dtype)(x)


def from_channels_last(x, data_format: str, name: str, dtype=None):
    """The inverse of `to_channels_last`."""
    if data_format == "channels_last":
        return x
    return keras.layers.Permute((3, 1, 2), name=name, dtype=dtype)(x)
