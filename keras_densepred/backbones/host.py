"""Networks of KerasHub and keras.applications as backbones of this package.

    images -> the network's own layers, by name -> P2 .. P5, by true stride

`backbones.pretrained` has the words by which they are loaded, with weights.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.host_graph import (
    ancestors,
    can_be_copied,
    described,
    deserialized,
    end_of_levels,
    first_of_stride,
    named_levels,
    rebuilt,
    replace_batch_norms,
)
from keras_densepred.backbones.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    images_of,
    is_host,
    network_of,
)
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.image_input import image_input, resolve_data_format

COLORS = ("rgb", "bgr")


@keras.saving.register_keras_serializable(package="keras_densepred")
class ReverseColors(keras.layers.Layer):
    """RGB images to BGR ones, channels last, and the other way round."""

    def call(self, images):
        return keras.ops.flip(images, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape


@register_backbone
class HostBackbone(PyramidBackbone):
    """Any functional network of feature maps, such as KerasHub's and keras.applications'.

    The network's layers are built anew, with their weights where `network` is a model, so that
    neither changes the other. Layers keep their names.

    Input: RGB images `(batch, height, width, 3)`, float, from which `image_mean` has been
    subtracted and which then have been divided by `image_std`; height and width multiples of 32.

    Output: `{"P2", "P3", ...}`, maps `(batch, height / stride, width / stride, channels)` by their
    true strides, whatever the network calls them.

    Args:
        network: a functional Keras model of channels-last images, or what
            `keras.saving.serialize_keras_object` made of one: then weights are random.
        level_layers: level to name of the layer whose output it is; None finds them.
        image_mean: of the three channels, RGB, of images in 0..255, that the caller subtracts.
        image_std: that the caller divides by.
        colors: `"rgb"`, or `"bgr"` for a network that wants the channels in that order: they are
            turned around within the backbone.
        frozen_stages: None trains all; 0 freezes everything up to the first map of stride 4, n
            everything up to the end of level P(n + 1), as detectors fine-tune.
        fixed_batch_norm: whether batch norms use their moving statistics in training too, as
            detectors fine-tune on few images a batch; their scale and offset train.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None; None for the network's.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy of all layers; None leaves each its own.

    Raises:
        ValueError: if the network is none of feature maps, or an argument is outside of what is
            listed here.

    Example:

    >>> import keras, keras_densepred, numpy
    >>> network = keras.applications.MobileNetV2(include_top=False, weights=None)
    >>> backbone = keras_densepred.HostBackbone(network, image_mean=(127.5,) * 3)
    >>> tuple(backbone(numpy.zeros((1, 64, 96, 3)))["P3"].shape[1:3])
    (8, 12)
    """

    training_options = PyramidBackbone.training_options | {"image_mean", "image_std"}

    def __init__(
        self,
        network: keras.Model | Mapping[str, Any],
        level_layers: Mapping[str, str] | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        colors: str = "rgb",
        frozen_stages: int | None = None,
        fixed_batch_norm: bool = False,
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] | None = None,
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        if colors not in COLORS:
            raise ValueError(f"`colors` must be one of {COLORS}, got {colors!r}.")
        if frozen_stages is not None and not 0 <= frozen_stages <= 4:
            raise ValueError(f"`frozen_stages` must be None or 0 to 4, got {frozen_stages}.")
        is_model = not isinstance(network, Mapping)
        model: Any = network if is_model else deserialized(network, dtype)
        _check_takes_images(model)
        if image_shape is None:
            image_shape = model.inputs[0].shape[1:]
        find = (
            end_of_levels if level_layers is None else functools.partial(named_levels, level_layers)
        )
        tensors = find(model)
        config = described(model, tensors) if is_model else dict(network)
        if not can_be_copied(model):
            model = _own_copy(model, config, dtype, _sides(image_shape, data_format))
            tensors = find(model)

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype, self.size_divisor)
        if colors == "bgr":
            x = ReverseColors(name="rgb_to_bgr", dtype=dtype)(x)
        maps, layers = rebuilt(model, tensors, x, dtype)
        super().__init__(
            inputs=inputs,
            pyramid_outputs={
                level: _of_a_layer(tensor, f"{level.lower()}_end", dtype)
                for level, tensor in maps.items()
            },
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            **kwargs,
        )
        replace_batch_norms([new for _, new in layers], fixed_batch_norm, sync_batch_norm)
        if is_model:
            for old, new in layers:  # the same ones where they cannot be copied
                for source, weight in zip(old.weights, new.weights, strict=True):
                    weight.assign(source)
        if frozen_stages is not None:
            _freeze(self, frozen_stages)

        # === Config ===
        self._network = json.dumps(config)  # a dictionary would become one that Keras tracks
        self.level_layers = dict(level_layers) if level_layers else None
        self.image_mean = tuple(float(value) for value in image_mean)
        self.image_std = tuple(float(value) for value in image_std)
        self.colors = colors
        self.frozen_stages = frozen_stages
        self.fixed_batch_norm = fixed_batch_norm
        self.sync_batch_norm = sync_batch_norm

    @property
    def network(self) -> dict[str, Any]:
        """The configuration of the network that this one is made of."""
        return json.loads(self._network)

    def rematerialize(self, enabled: bool = True) -> None:
        if enabled:
            raise ValueError(
                f"{self.name} is another library's network, whose layers cannot be computed again "
                "in the backward pass: leave --rematerialize out, or use a backbone of ours."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "HostBackbone":
        # Not as the base: `network` stays a configuration.
        return super(PyramidBackbone, cls).from_config(config)

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs):
        """Builds a backbone from a preset of this package, KerasHub or keras.applications.

        Args:
            preset: a word such as `"applications/convnext_tiny"` (random weights),
                `"applications/convnext_tiny_imagenet"` or `"resnet_50_imagenet"` (KerasHub's), or
                the directory or handle of a saved backbone, of KerasHub's or this class.
            load_weights: whether to load the preset's weights.
            **kwargs: constructor arguments that replace the preset's.

        Raises:
            ValueError: if there is no such preset, it cannot be downloaded, or there is no such
                argument.
        """
        if not is_host(preset):
            return super().from_preset(preset, load_weights, **kwargs)
        cls._check_options(kwargs)
        return cls(network_of(preset, load_weights), **{**images_of(preset), **kwargs})

    @classmethod
    def normalization_of(cls, config):
        complete = cls.complete_config(config)
        return tuple(complete["image_mean"]), tuple(complete["image_std"])


def _check_takes_images(model: Any) -> None:
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"`network` must be a functional Keras model, got {type(model).__name__}: give one "
            "with symbolic `inputs`, such as those of KerasHub and keras.applications."
        )
    shapes = [tensor.shape for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] != 3:
        raise ValueError(
            f"{model.name} takes {', '.join(map(str, shapes))}: a backbone needs a network of one "
            "batch of RGB images, channels last, (None, height, width, 3)."
        )
    if getattr(model, "data_format", None) == "channels_first":
        raise ValueError(f"{model.name} is channels_first: build it with channels_last images.")


def _sides(image_shape: Sequence[int | None], data_format: str | None) -> tuple[int | None, ...]:
    is_last = resolve_data_format(data_format) == "channels_last"
    return tuple(image_shape[:2] if is_last else image_shape[1:])


def _own_copy(
    model: keras.Model, config: Mapping[str, Any], dtype: Any, sides: tuple[int | None, ...]
) -> keras.Model:
    """The same network, with layers of its own, for images of some size.

    The networks whose layers cannot be copied one by one, MiT, are made for one size.
    """
    shape = {"image_shape": [*sides, 3]} if "image_shape" in config["config"] else {}
    try:
        other = deserialized({**config, "config": {**config["config"], **shape}}, dtype)
    except (TypeError, ValueError) as error:
        own = model.inputs[0].shape[1:3]
        raise ValueError(
            f"{model.name} cannot be built for images of {sides[0]} x {sides[1]}; as it is, it "
            f"takes {own[0]} x {own[1]}."
        ) from error
    for source, weight in zip(model.weights, other.weights, strict=True):
        weight.assign(source)
    return other


def _of_a_layer(tensor: Any, name: str, dtype: Any) -> Any:
    """The tensor as the one output of a layer, as which `pyramid_level_inputs` names it.

    The sums of keras.applications' ConvNeXt, for one, are operations and no layers.
    """
    operation = tensor._keras_history.operation
    if isinstance(operation, keras.layers.Layer) and operation.output is tensor:
        return tensor
    return keras.layers.Identity(name=name, dtype=dtype)(tensor)


def _freeze(backbone: HostBackbone, stages: int) -> None:
    if stages == 0:
        end = first_of_stride(backbone, 4)
    else:
        end = backbone.pyramid_outputs.get(f"P{stages + 1}")
    if end is None:
        raise ValueError(
            f"`frozen_stages` is {stages}, but {backbone.name} has no level P{stages + 1}; it has "
            f"{', '.join(backbone.pyramid_outputs)}."
        )
    for operation in ancestors(end):
        if isinstance(operation, keras.layers.Layer):
            operation.trainable = False
