"""CSPNet's backbones: structure, sizes, gradients, round trips, what they refuse."""

import json

import keras
import numpy as np
import pytest

from keras_densepred import CSPDenseNetBackbone, CSPNetBackbone, PeleeNetBackbone
from tests.networks import (
    CSP_MEMBERS,
    CSP_STAGES,
    images,
    mini_csp,
)
from tests.weights import gradients

JAX = keras.config.backend() == "jax"
OTHER_FORMS = {
    "timm": ("residual", dict(flavour="timm")),
    "dark": ("residual", dict(block="dark", activation="mish", groups=1)),
    "basic": ("residual", dict(block="basic", groups=1)),
    "next": ("pelee", dict(variant="next")),
    "sparse": ("pelee", dict(variant="sparse", pool="average", se=True, activation="swish")),
    "first": ("dense", dict(fusion="first", gamma=0.25)),
    "last": ("dense", dict(fusion="last", gamma=0.75)),
    "reference": (
        "dense",
        dict(depths=(1, 1, 1), bottlenecks=(4, 4, 4), ways=1, stem="plain", end_kernel=3),
    ),
    "partial": ("elastic", dict(partial=True)),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_forms_build_with_the_same_levels(form):
    member, changes = OTHER_FORMS[form]
    backbone = mini_csp(member, **changes)
    assert [info.stride for info in backbone.feature_info.values()] == [4, 8, 16, 32]
    assert backbone.pyramid_level_inputs.keys() == backbone.feature_info.keys()
    copy = type(backbone).from_config(backbone.get_config())
    assert [w.path for w in copy.weights] == [w.path for w in backbone.weights]


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=pytest.mark.slow if JAX else []) for f in OTHER_FORMS]
)
def test_forms_run_and_every_weight_gets_a_gradient(form):
    member, changes = OTHER_FORMS[form]
    backbone = mini_csp(member, **changes)
    batch = images(64, 64, batch=2)
    for weight, gradient in zip(
        backbone.trainable_variables, gradients(backbone, batch), strict=True
    ):
        assert gradient is not None and np.all(np.isfinite(gradient)), weight.path


@pytest.mark.slow_on("jax")
def test_every_weight_gets_a_gradient():
    backbone = mini_csp("dense")
    for weight, gradient in zip(
        backbone.trainable_variables, gradients(backbone, images(64, 64, batch=2)), strict=True
    ):
        assert gradient is not None and np.any(gradient != 0), weight.path


@pytest.mark.backend_free
def test_the_first_shortcut_of_resnets_is_partial():
    """CSPNET.md 2.8: 128 channels, to whose first 64 those of part 2 are added."""
    backbone = CSPNetBackbone.from_preset("csp_resnext_50")
    assert type(backbone.get_layer("stage1_block1_add")).__name__ == "PartialAdd"
    assert type(backbone.get_layer("stage1_block2_add")).__name__ == "Add"
    names = [layer.name for layer in backbone.layers]
    acts = [f"stage{n}_bypass_act" in names for n in (1, 2, 3, 4)]
    assert acts == [True, False, False, True]
    assert backbone.get_layer("stage2_block1_spatial_conv").groups == 32
    assert backbone.get_layer("stage2_down_conv").groups == 32


@pytest.mark.backend_free
def test_concats_start_with_the_branch_and_with_the_bypass_in_timm():
    for flavour, first in (("darknet", "stage2_transition_act"), ("timm", "stage2_bypass_norm")):
        concat = mini_csp("residual", flavour=flavour).get_layer("stage2_concat")
        assert concat.input[0]._keras_history.operation.name == first


@pytest.mark.backend_free
def test_sparse_layers_read_powers_of_two_back():
    backbone = PeleeNetBackbone.from_preset("sparse_peleenet")
    # Layer 8 of stage 3 reads 7, 6, 4 and the stage's input: 3 x 32 + 256 channels.
    assert backbone.get_layer("stage3_layer8_way1_reduce_conv").kernel.shape == (352, 64)
    assert backbone.get_layer("stage3_layer7_way1_reduce_conv").kernel.shape == (96, 64)
    assert backbone.get_layer("stage3_transition_conv").kernel.shape == (512, 512)


@pytest.mark.backend_free
def test_fusions_have_their_transitions():
    names = {
        fusion: {layer.name for layer in mini_csp("dense", fusion=fusion).layers}
        for fusion in ("both", "first", "last")
    }
    for fusion, first, last in (
        ("both", True, True),
        ("first", False, False),
        ("last", True, False),
    ):
        assert ("stage2_transition_conv" in names[fusion]) == first
        assert ("stage2_fuse_conv" in names[fusion]) == last
        assert ("stem_pooled_conv" in names[fusion]) == (fusion == "both")
        assert "end_conv" in names[fusion]
    assert {"stage2_bypass_pool", "stage2_branch_pool"} <= names["first"]
    assert "stage1_bypass_pool" not in names["first"]


@pytest.mark.backend_free
def test_layer_names_and_presets_are_pinned(golden):
    """Layer names and preset contents are public API: weights and user code refer to them."""
    pinned = json.loads((golden / "csp" / "public.json").read_text(encoding="utf-8"))
    assert pinned == public()


def public() -> dict:
    """What `tests/golden/csp/public.json` pins."""
    presets = {
        name: entry["config"]
        for cls, _ in CSP_MEMBERS.values()
        for name, entry in cls.architecture_presets().items()
    }
    layers = {member: [layer.name for layer in mini_csp(member).layers] for member in CSP_MEMBERS}
    return {"presets": presets, "layers": layers}


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "member,changes,message",
    [
        ("residual", {"block": "edge"}, "`block` must be one of"),
        ("residual", {"flavour": "onnx"}, "`flavour` must be one of"),
        ("residual", {"stem_stride": 2}, "`stem_stride` must be 1 or 4, got 2"),
        ("residual", {"stages": CSP_STAGES[:3]}, r"must have stride 32, but .* make it 16"),
        ("residual", {"stages": [{"depth": 0, "width": 8}]}, "`depth` and `width` must be"),
        ("residual", {"activation": "gelu"}, "`activation` must be one of"),
        ("pelee", {"depths": (1, 2, 3)}, "one positive number for each of 4 stages"),
        ("pelee", {"variant": "dense"}, "`variant` must be one of"),
        ("pelee", {"pool": "min"}, "`pool` must be one of"),
        ("dense", {"bottlenecks": (4, 4)}, "one positive number for each of 3 or 4 stages"),
        ("dense", {"gamma": 1.0}, "`gamma` must be between 0 and 1"),
        ("dense", {"fusion": "middle"}, "`fusion` must be one of"),
        ("dense", {"ways": 3}, "`ways` must be 1 or 2"),
        ("dense", {"stem": "resnet"}, "`stem` must be one of"),
        ("dense", {"end_kernel": 2}, "`end_kernel` must be 1 or 3"),
        ("elastic", {"depths": (1, 1)}, "`depths` must be four positive numbers"),
        ("elastic", {"image_shape": (40, 64, 3)}, "multiple"),
    ],
)
def test_bad_arguments_are_named(member, changes, message):
    with pytest.raises(ValueError, match=message):
        mini_csp(member, **changes)


@pytest.mark.backend_free
def test_the_defaults_are_named_networks():
    assert CSPDenseNetBackbone.architecture_presets()["csp_peleenet"]["config"] == {}
    assert PeleeNetBackbone.architecture_presets()["peleenet"]["config"] == {}
    default, named = CSPNetBackbone(), CSPNetBackbone.from_preset("csp_resnet_50")
    assert {**default.get_config(), "name": ""} == {**named.get_config(), "name": ""}
