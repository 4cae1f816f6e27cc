"""The contract of backbones: named levels with channels and stride, configuration, presets."""

import dataclasses
import functools
import importlib.resources
import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import keras_hub

from keras_densepred.backbones.configuration import (
    built,
    comparable,
    constructor_arguments,
    plain,
)
from keras_densepred.backbones.rematerialization import Rematerialization
from keras_densepred.backbones.saved_preset import (
    BATCH_NORM_ARGUMENTS,
    changes_batch_norms,
    copy_weights,
    reading,
)
from keras_densepred.layers.image_input import from_channels_last, resolve_data_format
from keras_densepred.layers.token_mixers import NeXtMixer

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation
# Arguments that every backbone hands on to Keras.
_KERAS_ARGUMENTS = ("name", "trainable", "dtype")


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """What necks and heads need to know of one pyramid level.

    Attributes:
        channels: number of channels of the map.
        stride: input pixels per position.
    """

    channels: int
    stride: int


class PyramidBackbone(Rematerialization, keras_hub.models.FeaturePyramidBackbone):
    """A functional model from normalised images to feature maps, `{"P2": ..., "P3": ...}`.

    Level `"Pn"` has stride `2**n`; the constructor checks it. A family derives from this class,
    builds its graph in the constructor (`image_input` makes the input), calls
    `super().__init__(...)` and sets an attribute of the same name for each of its own arguments:

        @register_backbone
        class TwoConvs(PyramidBackbone):
            architectures = {"two_convs_small": {"width": 8}}

            def __init__(
                self, width=16, image_shape=(None, None, 3), data_format=None, dtype=None, **kwargs
            ):
                inputs, x = image_input(image_shape, data_format, dtype)
                c1 = Conv(width, 3, strides=2, name="conv1", dtype=dtype)(x)
                c2 = Conv(width, 3, strides=2, name="conv2", dtype=dtype)(c1)
                super().__init__(
                    inputs=inputs,
                    pyramid_outputs={"P1": c1, "P2": c2},
                    image_shape=image_shape,
                    data_format=data_format,
                    dtype=dtype,
                    **kwargs,
                )
                self.width = width

    What it gets: `get_config` and `from_config` from the constructor's signature, both data
    layouts, saving and presets, and what necks, heads and recipes ask:

    * `pyramid_outputs`: level to symbolic tensor, finest level first; KerasHub's tasks read it;
    * `pyramid_level_inputs`: level to the name of the layer that ends it; KerasCV's read it;
    * `feature_info`: level to `FeatureInfo`; `levels`: the numbers of the levels;
    * `is_pyramid`: whether a detector's heads can run on the levels as they are;
    * `size_divisor`: image height and width must be multiples of it;
    * `kit`: makes the convolutions, norms and activations of necks and heads on this backbone;
    * `layer_depth(path)` and `num_layers`: for layer-wise learning rates;
    * `accepts(option)`: whether the constructor has an argument;
    * `architecture`: the built-in preset that this network is one of;
    * `rematerialize()`: makes training take less memory and more time.

    Args:
        inputs: symbolic batch of images.
        pyramid_outputs: level to symbolic map `(batch, height, width, channels)`, channels last
            whatever `data_format` is.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: layout of images and outputs: `"channels_last"`, `"channels_first"` or None for
            Keras' default.
        dtype: dtype policy.
        kit: see above; None makes layer norms and GELUs, as in ConvNeXt.
        size_divisor: see above; None for the class attribute, which is 32 unless the family says
            otherwise.
        **kwargs: `name` and `trainable`.

    Raises:
        ValueError: if a level has another name or stride, or `kwargs` has another argument.
    """

    size_divisor: int = 32
    architectures: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset to its arguments
    # Arguments of training and use, which do not tell one architecture from another.
    training_options: ClassVar[frozenset[str]] = frozenset(
        {
            *_KERAS_ARGUMENTS,
            *BATCH_NORM_ARGUMENTS,
            "image_shape",
            "data_format",
            "drop_path_rate",
            "layer_scale_init",
            "frozen_stages",
        }
    )
    _preset_file: str | None = None  # below backbones/presets; in place of `architectures`
    _layer_prefix: str = ""  # of the layers that turn outputs into channels-first ones

    def __init__(
        self,
        *,
        inputs: Any,
        pyramid_outputs: Mapping[str, Any],
        image_shape: Sequence[int | None],
        data_format: str | None = None,
        dtype: Any = None,
        kit: Any = None,
        size_divisor: int | None = None,
        **kwargs: Any,
    ):
        self._check_options(kwargs)
        data_format = resolve_data_format(data_format)
        outputs = {
            level: from_channels_last(
                x, data_format, f"{self._layer_prefix}{level.lower()}_channels_first", dtype
            )
            for level, x in sorted(pyramid_outputs.items(), key=lambda item: _level(item[0]))
        }
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        self.pyramid_outputs = outputs
        self.image_shape = tuple(image_shape)
        self.data_format = data_format
        if size_divisor is not None:
            self.size_divisor = size_divisor
        self._kit = kit
        self._check_strides()

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
            level: FeatureInfo(channels=tensor.shape[channel_axis], stride=2 ** _level(level))
            for level, tensor in self.pyramid_outputs.items()
        }

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of the levels, finest first: (2, 3, 4, 5)."""
        return tuple(_level(level) for level in self.pyramid_outputs)

    @property
    def is_pyramid(self) -> bool:
        """Whether the levels follow each other and are equally wide, as a detector's heads need.

        Other backbones take a neck: `FeaturePyramid` or `DetectionPyramid`.
        """
        first, last = self.levels[0], self.levels[-1]
        widths = {info.channels for info in self.feature_info.values()}
        return self.levels == tuple(range(first, last + 1)) and len(widths) == 1

    @property
    def kit(self) -> Any:
        """Makes the layers of necks and heads: a `layers.ConvNorm` or a `layers.TokenMixer`.

        It has `conv(x, channels, kernel, name, stride)`, `norm(x, name)` and `act(x, name)`.
        """
        return self._kit or NeXtMixer(dtype=self.dtype_policy)

    @property
    def num_layers(self) -> int:
        """The largest `layer_depth`; 0 where there are none."""
        return 0

    def layer_depth(self, path: str) -> int | None:
        """How deep a variable lies, for layer-wise learning rates.

        Args:
            path: `variable.path`, of this network or of a model on it.

        Returns:
            0 for the stem, up to `num_layers`; None for a variable whose rate is never scaled, and
            for all of a family that has no published depths.
        """
        return None

    @classmethod
    def accepts(cls, option: str) -> bool:
        """Whether the constructor has an argument of this name."""
        return option in _KERAS_ARGUMENTS or option in cls._arguments()

    @property
    def architecture(self) -> str | None:
        """The built-in preset that has the same architecture; None if none has.

        Options of training and use (`training_options`), such as a drop-path rate, may differ.
        """
        return self.architecture_of(self.get_config())

    @classmethod
    def architecture_of(cls, config: Mapping[str, Any]) -> str | None:
        """`architecture` of the network that a configuration describes, without building it."""
        described = cls._description(config)
        for name, entry in cls.architecture_presets().items():
            if cls._description(entry["config"]) == described:
                return name
        return None

    @classmethod
    def normalization_of(cls, config: Mapping[str, Any]) -> Normalization | None:
        """What images have to be for a network of this configuration.

        Returns:
            Mean and standard deviation of the three channels, RGB in 0..255, that the caller
            subtracts and divides by; None where the network was made for none in particular.
        """
        return None

    @classmethod
    def complete_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """All of the constructor's arguments: those of `config`, and defaults for the others.

        A family whose default stands for something else, such as None for a list of its own,
        puts that in its place.
        """
        return {
            name: config.get(name, parameter.default)
            for name, parameter in cls._arguments().items()
        }

    @classmethod
    def _description(cls, config: Mapping[str, Any]) -> Any:
        """What tells architectures from each other, in a form that compares."""
        complete = cls.complete_config(config)
        return comparable({k: v for k, v in complete.items() if k not in cls.training_options})

    @classmethod
    def _arguments(cls) -> dict[str, inspect.Parameter]:
        """The constructor's named arguments, those that it hands on to a parent's included."""
        return constructor_arguments(cls)

    @classmethod
    def _check_options(cls, options: Iterable[str]) -> None:
        unknown = [repr(option) for option in options if not cls.accepts(option)]
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no option {', '.join(unknown)}; it has "
                f"{', '.join(cls._arguments())}."
            )

    def _check_strides(self) -> None:
        """Compares the names of the levels with the sizes that the graph gives them."""
        axes = (1, 2) if self.data_format == "channels_last" else (2, 3)
        shape = [1, *self.inputs[0].shape[1:]]
        outputs = self.pyramid_outputs
        if any(shape[axis] is None for axis in axes):
            # Twice, so that the coarsest map has more than one position to be right about.
            side = 2 * math.lcm(self.size_divisor, 2 ** self.levels[-1])
            for axis in axes:
                shape[axis] = side if shape[axis] is None else shape[axis]
            images = keras.KerasTensor(tuple(shape), dtype=self.inputs[0].dtype)
            outputs = self.compute_output_spec(images)
        for level, info in self.feature_info.items():
            for axis in axes:
                exact = shape[axis] / info.stride
                size = outputs[level].shape[axis]
                if size is not None and not math.floor(exact) <= size <= math.ceil(exact):
                    raise ValueError(
                        f'{type(self).__name__} gives "{level}" a size of {size} for images of '
                        f"{shape[axis]} pixels; its stride must be {info.stride}."
                    )

    def get_config(self) -> dict[str, Any]:
        if type(self) is PyramidBackbone:
            raise ValueError(
                f"{self.name} is a bare PyramidBackbone, which cannot be saved: derive a class, or "
                "give `keras_densepred.HostBackbone` the model."
            )
        config = super().get_config()
        for argument in self._arguments():
            if argument not in config:
                config[argument] = plain(getattr(self, argument))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "PyramidBackbone":
        return super().from_config({name: built(value) for name, value in config.items()})

    @classmethod
    def architecture_presets(cls) -> dict[str, dict]:
        """Built-in presets: name to `"description"`, `"aliases"` and arguments (`"config"`)."""
        if cls._preset_file:
            return _read_presets(cls._preset_file)
        return {
            name: {"description": "", "aliases": [], "config": dict(config)}
            for name, config in cls.architectures.items()
        }

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
            ValueError: if `preset` is neither a built-in name nor a directory nor a handle, this
                family has no such argument, or the preset's weights do not fit.
        """
        name = cls.architecture_preset_name(preset)
        if name is not None:
            cls._check_options(kwargs)
            return cls(**{**cls.architecture_presets()[name]["config"], **kwargs})
        if "://" not in preset and not os.path.isdir(preset):
            presets = cls.architecture_presets()
            names = [n for name, entry in presets.items() for n in (name, *entry["aliases"])]
            raise ValueError(
                f"{cls.__name__} has no preset {preset!r}, nor is there a directory of that name. "
                f"Built-in presets: {', '.join(names) if names else 'none'}."
            )
        with reading(preset):
            if not load_weights or not changes_batch_norms(preset, kwargs):
                return super().from_preset(preset, load_weights=load_weights, **kwargs)
            # A file addresses weights by the class of their layer: load it as saved, then copy.
            saved = super().from_preset(preset)
        changed = type(saved).from_config({**saved.get_config(), **kwargs})
        copy_weights(saved, changed, preset)
        return changed


@functools.cache
def _read_presets(file_name: str) -> dict[str, dict]:
    text = importlib.resources.files("keras_densepred.backbones.presets").joinpath(file_name)
    return json.loads(text.read_text(encoding="utf-8"))


def _level(name: str) -> int:
    if not re.fullmatch(r"P\d+", name):
        raise ValueError(f'A level is called "P" and a number, such as "P3", not {name!r}.')
    return int(name[1:])
