"""Weights of timm's `cspdarknet53`, `cspresnet50` and `cspresnext50` (timm/models/cspnet.py).

They belong into the networks of `flavour="timm"`, presets `csp_darknet_53_timm`,
`csp_resnet_50_timm` and `csp_resnext_50_timm`. timm's are Apache-2.0; images for them are RGB with
ImageNet's mean (123.675, 116.28, 103.53) and standard deviation (58.395, 57.12, 57.375) taken off.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred.backbones.converted import Converter, register_converter
from keras_densepred.backbones.cspnet import CSPNetBackbone
from keras_densepred.convert.state import LoadReport, assign_state, read_checkpoint

# Layer names of this package -> module names of timm's, first match wins. `stage` and `block`
# count from one here, from zero there.
_MODULES = [
    (r"stem", "stem.conv1"),
    (r"stage(?P<stage>\d+)_down", "stages.{stage}.conv_down"),
    (r"stage(?P<stage>\d+)_(?:bypass|branch)", "stages.{stage}.conv_exp"),
    (r"stage(?P<stage>\d+)_block(?P<block>\d+)_reduce", "stages.{stage}.blocks.{block}.conv1"),
    (r"stage(?P<stage>\d+)_block(?P<block>\d+)_spatial", "stages.{stage}.blocks.{block}.conv2"),
    (r"stage(?P<stage>\d+)_block(?P<block>\d+)_expand", "stages.{stage}.blocks.{block}.conv3"),
    (r"stage(?P<stage>\d+)_transition", "stages.{stage}.conv_transition_b"),
    (r"stage(?P<stage>\d+)_fuse", "stages.{stage}.conv_transition"),
]
_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_HEAD = "head.fc."
# Layer names of KerasHub's copy -> timm's module, first match wins.
_KERAS_HUB_LAYERS = [
    (r"csp_stem_(?:conv|bn)_0", r"stem.conv1"),
    (r"stage_(\d+)_csp_(?:conv_down_1|bn_1)", r"stages.\1.conv_down"),
    (r"stage_(\d+)_csp_(?:conv_exp|bn_2)", r"stages.\1.conv_exp"),
    (r"stage_(\d+)_block_(\d+)_[a-z]+_block_(?:conv|bn)_(\d)", r"stages.\1.blocks.\2.conv\3"),
    (r"stage_(\d+)_csp_(?:conv_transition_b|transition_b_bn)", r"stages.\1.conv_transition_b"),
    (r"stage_(\d+)_csp_(?:conv_transition|transition_bn)", r"stages.\1.conv_transition"),
]


def load_state(model: keras.Model, state: Mapping[str, np.ndarray]) -> LoadReport:
    """Loads timm's weights into a `CSPNetBackbone` or a `CSPNetImageClassifier` around one.

    Nothing is assigned unless everything fits.

    Args:
        model: a network of `flavour="timm"`.
        state: timm's key names to arrays in PyTorch's layout: convolutions (out, in, height,
            width), linear layers (out, in).

    Returns:
        A `LoadReport`. The classification head is skipped where `model` has none.

    Raises:
        ValueError: if the model is of another kind or flavour, or the state lacks a key, has an
            unknown one, or has an array of another shape. The message names them.
    """
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return assign_state(
        model,
        timm_keys(model),
        state,
        is_optional=lambda key: key.startswith(_HEAD),
        depthwise=False,
    )


def from_keras_hub(network: keras.Model, options: Mapping[str, Any]) -> CSPNetBackbone:
    """Builds the backbone that KerasHub's CSPNet, a copy of timm's, has the weights of.

    Args:
        network: a `keras_hub.models.CSPNetBackbone`, such as of `"csp_resnext_50_ra_imagenet"`.
        options: more arguments of `CSPNetBackbone`.

    Raises:
        ValueError: if it is none of the three networks that timm has too.
    """
    state = keras_hub_state(network)
    backbone = CSPNetBackbone.from_preset(preset_of(state), **options)
    load_state(backbone, state)
    return backbone


def from_timm(architecture: str, file: str | Path, options: Mapping[str, Any]) -> CSPNetBackbone:
    """Builds the backbone of timm's `cspdarknet53`, `cspresnet50` or `cspresnext50`.

    Args:
        architecture: timm's name; the weights tell it too.
        file: a checkpoint that `convert.state.read_checkpoint` reads.
        options: more arguments of `CSPNetBackbone`.

    Raises:
        ValueError: if the file's weights are of no such network.
    """
    state = read_checkpoint(file)
    backbone = CSPNetBackbone.from_preset(preset_of(state), **options)
    load_state(backbone, state)
    return backbone


def keras_hub_state(network: keras.Model) -> dict[str, np.ndarray]:
    """The weights of KerasHub's CSPNet by timm's keys, in PyTorch's layout."""
    state = {}
    for weight in network.weights:
        layer, name = weight.path.split("/")[-2:]
        for pattern, module in _KERAS_HUB_LAYERS:
            match = re.fullmatch(pattern, layer)
            if match is not None:
                value = keras.ops.convert_to_numpy(weight)
                if value.ndim == 4:
                    value = value.transpose(3, 2, 0, 1)
                kind = "conv" if name == "kernel" else "bn"
                key = match.expand(module)
                state[f"{key}.{kind}.{_WEIGHTS[name]}"] = value
                break
    return state


