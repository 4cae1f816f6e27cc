"""The authors' Mask2Former loads whole: every key has a place, every weight a key."""

import json

import keras
import numpy as np
import pytest

from keras_densepred import backbones, convert, models
from tests.convert.detr_state import make_state

COUNTS = {"next_tiny": ("cednet_next_tiny", 50_545_553), "res50": ("cednet_resnet50", 51_286_673)}
HEAD = 19_827_217  # on CEDNet-NeXt-T's channels


def parameters(model):
    """Without the statistics of batch norms, which are no parameters."""
    weights = (w for w in model.weights if "seed" not in w.path and "moving_" not in w.path)
    return sum(int(np.prod(weight.shape)) for weight in weights)


def whole(name):
    backbone = backbones.load_backbone(COUNTS[name][0])
    return models.Mask2Former(backbone, num_classes=80)


def keys_of(name, golden):
    path = golden / "mask2former" / f"mask2former_cednet_{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name", [pytest.param("next_tiny"), pytest.param("res50", marks=pytest.mark.slow)]
)
def test_whole_models(name, golden):
    model = whole(name)
    assert parameters(model) == COUNTS[name][1]
    if name == "next_tiny":
        assert parameters(model) - parameters(model.backbone) == HEAD
    state = make_state(keys_of(name, golden))
    report = convert.cednet.load_state(model, state)
    assert not report.skipped
    weights = {key.removeprefix("backbone.") for key in state if not key.endswith("tracked")}
    assert set(report.loaded) == weights
    decoder = model.get_layer("mask_decoder")
    kernels = [
        getattr(decoder.decoder_layers[8].cross_attention, f"{part}_proj").kernel
        for part in ("query", "key", "value")
    ]
    packed = np.concatenate([keras.ops.convert_to_numpy(kernel).T for kernel in kernels])
    key = "panoptic_head.transformer_decoder.layers.8.attentions.0.attn.in_proj_weight"
    np.testing.assert_array_equal(packed, state[key])
    if name == "res50":
        return
    stem = keras.ops.convert_to_numpy(model.backbone.get_layer("stem_conv1").bias)
    np.testing.assert_array_equal(stem, state["backbone.stem.0.bias"])
    del state["panoptic_head.query_feat.weight"]
    with pytest.raises(ValueError, match=r"missing keys panoptic_head\.query_feat\.weight"):
        convert.cednet.load_state(model, state)


@pytest.mark.backend_free
@pytest.mark.slow
def test_counts_on_convnext():
    backbone = backbones.load_backbone("convnext_tiny")
    assert parameters(models.Mask2Former(backbone, num_classes=80)) == 47_722_417
