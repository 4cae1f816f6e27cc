"""Weights of the CEDNet authors' PyTorch code.

Serves the checkpoints of their classification (main.py), detection (mmdet) and segmentation (mmseg)
code bases. Only key names and array layouts carry over; see CEDNET.md, part 3.
"""

import re
from collections.abc import Mapping

import keras
import numpy as np

from keras_densepred.convert import detr, mask2former, upernet
from keras_densepred.convert.state import LoadReport, assign_state, read_checkpoint

__all__ = ["LoadReport", "authors_keys", "load_state", "read_checkpoint"]

# Layer names of this package -> module names of the authors', first match wins. `{n-1}` counts
# from zero what is named from one here.
_MODULES = [
    (r"stem_conv1", "stem.0"),
    (r"stem_norm1", "stem.1"),
    (r"stem_conv2", "stem.3"),
    (r"stem_norm2", "stem.4"),
    (r"p2_block(?P<block>\d+)_(?P<part>\w+)", "stages.0.{block}.{part}"),
    (r"p2_downsample_conv", "stages.0.3.0"),
    (r"p2_downsample_norm", "stages.0.3.1"),
    (
        r"stage(?P<stage>\d+)_encoder_c(?P<level>[345])_block(?P<block>\d+)_(?P<part>\w+)",
        "stages.{stage}.0.encoder.{level}.{block}.{part}",
    ),
    (
        r"stage(?P<stage>\d+)_encoder_downsample(?P<n>\d+)_(?P<unit>conv|norm)",
        "stages.{stage}.0.encoder_downsample.{n}.{unit}",
    ),
    (
        r"stage(?P<stage>\d+)_decoder_upsample(?P<n>\d+)_conv",
        "stages.{stage}.1.decoder_upsample.{n}.0",
    ),
    (r"stage(?P<stage>\d+)_decoder_norm(?P<n>\d+)", "stages.{stage}.1.decoder_norm.{n}"),
    (
        r"stage(?P<stage>\d+)_decoder_lateral(?P<n>\d+)_(?P<part>\w+)",
        "stages.{stage}.1.lateral.{n}.{part}",
    ),
    (
        r"stage(?P<stage>\d+)_decoder_c(?P<decoder>[34])_block(?P<block>\d+)_(?P<part>\w+)",
        "stages.{stage}.1.decoder.{decoder}.{block}.{part}",
    ),
    (
        r"stage(?P<stage>\d+)_decoder_output(?P<level>[345])_(?P<unit>conv|norm)",
        "stages.{stage}.1.decoder_conv.{level}.{unit}",
    ),
    (r"pyramid_p2_(?P<unit>conv|norm)", "reduce_c2.{unit}"),
    (r"pyramid_p2_merge_norm", "merge_c2.0"),
    (r"pyramid_p2_merge_conv", "merge_c2.1"),
    (r"pyramid_p(?P<level>[345])_(?P<unit>conv|norm)", "reduce_convs.{level}.{unit}"),
    (r"pyramid_p(?P<added>\d+)_(?P<unit>conv|norm)", "add_blocks.{added}.{unit}"),
    (r"head(?P<n>\d+)_(?P<unit>conv|norm)", "final_layers.{n}.{unit}"),
    (r"head(?P<n>\d+)_pooled_norm", "norms.{n}"),
    (r"head(?P<n>\d+)_logits", "heads.{n}"),
]

# Layers of a block, for each token mixer: name here -> name there.
_PARTS = {
    "next": {
        "dwconv1": "dwconv1.0",
        "norm1": "dwconv1.1",
        "dwconv2": "dwconv2.0",
        "norm2": "dwconv2.1",
        "layer_scale": "",
    },
    "resnet": {
        "conv1": "conv1.0",
        "norm1": "conv1.1",
        "conv2": "conv2.0",
        "norm2": "conv2.1",
        "conv3": "conv3.0",
        "norm3": "conv3.1",
        "dwconv": "dwconv1.0",
        "dwconv_norm": "dwconv1.1",
    },
    "swin": {
        "attention": "attn",
        "attention_norm": "norm_act1.0",
        "dwconv": "dwconv2",
        "dwconv_norm": "norm_act2.0",
    },
    "cswin": {"attention": ""},
}

# Weights of a layer: name here -> name there.
_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "relative_position_bias": "relative_position_bias_table",
    "lepe1_kernel": "attns.0.get_v.weight",
    "lepe1_bias": "attns.0.get_v.bias",
    "lepe2_kernel": "attns.1.get_v.weight",
    "lepe2_bias": "attns.1.get_v.bias",
}

_BUFFERS = ("relative_position_index", "num_batches_tracked")  # recomputed, not needed

# Parts of the authors' models around the body: first component of a key -> name of the part.
_CLASSIFIER = ("final_layers", "norms", "heads")
_PYRAMID = ("reduce_convs", "add_blocks", "reduce_c2", "merge_c2")
_DETECTION_HEAD = detr.HEAD
_CED_HEAD = ("last_encoder", "last_decoder", "psp_modules", "bottleneck")


