"""Mask2Former's weights in MMDetection's names, whose models the CEDNet authors' are."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_densepred.convert import mmdetection
from keras_densepred.convert.state import LoadReport, assign_state

HEAD = "panoptic_head"

# See `mmdetection.authors_targets`; `{n}` counts layers.
_ENCODER = "pixel_decoder.encoder.layers.{n}."
_DECODER = "transformer_decoder.layers.{n}."
_PATTERNS = [
    (r"pixel_decoder/input_(?P<n>\d+)_(?P<unit>conv|norm)", "pixel_decoder.input_convs.{n}.{unit}"),
    (
        r"pixel_decoder/(?P<place>lateral|output)_(?P<unit>conv|norm)",
        "pixel_decoder.{place}_convs.0.{unit}",
    ),
    (r"pixel_decoder/mask_feature", "pixel_decoder.mask_feature"),
    (r"encoder/level_embeds", "pixel_decoder.level_encoding.weight"),
    (r"encoder/layer_(?P<n>\d+)/attention/(?P<part>\w+)", _ENCODER + "attentions.0.{part}"),
    (r"encoder/layer_(?P<n>\d+)/attention_norm", _ENCODER + "norms.0"),
    (r"encoder/layer_(?P<n>\d+)/feed_forward/(?P<ffn>\w+)", _ENCODER + "ffns.0.{ffn}"),
    (r"encoder/layer_(?P<n>\d+)/feed_forward_norm", _ENCODER + "norms.1"),
    (
        r"mask_decoder/layer_(?P<n>\d+)/(?P<attention>cross|self)_attention/(query|key|value)_proj",
        _DECODER + "attentions.{attention}.attn.in_proj",
    ),
    (
        r"mask_decoder/layer_(?P<n>\d+)/(?P<attention>cross|self)_attention/output_proj",
        _DECODER + "attentions.{attention}.attn.out_proj",
    ),
    (
        r"mask_decoder/layer_(?P<n>\d+)/(?P<attention>cross|self)_attention_norm",
        _DECODER + "norms.{attention}",
    ),
    (r"mask_decoder/layer_(?P<n>\d+)/feed_forward/(?P<ffn>\w+)", _DECODER + "ffns.0.{ffn}"),
    (r"mask_decoder/layer_(?P<n>\d+)/feed_forward_norm", _DECODER + "norms.2"),
    (r"mask_decoder/post_norm", "transformer_decoder.post_norm"),
    (r"mask_decoder/(?P<part>query_feat|query_embed|level_embed)", "{part}.weight"),
    (r"mask_decoder/classes", "cls_embed"),
    (r"mask_decoder/mask_(?P<linear>\d)", "mask_embed.{linear}"),
]


def is_one(model: keras.Model) -> bool:
    """Whether a model is a `models.Mask2Former` or `Mask2FormerSegmenter`."""
    return any(layer.name == "mask_decoder" for layer in model.layers)


def load_state(
    model: Any, state: Mapping[str, np.ndarray], backbone: Mapping[str, keras.Variable]
) -> LoadReport:
    """Loads all of a `models.Mask2Former`; nothing is assigned unless everything fits.

    Args:
        model: what the weights are for.
        state: the authors' keys, without `backbone.`, to arrays.
        backbone: the authors' key of each weight of the body.

    Raises:
        ValueError: if the state lacks a key, has an unknown one, or an array of another shape.
    """
    heads = [model.get_layer(name) for name in ("pixel_decoder", "mask_decoder")]
    return assign_state(
        model,
        {
            **{key: (weight,) for key, weight in backbone.items()},
            **authors_targets(weight for layer in heads for weight in layer.weights),
        },
        state,
        is_optional=lambda key: False,
        advice="Choose the preset, queries, layers and classes the weights were made with.",
    )


def authors_targets(weights: Iterable[keras.Variable]) -> dict[str, tuple[keras.Variable, ...]]:
    """The authors' key of each weight of the pixel decoder and of the queries.

    See `mmdetection.authors_targets`.
    """
    return mmdetection.authors_targets(weights, _PATTERNS, HEAD)
