"""Names of UperNet's heads in MMSegmentation, with which the CEDNet authors segment.

`convert.cednet` loads whole segmenters with them; their bodies are CEDNets.
"""

import re

import keras

BODY = "backbone."  # what their keys of a body begin with

# Layer names here -> module names there, first match wins. `{level}` counts from the finest.
_UNITS = {"conv": "conv", "norm": "bn"}
_PLACES = {"conv": 0, "norm": 1}
_UPER = [
    (r"pool(?P<pool>\d+)_(?P<unit>conv|norm)", "decode_head.psp_modules.{pool}.1.{unit}"),
    (r"bottleneck_(?P<unit>conv|norm)", "decode_head.bottleneck.{unit}"),
    (r"lateral_p(?P<level>\d)_(?P<unit>conv|norm)", "decode_head.lateral_convs.{level}.{unit}"),
    (r"fpn_p(?P<level>\d)_(?P<unit>conv|norm)", "decode_head.fpn_convs.{level}.{unit}"),
    (r"merge_(?P<unit>conv|norm)", "decode_head.fpn_bottleneck.{unit}"),
]
# Of `CEDHead`, whose encoder and decoder count as the body's.
_CED = [
    (r"pool(?P<pool>\d+)_(?P<unit>conv|norm)", "backbone.psp_modules.{pool}.1.{unit}"),
    (r"bottleneck_(?P<unit>conv|norm)", "backbone.bottleneck.{unit}"),
    (r"merge_(?P<unit>conv|norm)", "decode_head.head_bottleneck.{unit}"),
    (
        r"last_encoder_c(?P<map>\d)_block(?P<n>\d+)_layer_scale",
        "backbone.last_encoder.encoder.{map}.{n}",
    ),
    (
        r"last_encoder_c(?P<map>\d)_block(?P<n>\d+)_(?P<layer>dwconv|norm)(?P<part>[12])",
        "backbone.last_encoder.encoder.{map}.{n}.dwconv{part}.{layer}",
    ),
    (
        r"last_encoder_c(?P<map>\d)_block(?P<n>\d+)_(?P<layer>\w+)",
        "backbone.last_encoder.encoder.{map}.{n}.{layer}",
    ),
    (
        r"last_encoder_downsample(?P<n>\d)_(?P<place>conv|norm)",
        "backbone.last_encoder.encoder_downsample.{n}.{place}",
    ),
    (r"reduce_p(?P<map>\d)_(?P<place>conv|norm)", "backbone.reduce_convs.{map}.{place}"),
    (r"last_decoder_upsample(?P<n>\d)_conv", "backbone.last_decoder.decoder_upsample.{n}.0"),
    (r"last_decoder_norm(?P<n>\d)", "backbone.last_decoder.decoder_norm.{n}"),
]
_BOTH = [
    (r"logits", "decode_head.conv_seg"),
    (r"auxiliary_logits", "auxiliary_head.conv_seg"),
    (r"auxiliary_(?P<unit>conv|norm)", "auxiliary_head.convs.0.{unit}"),
]
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def authors_keys_of_heads(model: keras.Model) -> dict[str, keras.Variable]:
    """The authors' key of every weight of a `models.UperNet` outside of its backbone.

    Raises:
        ValueError: if there is no key for a weight.
    """
    body = {id(weight) for weight in model.backbone.weights}
    levels = [int(name[1:]) for name in model.backbone.pyramid_outputs]
    patterns = (_UPER if model.head == "uper" else _CED) + _BOTH
    keys = {}
    for weight in model.weights:
        if id(weight) in body or "seed_generator" in weight.path:
            continue
        *_, layer, leaf = weight.path.split("/")
        module = _module(layer, patterns, model.pool_sizes, max(2, min(levels)))
        leaf = "gamma" if layer.endswith("_layer_scale") else _LEAVES[leaf]
        keys[f"{module}.{leaf}"] = weight
    return keys


def _module(layer: str, patterns: list, pool_sizes: tuple[int, ...], finest: int) -> str:
    for pattern, template in patterns:
        match = re.fullmatch(pattern, layer)
        if match is None:
            continue
        fields = match.groupdict()
        numbers = {
            "pool": lambda text: pool_sizes.index(int(text)),
            "level": lambda text: int(text) - finest,
            "map": lambda text: int(text) - 3,
            "n": lambda text: int(text) - 1,
            "unit": _UNITS.__getitem__,
            "place": _PLACES.__getitem__,
        }
        if "part" in fields:
            numbers["layer"] = {"dwconv": 0, "norm": 1}.__getitem__
        return template.format(
            **{name: numbers.get(name, str)(text) for name, text in fields.items()}
        )
    raise ValueError(f"The layer {layer!r} is not one of UperNet's on a CEDNet.")