def timm_keys(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """timm's key of every weight of `model`.

    Returns:
        Key to one weight here, or to two that lie behind each other in timm's output channels: a
        stage's bypass and branch are one convolution there.

    Raises:
        ValueError: if the model is not a CSPNet of residual blocks of `flavour="timm"`.
    """
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, CSPNetBackbone):
        raise ValueError(
            f"{model.name} is a {type(model).__name__}; `convert.timm` serves CSPNetBackbone and "
            "CSPNetImageClassifier around one."
        )
    if backbone.flavour != "timm":
        raise ValueError(
            f'{model.name} is of the flavour "{backbone.flavour}", which computes other outputs '
            'from timm\'s weights: build a preset "..._timm".'
        )
    keys: dict[str, list[keras.Variable]] = {}
    for name in (*backbone.convolutions, "head_logits"):
        if name == "head_logits":
            layers = {name: _HEAD[:-1]} if model is not backbone else {}
        else:
            module = _module_name(name.removesuffix("_conv"))
            layers = {name: f"{module}.conv", name.replace("_conv", "_norm"): f"{module}.bn"}
        for layer, module in layers.items():
            for weight in model.get_layer(layer).weights:
                keys.setdefault(f"{module}.{_WEIGHTS[weight.name]}", []).append(weight)
    return keys


def preset_of(state: Mapping[str, np.ndarray]) -> str:
    """The preset whose architecture a state of timm's has.

    Raises:
        ValueError: if it belongs to none of the three.
    """
    first = "stages.0.blocks.0.conv2.conv.weight"
    presets = {(64, 32): "csp_darknet_53_timm", (64, 64): "csp_resnet_50_timm"}
    presets[128, 4] = "csp_resnext_50_timm"
    preset = presets.get(tuple(np.shape(state.get(first, ())))[:2])
    if preset is None or "stages.0.conv_exp.conv.weight" not in state:
        raise ValueError(
            "These are not the weights of timm's cspdarknet53, cspresnet50 or cspresnext50, the "
            "only ones of timm's that this package has networks for."
        )
    return preset


def _module_name(name: str) -> str:
    for pattern, module in _MODULES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            fields = {field: int(value) - 1 for field, value in match.groupdict().items()}
            return module.format(**fields)
    raise ValueError(f"timm's networks have no layer {name!r}: its blocks are of another kind.")


register_converter(CSPNetBackbone, Converter(from_keras_hub, from_timm))
