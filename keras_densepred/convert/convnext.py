"""Weights of keras.applications' and timm's ConvNeXt.

The norms behind the stages (`stage_norms`), which detectors add, stay as they are; the classifier's
is skipped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred.backbones.converted import Converter, register_converter
from keras_densepred.backbones.convnext import ConvNeXtBackbone
from keras_densepred.convert.state import LoadReport, assign_state, read_checkpoint

# Layer names here -> timm's modules; `stage` and `block` count from one here, from zero there.
_MODULES = [
    (r"stem_conv", "stem.0"),
    (r"stem_norm", "stem.1"),
    (r"stage(?P<stage>\d)_downsample_norm", "stages.{stage}.downsample.0"),
    (r"stage(?P<stage>\d)_downsample_conv", "stages.{stage}.downsample.1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_dwconv", "stages.{stage}.blocks.{block}.conv_dw"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_norm", "stages.{stage}.blocks.{block}.norm"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_pwconv1", "stages.{stage}.blocks.{block}.mlp.fc1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_pwconv2", "stages.{stage}.blocks.{block}.mlp.fc2"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_layer_scale", "stages.{stage}.blocks.{block}"),
]
# keras.applications' layers, without the network's name -> timm's modules.
_KERAS_LAYERS = [
    (r"stem_conv", r"stem.0"),
    (r"stem_layernorm", r"stem.1"),
    (r"downsampling_layernorm_(\d)", r"downsample \1 0"),
    (r"downsampling_conv_(\d)", r"downsample \1 1"),
    (r"stage_(\d)_block_(\d+)_depthwise_conv", r"stages.\1.blocks.\2.conv_dw"),
    (r"stage_(\d)_block_(\d+)_layernorm", r"stages.\1.blocks.\2.norm"),
    (r"stage_(\d)_block_(\d+)_pointwise_conv_(\d)", r"stages.\1.blocks.\2.mlp.fc\3"),
    (r"stage_(\d)_block_(\d+)_layer_scale", r"stages.\1.blocks.\2"),
]
_WEIGHTS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_CLASSIFIER = ("head.", "norm_pre.")


def load_timm(backbone: ConvNeXtBackbone, state: Mapping[str, np.ndarray]) -> LoadReport:
    """Loads a state of timm's ConvNeXt; nothing is assigned unless everything fits.

    Args:
        backbone: of the same depths and widths.
        state: timm's key names (`"stages.0.blocks.0.conv_dw.weight"`) to arrays in PyTorch's
            layout.

    Returns:
        A `LoadReport`; the classifier is skipped.

    Raises:
        ValueError: if the state has other keys than `backbone` needs or other shapes. The message
            names them.
    """
    targets = {}
    for weight in backbone.weights:
        layer, name = weight.path.split("/")[-2:]
        module = _module(layer)
        if module is not None:
            name = "gamma" if layer.endswith("_layer_scale") else _WEIGHTS[name]
            targets[f"{module}.{name}"] = (weight,)
    return assign_state(
        backbone, targets, state, is_optional=lambda key: key.startswith(_CLASSIFIER)
    )


def keras_applications_state(network: keras.Model) -> dict[str, np.ndarray]:
    """The weights of keras.applications' ConvNeXt by timm's keys, in PyTorch's layout."""
    state = {}
    for weight in network.weights:
        layer, name = weight.path.split("/")[-2:]
        module = _module_of_keras(layer.removeprefix(f"{network.name}_"))
        if module is None:  # the classifier's norm, and constants of the rescaling
            continue
        value = keras.ops.convert_to_numpy(weight)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        name = "gamma" if layer.endswith("_layer_scale") else _WEIGHTS[name]
        state[f"{module}.{name}"] = value.T if value.ndim == 2 else value
    return state


def from_keras_hub(network: keras.Model, options: Mapping[str, Any]) -> ConvNeXtBackbone:
    """Builds the backbone that a ConvNeXt of keras.applications has the weights of.

    Args:
        network: `keras.applications.ConvNeXtTiny(include_top=False)` and its like.
        options: more arguments of `ConvNeXtBackbone`.
    """
    return _of(keras_applications_state(network), options)


def from_timm(architecture: str, file: str | Path, options: Mapping[str, Any]) -> ConvNeXtBackbone:
    """Builds the backbone of timm's `convnext_tiny` and its like.

    Args:
        architecture: timm's name; the weights tell it too.
        file: a checkpoint that `convert.state.read_checkpoint` reads.
        options: more arguments of `ConvNeXtBackbone`.

    Raises:
        ValueError: if the file's weights are of no ConvNeXt.
    """
    return _of(read_checkpoint(file), options)


def _of(state: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> ConvNeXtBackbone:
    depths, widths = [], []
    for stage in range(4):
        kernels = [
            k for k in state if re.fullmatch(rf"stages\.{stage}\.blocks\.\d+\.conv_dw\.weight", k)
        ]
        if not kernels:
            raise ValueError("These are not the weights of a ConvNeXt: they lack a stage.")
        depths.append(len(kernels))
        widths.append(state[kernels[0]].shape[0])
    backbone = ConvNeXtBackbone(**{"depths": depths, "widths": widths, **options})
    load_timm(backbone, state)
    return backbone


def _module(layer: str) -> str | None:
    for pattern, module in _MODULES:
        match = re.fullmatch(pattern, layer)
        if match is not None:
            fields = {field: int(value) - 1 for field, value in match.groupdict().items()}
            return module.format(**fields)
    return None


def _module_of_keras(layer: str) -> str | None:
    for pattern, module in _KERAS_LAYERS:
        match = re.fullmatch(pattern, layer)
        if match is not None:
            found = match.expand(module)
            if found.startswith("downsample"):
                _, block, part = found.split()
                return f"stages.{int(block) + 1}.downsample.{part}"
            return found
    return None


register_converter(ConvNeXtBackbone, Converter(from_keras_hub, from_timm))
