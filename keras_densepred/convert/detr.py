"""Deformable DETR's weights in MMDetection's names, whose models the CEDNet authors' are."""

import re
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from keras_densepred.convert import mmdetection

HEAD = "bbox_head"

# See `mmdetection.authors_targets`; `{n}` counts layers.
_ENCODER = "transformer.encoder.layers.{n}."
_DECODER = "transformer.decoder.layers.{n}."
_PATTERNS = [
    (r"encoder/level_embeds", "transformer.level_embeds"),
    (r"encoder/layer_(?P<n>\d+)/attention/(?P<part>\w+)", _ENCODER + "attentions.0.{part}"),
    (r"encoder/layer_(?P<n>\d+)/attention_norm", _ENCODER + "norms.0"),
    (r"encoder/layer_(?P<n>\d+)/feed_forward/(?P<ffn>\w+)", _ENCODER + "ffns.0.{ffn}"),
    (r"encoder/layer_(?P<n>\d+)/feed_forward_norm", _ENCODER + "norms.1"),
    (
        r"decoder_(?P<n>\d+)/self_attention/(query|key|value)_proj",
        _DECODER + "attentions.0.attn.in_proj",
    ),
    (r"decoder_(?P<n>\d+)/self_attention/output_proj", _DECODER + "attentions.0.attn.out_proj"),
    (r"decoder_(?P<n>\d+)/self_attention_norm", _DECODER + "norms.0"),
    (r"decoder_(?P<n>\d+)/cross_attention/(?P<part>\w+)", _DECODER + "attentions.1.{part}"),
    (r"decoder_(?P<n>\d+)/cross_attention_norm", _DECODER + "norms.1"),
    (r"decoder_(?P<n>\d+)/feed_forward/(?P<ffn>\w+)", _DECODER + "ffns.0.{ffn}"),
    (r"decoder_(?P<n>\d+)/feed_forward_norm", _DECODER + "norms.2"),
    (r"head_(?P<n>\d+)/classes", "cls_branches.{n}"),
    (r"head_(?P<n>\d+)/box_(?P<linear>\d)", "reg_branches.{n}.{linear}"),
    (r"query_embedding", "query_embedding.weight"),
    (
        r"(?P<part>reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)",
        "transformer.{part}",
    ),
]
_ALIAS = re.compile(r"((?:cls|reg)_branches)\.(\d+)(\..*)")


def authors_targets(weights: Iterable[keras.Variable]) -> dict[str, tuple[keras.Variable, ...]]:
    """The authors' key of each weight of a `models.detr.DetectionTransformer`.

    See `mmdetection.authors_targets`.
    """
    return mmdetection.authors_targets(weights, _PATTERNS, HEAD)


def without_aliases(state: Mapping[str, np.ndarray], branches: int) -> dict[str, np.ndarray]:
    """A state without the copies of heads that all layers of the decoder share.

    Args:
        state: the authors' keys, which repeat such heads for every layer.
        branches: heads that the model has.

    Raises:
        ValueError: if the copies differ, as they do where boxes are refined.
    """
    kept = {}
    for key, value in state.items():
        match = _ALIAS.search(key)
        if match is None or int(match[2]) < branches:
            kept[key] = value
            continue
        first = key[: match.start()] + f"{match[1]}.{branches - 1}{match[3]}"
        if first in state and not np.array_equal(np.asarray(state[first]), np.asarray(value)):
            raise ValueError(
                f"{key!r} differs from {first!r}, and this model has one head for all layers: "
                "these are weights of a detector with `box_refine=True`."
            )
    return kept
