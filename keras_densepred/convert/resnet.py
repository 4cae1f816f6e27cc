"""Weights of ResNets in KerasHub's and timm's layouts.

Both have the stride in the 3x3 convolution, as `ResNetBackbone` has. MSFM's modules have no
published weights: they stay as they are, by default the identity, so that a network with modules
starts as the plain one. So do offsets of deformable convolutions, which start at zero.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred.backbones.converted import Converter, register_converter
from keras_densepred.backbones.resnet import ResNetBackbone
from keras_densepred.convert.state import LoadReport, read_checkpoint

TIMM_DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
# A block's convolutions here, in KerasHub's numbering; timm calls the shortcut `downsample`.
_UNITS = {"shortcut": 0, "reduce": 1, "spatial": 2, "expand": 3}
_TIMM_WEIGHTS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_keras_hub(backbone: ResNetBackbone, source: keras.Model) -> LoadReport:
    """Loads the weights of KerasHub's ResNet, such as its preset `"resnet_50_imagenet"`.

    Nothing is assigned unless everything fits.

    Args:
        backbone: of the same depths.
        source: a `keras_hub.models.ResNetBackbone` with `block_type="bottleneck_block"` and
            without pre-activation.

    Returns:
        A `LoadReport`; `loaded` are the paths of `source`'s weights.

    Raises:
        ValueError: if the source has other layers than `backbone` or other shapes. The message
            names them.
    """
    state = {weight.path: keras.ops.convert_to_numpy(weight) for weight in source.weights}
    return _load(backbone, state, _keras_hub_key, lambda key, value: value)


def load_timm(backbone: ResNetBackbone, state: Mapping[str, np.ndarray]) -> LoadReport:
    """Loads a state of timm's or torchvision's ResNet.

    `convert.cednet.read_checkpoint` reads the file of one. Nothing is assigned unless everything
    fits.

    Args:
        backbone: of the same depths.
        state: their key names (`"layer1.0.conv1.weight"`) to arrays in PyTorch's layout.

    Returns:
        A `LoadReport`; the classifier (`fc`) is skipped.

    Raises:
        ValueError: if the state has other keys than `backbone` needs or other shapes. The message
            names them.
    """
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    return _load(backbone, state, _timm_key, _from_torch)


def from_keras_hub(network: keras.Model, options: Mapping[str, Any]) -> ResNetBackbone:
    """Builds the backbone that KerasHub's ResNet has the weights of.

    Args:
        network: a `keras_hub.models.ResNetBackbone`.
        options: more arguments of `ResNetBackbone`, such as `msfm`.

    Raises:
        ValueError: if it is no plain bottleneck ResNet.
    """
    config = network.get_config()
    if config["block_type"] != "bottleneck_block" or config["use_pre_activation"]:
        raise ValueError(
            f"{network.name} is no plain bottleneck ResNet ({config['block_type']}), the only kind "
            "that ResNetBackbone is: `load_backbone` takes it as it is."
        )
    backbone = ResNetBackbone(**{"depths": config["stackwise_num_blocks"], **options})
    load_keras_hub(backbone, network)
    return backbone


def from_timm(architecture: str, file: str | Path, options: Mapping[str, Any]) -> ResNetBackbone:
    """Builds the backbone of timm's `resnet50` and its like.

    Args:
        architecture: timm's name.
        file: a checkpoint that `convert.state.read_checkpoint` reads.
        options: more arguments of `ResNetBackbone`.

    Raises:
        ValueError: if the file's weights do not fit.
    """
    backbone = ResNetBackbone(**{"depths": TIMM_DEPTHS[architecture], **options})
    load_timm(backbone, read_checkpoint(file))
    return backbone


def _load(
    backbone: ResNetBackbone,
    state: Mapping[str, np.ndarray],
    key_of: Callable[[str, str], str],
    convert: Callable[[str, np.ndarray], np.ndarray],
) -> LoadReport:
    if not isinstance(backbone, ResNetBackbone):
        raise ValueError(
            f"{backbone.name} is a {type(backbone).__name__}; `convert.resnet` serves "
            "ResNetBackbone."
        )
    targets = {}
    for weight in backbone.weights:
        layer, name = weight.path.split("/")[-2:]
        # What a plain ResNet lacks stays: modules, and offsets of deformable convolutions.
        if "_msfm/" not in weight.path and not name.startswith("offset_"):
            targets[key_of(layer, name)] = weight
    missing = [key for key in targets if key not in state]
    skipped = [key for key in state if key.startswith("fc.")]
    unknown = [key for key in state if key not in targets and key not in skipped]
    for what, keys in (("lack", missing), ("have, unknown here,", unknown)):
        if keys:
            raise ValueError(
                f"The weights {what} {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}: "
                f"give those of a bottleneck ResNet of the depths {backbone.depths}."
            )
    values = {key: convert(key, np.asarray(state[key])) for key in targets}
    for key, weight in targets.items():
        value = values[key]
        if value.ndim == 4 and len(weight.shape) == 2 and value.shape[:2] == (1, 1):
            values[key] = value = value[0, 0]  # a 1x1 convolution of stride 1 is a Dense layer here
        if value.shape != tuple(weight.shape):
            raise ValueError(
                f"The array of {key!r} has the shape {np.shape(state[key])}, which does not fit "
                f"the weight {weight.path!r} of shape {tuple(weight.shape)}: choose the `width` "
                "the weights were made with."
            )
    for key, weight in targets.items():
        weight.assign(values[key])
    return LoadReport(loaded=tuple(targets), skipped=tuple(skipped))


def _parts(layer: str) -> tuple[int, int, int, str] | None:
    """Stage from 1, block from 0, convolution as KerasHub counts, and its kind; None: the stem."""
    match = re.fullmatch(r"stage(\d)_block(\d+)_(\w+)_(conv|norm)", layer)
    if match is None:
        return None
    return int(match[1]), int(match[2]) - 1, _UNITS[match[3]], match[4]


def _keras_hub_key(layer: str, weight: str) -> str:
    parts = _parts(layer)
    if parts is None:
        name = {"stem_conv": "conv1_conv", "stem_norm": "conv1_bn"}[layer]
    else:
        stage, block, unit, kind = parts
        kind = {"conv": "conv", "norm": "bn"}[kind]
        name = f"stack{stage - 1}_block{block}_{unit}_{kind}"
    return f"{name}/{weight}"


def _timm_key(layer: str, weight: str) -> str:
    parts = _parts(layer)
    if parts is None:
        name = {"stem_conv": "conv1", "stem_norm": "bn1"}[layer]
    else:
        stage, block, unit, kind = parts
        if unit == 0:
            module = f"downsample.{0 if kind == 'conv' else 1}"
        else:
            module = f"{'conv' if kind == 'conv' else 'bn'}{unit}"
        name = f"layer{stage}.{block}.{module}"
    return f"{name}.{_TIMM_WEIGHTS[weight]}"


def _from_torch(key: str, value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


register_converter(ResNetBackbone, Converter(from_keras_hub, from_timm))
