"""timm's weights in our networks give timm's outputs.

`tests/golden/csp/*.npz` hold of the maps of strides 4, 8, 16 and 32 every 8th, 8th, 4th and 2nd
channel, of timm 1.0.31's networks; those of cspdarknet53 are of KerasHub 0.32.0's network with its
own converter, which equals timm's.
"""

import keras
import numpy as np
import pytest

from keras_densepred import CSPNetBackbone, CSPNetImageClassifier, PeleeNetBackbone
from keras_densepred.convert.timm import load_state, preset_of
from tests.convert.small_states import timm_state
from tests.convert.timm_state import key_list, make_images, make_state
from tests.networks import mini_csp

STEPS = {"P2": 8, "P3": 8, "P4": 4, "P5": 2}
PRESETS = {
    "cspresnext50": "csp_resnext_50_timm",
    "cspresnet50": "csp_resnet_50_timm",
    "cspdarknet53": "csp_darknet_53_timm",
}
JAX = keras.config.backend() == "jax"


def classifier(name):
    return CSPNetImageClassifier(CSPNetBackbone.from_preset(PRESETS[name]), num_classes=1000)


@pytest.mark.parametrize(
    "name",
    [
        "cspresnext50",
        *(
            pytest.param(name, marks=pytest.mark.slow if JAX else [])
            for name in ("cspresnet50", "cspdarknet53")
        ),
    ],
)
def test_outputs_equal_timms(name, golden):
    keys = key_list(golden / "csp" / "keys" / f"{name}.json")
    model = classifier(name)
    report = load_state(model, make_state(keys))
    assert set(report.loaded) == {key for key in keys if not key.endswith("num_batches_tracked")}
    assert report.skipped == ()
    taps = {**model.backbone.pyramid_outputs, "logits": model.output}
    outputs = keras.Function(model.inputs, taps)([make_images()])
    with np.load(golden / "csp" / f"{name}.npz") as file:
        assert set(file.files) == set(taps)
        for tap in taps:
            ours = keras.ops.convert_to_numpy(outputs[tap])
            if tap in STEPS:
                ours = ours.transpose(0, 3, 1, 2)[:, :: STEPS[tap]]
            np.testing.assert_allclose(ours, file[tap], atol=5e-5, err_msg=tap)


@pytest.mark.backend_free
def test_bypass_and_branch_are_the_rows_of_one_convolution():
    model = CSPNetImageClassifier(mini_csp("residual", flavour="timm"), num_classes=3)
    state = timm_state(model)
    load_state(model, state)
    bypass, branch = (model.get_layer(f"stage3_{n}_conv").kernel for n in ("bypass", "branch"))
    assert np.all(keras.ops.convert_to_numpy(bypass) == 0.25)
    assert np.all(keras.ops.convert_to_numpy(branch) == 0.5)
    backbone = mini_csp("residual", flavour="timm")
    report = load_state(backbone, state)
    assert report.skipped == ("head.fc.weight", "head.fc.bias")


@pytest.mark.backend_free
def test_what_does_not_fit_is_named_and_nothing_is_assigned():
    backbone = mini_csp("residual", flavour="timm")
    before = backbone.get_weights()
    state = timm_state(backbone)
    renamed = {key.replace("stem.conv1", "stem.conv7"): value for key, value in state.items()}
    with pytest.raises(ValueError, match=r"missing keys stem.conv1.conv.*keys stem.conv7.conv"):
        load_state(backbone, renamed)
    wrong = state | {"stages.3.conv_exp.bn.bias": np.zeros(5, np.float32)}
    with pytest.raises(ValueError, match=r"'stages.3.conv_exp.bn.bias' has the shape \(5,\)"):
        load_state(backbone, wrong)
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.get_weights(), strict=True))
    with pytest.raises(ValueError, match=r'is of the flavour "darknet".*build a preset "..._timm"'):
        load_state(mini_csp("residual"), state)
    with pytest.raises(ValueError, match=r"is a PeleeNetBackbone; `convert\.timm` serves"):
        load_state(PeleeNetBackbone(), state)
    with pytest.raises(ValueError, match="no layer 'stage1_block1_first'"):
        load_state(mini_csp("residual", flavour="timm", block="basic", groups=1), state)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", PRESETS)
def test_the_preset_of_a_state(name, golden):
    keys = key_list(golden / "csp" / "keys" / f"{name}.json")
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    assert preset_of(state) == PRESETS[name]
    with pytest.raises(ValueError, match="not the weights of timm's cspdarknet53"):
        preset_of({"stem.conv1.conv.weight": state["stem.conv1.conv.weight"]})