def load_state(model: keras.Model, state: Mapping[str, np.ndarray]) -> LoadReport:
    """Loads the authors' weights into a backbone, a classifier, a pyramid or a whole model.

    Nothing is assigned unless everything fits.

    Args:
        model: `CEDNetBackbone`, `DetectionPyramid` around one, `CEDNetImageClassifier`, or
            `DeformableDETR` on such a pyramid with `max_level=6`, or `UperNet` or `Mask2Former` on
            a `CEDNetBackbone`.
        state: the authors' key names (without `module.`; with or without `backbone.`, for `UperNet`
            with it) to arrays in PyTorch's layout: convolutions (out, in, height, width), linear
            layers (out, in). For a whole model those of its heads, too
            (`read_checkpoint(path, heads=True)`).

    Returns:
        A `LoadReport`. Heads and pyramid layers that `model` does not have are skipped.

    Raises:
        ValueError: if the state belongs to a model this package does not build, lacks a key,
            has an unknown one, or has an array of another shape. The message names them.
    """
    state = {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] not in _BUFFERS}
    if getattr(model, "task", None) == "segmentation" and not mask2former.is_one(model):
        return _load_segmenter(model, state)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    if mask2former.is_one(model):
        return mask2former.load_state(model, state, authors_keys(model.plain_backbone))
    _refuse_ced_head(state)
    transformer = getattr(model, "transformer", None)
    pyramid = model if transformer is None else model.backbone
    targets = {key: (weight,) for key, weight in authors_keys(pyramid).items()}
    optional = {*_CLASSIFIER, *_PYRAMID, _DETECTION_HEAD, mask2former.HEAD}
    if transformer is not None:
        state = detr.without_aliases(state, len(transformer.heads))
        targets |= detr.authors_targets(transformer.weights)
        optional.remove(_DETECTION_HEAD)
    return assign_state(
        model,
        targets,
        state,
        is_optional=lambda key: key.split(".")[0] in optional,
        advice="Choose the preset (and `final_decoder`, `num_stages`) the weights were made with.",
    )


def _load_segmenter(model: keras.Model, state: Mapping[str, np.ndarray]) -> LoadReport:
    """Loads a whole segmenter; an auxiliary head that the model lacks is skipped."""
    keys = {upernet.BODY + key: weight for key, weight in authors_keys(model.backbone).items()}
    keys |= upernet.authors_keys_of_heads(model)
    return assign_state(
        model,
        {key: (weight,) for key, weight in keys.items()},
        state,
        is_optional=lambda key: key.startswith("auxiliary_head."),
        advice="Choose the preset, head and number of classes the weights were made with.",
    )


def authors_keys(model: keras.Model) -> dict[str, keras.Variable]:
    """The authors' key of every weight of `model`; random states are left out.

    Raises:
        ValueError: if a layer of the model is not one of CEDNet's.
    """
    mixer = _backbone_of(model).token_mixer
    keys = {}
    for layer in model.layers:
        weights = [w for w in layer.weights if "seed_generator" not in w.path]
        if not weights:
            continue
        module = _module_name(layer.name, mixer)
        for weight in weights:
            # Dense layers inside an attention layer have a path of their own.
            *inner, name = weight.path.split("/")[1:]
            name = name if layer.name.endswith("_layer_scale") else _WEIGHTS[name]
            keys[".".join(part for part in (module, *inner, name) if part)] = weight
    return keys


def _backbone_of(model):
    backbone = getattr(model, "backbone", model)
    if not hasattr(backbone, "token_mixer"):
        raise ValueError(
            f"{model.name} is a {type(model).__name__}; `convert.cednet` serves CEDNetBackbone, "
            "DetectionPyramid around one, CEDNetImageClassifier, and DeformableDETR on the pyramid."
        )
    return backbone


def _module_name(layer_name: str, mixer: str) -> str:
    for pattern, module in _MODULES:
        match = re.fullmatch(pattern, layer_name)
        if match is None:
            continue
        fields = match.groupdict()
        for field, offset in (("block", 1), ("n", 1), ("level", 3), ("added", 6)):
            if field in fields:
                fields[field] = int(fields[field]) - offset
        if "decoder" in fields:  # the authors' decoders list C4 before C3
            fields["decoder"] = 4 - int(fields["decoder"])
        if "unit" in fields:
            fields["unit"] = {"conv": 0, "norm": 1}[fields["unit"]]
        if "part" in fields:
            fields["part"] = _PARTS[mixer].get(fields["part"], fields["part"])
        return module.format(**fields).rstrip(".")
    raise ValueError(f"The layer {layer_name!r} is not one of CEDNet's.")


def _refuse_ced_head(state) -> None:
    parts = sorted({key.split(".")[0] for key in state} & set(_CED_HEAD))
    if parts:
        raise ValueError(
            f"These are weights of the authors' CEDHead segmenter (parts {', '.join(parts)}): load "
            'them into `models.UperNet(backbone, num_classes, head="ced")`, whole, or keep only '
            "the keys that start with `stem.` and `stages.` to load the body."
        )
