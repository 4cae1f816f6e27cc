"""CEDNet: counts of CEDNET.md, presets, round trips, sizes and gradients."""

import functools
import json
import re
import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_densepred
from keras_densepred import CEDNetBackbone, DetectionPyramid
from tests.networks import CEDNET_TINY, max_difference, mini_cednet, trainable_parameters
from tests.weights import gradients, set_deterministic_weights

PRESETS = sorted(CEDNetBackbone.architecture_presets())

# CEDNET.md 1.15, "body only".
PARAMETERS = {
    "cednet_next_tiny": 30_718_336,
    "cednet_next_small": 53_067_008,
    "cednet_next_base": 91_114_496,
    "cednet_swin_tiny": 29_267_625,
    "cednet_resnet50": 31_541_376,
    "cednet_next_tiny_fpn": 28_965_808,
}
# The same for the released models without the final decoder.
PARAMETERS_NO_FINAL_DECODER = {
    "cednet_next_tiny_unet": 28_388_992,
    "cednet_next_tiny_hourglass": 27_822_144,
}
# CEDNET.md 1.15: RetinaNet in all, minus its head of 6,463,220 parameters.
RETINANET_MILLIONS = {
    "cednet_next_tiny": 38.635,
    "cednet_next_small": 60.984,
    "cednet_next_base": 99.122,
    "cednet_swin_tiny": 37.136,
    "cednet_cswin_tiny": 33.566,
    "cednet_resnet50": 39.385,
    "cednet_next_tiny_fpn": 36.846,
    "cednet_next_tiny_unet": 38.885,
    "cednet_next_tiny_hourglass": 38.881,
}


def drop_path_rates(backbone):
    return {
        layer.name.removesuffix("_drop_path"): layer.rate
        for layer in backbone.layers
        if layer.name.endswith("_drop_path")
    }


@functools.cache
def architecture(preset):
    """What several tests ask of a preset, which takes seconds to build."""
    backbone = CEDNetBackbone.from_preset(preset)
    return types.SimpleNamespace(
        parameters=trainable_parameters(backbone),
        pyramid_parameters=trainable_parameters(DetectionPyramid(backbone)),
        num_layers=backbone.num_layers,
        depths={w.path: backbone.layer_depth(w.path) for w in backbone.weights},
        depth_of_a_head=backbone.layer_depth("box_head/conv1/kernel"),
        drop_path_rates=drop_path_rates(backbone),
    )


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameter_counts(preset):
    assert architecture(preset).parameters == PARAMETERS[preset]


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", RETINANET_MILLIONS)
def test_parameters_of_the_papers_retinanets(preset):
    total = (architecture(preset).pyramid_parameters + 6_463_220) / 1e6
    assert total == pytest.approx(RETINANET_MILLIONS[preset], abs=5.1e-4)


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", PARAMETERS_NO_FINAL_DECODER)
def test_parameter_counts_without_final_decoder(preset):
    backbone = CEDNetBackbone.from_preset(preset, final_decoder=False)
    assert trainable_parameters(backbone) == PARAMETERS_NO_FINAL_DECODER[preset]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset,millions",
    [("cednet_next_pico", 2.1), ("cednet_next_nano", 7.3)],
)
def test_our_small_presets(preset, millions):
    assert round(architecture(preset).parameters / 1e6, 1) == millions


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "alias,name",
    [
        ("cednet_next_t", "cednet_next_tiny"),
        ("cednet_next_s", "cednet_next_small"),
        ("cednet_next_b", "cednet_next_base"),
    ],
)
def test_aliases(alias, name):
    assert CEDNetBackbone.architecture_preset_name(alias) == name


@pytest.mark.backend_free
def test_an_unknown_preset_is_one_sentence_with_the_names():
    with pytest.raises(ValueError, match=r"no preset 'cednet_huge'.*cednet_next_s\b"):
        CEDNetBackbone.from_preset("cednet_huge")


@pytest.mark.backend_free
def test_layer_names_and_presets_are_pinned(golden):
    """Layer names and preset contents are public API: weights and user code refer to them."""
    pinned = json.loads((golden / "cednet_public.json").read_text())
    presets = CEDNetBackbone.architecture_presets()
    assert {name: entry["config"] for name, entry in presets.items()} == pinned["presets"]
    assert {name: entry["aliases"] for name, entry in presets.items() if entry["aliases"]} == (
        pinned["aliases"]
    )
    for case, options in pinned["cases"].items():
        backbone = DetectionPyramid(CEDNetBackbone(**options["config"]), 16, 2, 6)
        assert [layer.name for layer in backbone.layers] == options["layers"], case


def preset_images():
    return np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")


# XLA compiles each of these for half a minute; what varies is the graph, which the other backends
# and `backends_agree` see in `make test`. On JAX and TensorFlow `make test-slow` has the rest.
STYLES = [
    {},
    {"style": "unet", "final_decoder": True},
    {"style": "hourglass", "final_decoder": True, "drop_path_rate": 0.2},
    {"style": "full_fpn", "final_decoder": True},
    {"token_mixer": "resnet", "layer_scale_init": None},
    {"token_mixer": "swin", "style": "unet"},
    {"token_mixer": "cswin", "p2_width": 64, "widths": (64, 128, 64)},
    {"depths": ((1, 2, 1), (2, 1, 1)), "lr_blocks": False, "layer_scale_init": 0},
]
COMPILED = pytest.mark.slow_on("jax", "tensorflow")
COMPILED_QUICKLY = ("cednet_next_pico", "cednet_resnet50")
STYLES = [pytest.param(changes, marks=COMPILED) for changes in STYLES]


# The others are made of the same layers; Base is Small with more channels.
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(
            p,
            marks=[
                *([] if p in COMPILED_QUICKLY else [COMPILED]),
                *([pytest.mark.slow] if p == "cednet_next_base" else []),
            ],
        )
        for p in PRESETS
    ],
)
def test_backends_agree(preset, golden):
    """Outputs against one stored reference within 5e-5, so any two backends agree to 1e-4."""
    backbone = CEDNetBackbone.from_preset(preset, drop_path_rate=0.0)
    set_deterministic_weights(backbone)
    outputs = backbone(preset_images())
    with np.load(golden / "cednet_presets.npz") as file:
        for level, output in outputs.items():
            output = ops.convert_to_numpy(output)
            reference = file[f"{preset}/{level}"]
            np.testing.assert_allclose(output[..., ::16], reference, atol=5e-5, rtol=5e-5)


# XLA compiles the gradient of a preset for one to two minutes, and TensorFlow traces it for ten
# seconds, so there all but the smallest are for `make test-slow`; every style and mixer at small
# size stands for them in `make test`.
GRADIENTS_OF = [
    pytest.param(
        {"preset": name},
        marks=() if name == "cednet_next_pico" else pytest.mark.slow,
    )
    for name in PRESETS
]


@pytest.mark.parametrize("case", GRADIENTS_OF + STYLES, ids=str)
def test_every_weight_gets_a_gradient(case):
    if "preset" in case:
        backbone = CEDNetBackbone.from_preset(case["preset"], drop_path_rate=0.0)
        set_deterministic_weights(backbone)
    else:
        # A dropped block has no gradient.
        backbone = mini_cednet(**{**case, "drop_path_rate": 0.0})
    images = preset_images()
    for weight, gradient in zip(
        backbone.trainable_variables, gradients(backbone, images), strict=True
    ):
        assert gradient is not None, weight.path
        assert np.all(np.isfinite(gradient)), weight.path
        # Of Swin's and CSwin's biases, those of the keys cancel in the softmax; nothing else may.
        assert np.any(gradient != 0), weight.path


@pytest.mark.parametrize("changes", STYLES, ids=str)
def test_round_trips_are_exact(changes, tmp_path):
    backbone = mini_cednet(**{"depths": (1, 1, 1), **changes})
    images = np.random.default_rng(0).normal(size=(1, 64, 32, 3)).astype("float32")
    outputs = backbone(images)
    rebuilt = CEDNetBackbone.from_config(backbone.get_config())
    assert rebuilt.get_config() == backbone.get_config()
    assert [w.path for w in rebuilt.weights] == [w.path for w in backbone.weights]
    backbone.save(tmp_path / "model.keras")
    backbone.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras"),
        CEDNetBackbone.from_preset(str(tmp_path / "preset")),
    ):
        assert isinstance(copy, CEDNetBackbone)
        assert copy.get_config() == backbone.get_config()
        assert max_difference(copy(images), outputs) == 0


@pytest.mark.parametrize(
    "token_mixer",
    [
        pytest.param("next", marks=pytest.mark.slow_on("jax")),
        *(pytest.param(name, marks=COMPILED) for name in ("swin", "cswin")),
    ],
)
def test_any_multiple_of_32_and_dynamic_shapes(token_mixer):
    backbone = mini_cednet(token_mixer=token_mixer, p2_width=64, widths=(64, 128, 64))
    for height, width in ((32, 32), (96, 160)):
        outputs = backbone(np.zeros((1, height, width, 3), "float32"))
        for level, info in backbone.feature_info.items():
            expected = (1, height // info.stride, width // info.stride, info.channels)
            assert tuple(outputs[level].shape) == expected
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        signature = tf.TensorSpec((None, None, None, 3), "float32")
        call = tf.function(lambda x: backbone(x), input_signature=[signature])
        images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
        assert max_difference(call(images), backbone(images)) < 1e-5
        with pytest.raises(tf.errors.InvalidArgumentError, match="multiples of 32"):
            call(images[:, :60])


def test_other_sizes_are_refused_in_one_sentence():
    backbone = mini_cednet()
    with pytest.raises(ValueError, match="multiples of 32, got 60 x 96: pad or resize"):
        backbone(np.zeros((1, 60, 96, 3), "float32"))
    with pytest.raises(ValueError, match="multiples of 32, got 100 x 64"):
        CEDNetBackbone(**CEDNET_TINY, image_shape=(100, 64, 3))


@pytest.mark.backend_free
def test_drop_path_rates_are_those_of_the_spec():
    """CEDNET.md 1.8: T has 27 blocks; UNet's C3 decoder block repeats the first decoder rate."""
    tiny = architecture("cednet_next_tiny").drop_path_rates
    assert "p2_block1" not in tiny  # rate 0
    assert tiny["p2_block2"] == pytest.approx(0.1 / 26)
    assert tiny["stage3_encoder_c5_block2"] == pytest.approx(0.1)
    without = CEDNetBackbone.from_preset("cednet_next_tiny_unet", final_decoder=False)
    unet = drop_path_rates(without)
    assert unet["stage1_decoder_c4_block1"] == pytest.approx(0.0308, abs=5e-5)
    assert unet["stage1_decoder_c4_block2"] == pytest.approx(0.0346, abs=5e-5)
    assert unet["stage1_decoder_c3_block1"] == pytest.approx(0.0308, abs=5e-5)
    assert max(unet.values()) == pytest.approx(0.0885, abs=5e-5)
    hourglass = architecture("cednet_next_tiny_hourglass").drop_path_rates
    assert not any("lateral" in name for name in hourglass)


def test_drop_path_drops_whole_samples_in_training_only():
    x = keras.Input((4, 4, 2))
    model = keras.Model(x, keras_densepred.layers.drop_path(x, 0.5, "drop"))
    images = np.ones((64, 4, 4, 2), "float32")
    assert np.all(ops.convert_to_numpy(model(images)) == 1)
    dropped = ops.convert_to_numpy(model(images, training=True))
    per_sample = dropped.reshape(64, -1)
    assert np.all(per_sample == per_sample[:, :1])
    assert set(np.unique(per_sample)) == {0.0, 2.0}


@pytest.mark.backend_free
def test_initial_weights_follow_the_authors():
    backbone = CEDNetBackbone.from_preset("cednet_next_tiny")

    def std(name, weight="kernel"):
        return float(np.std(getattr(backbone.get_layer(name), weight)))

    assert std("stage1_encoder_c5_block1_pwconv1") == pytest.approx(2048**-0.5, rel=0.02)
    assert std("stage1_encoder_c3_block1_dwconv") == pytest.approx(1 / (7 * 192**0.5), rel=0.02)
    assert std("p2_downsample_conv") == pytest.approx((192 * 4) ** -0.5, rel=0.02)
    gamma = ops.convert_to_numpy(backbone.get_layer("p2_block1_layer_scale").gamma)
    assert np.all(gamma == np.float32(1e-6))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "changes,message",
    [
        ({"style": "fpnn"}, "`style` must be one of"),
        ({"token_mixer": "mlp"}, "`token_mixer` must be one of"),
        ({"depths": (1, 2)}, "`depths` must be three block counts"),
        ({"depths": ((1, 1, 1),)}, "each of the 2 stages"),
        ({"drop_path_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"token_mixer": "swin", "widths": (40, 64, 96)}, "multiples of 32"),
        ({"data_format": "NHWC"}, "`data_format` must be"),
        ({"swin_classification_compat": True}, 'needs `token_mixer="swin"`'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        CEDNetBackbone(**{**CEDNET_TINY, **changes})


# CEDNET.md 2.2: `layer_wise_cednet_small` of S and B has 9 layers, of CSwin 7; the others' 4.
FINE = {"cednet_next_small": 9, "cednet_next_base": 9, "cednet_cswin_tiny": 7}


def authors_layer_id(path, fine):
    """CEDNET.md 2.2: `layer_wise_cednet`, or `layer_wise_cednet_small`, which halves stages."""
    name = path.split("/")[0]
    if name.startswith("stem_"):
        return 0
    if name.startswith("p2_"):
        return 1
    stage = re.match(r"^stage(\d+)_(.*)$", name)
    if stage is None:
        return None
    number, rest = int(stage[1]), stage[2]
    if not fine:
        return number + 1
    c4_block = re.match(r"^encoder_c4_block(\d+)(_|$)", rest)
    in_first_half = c4_block is not None and int(c4_block[1]) <= 4
    if rest.startswith(("encoder_c3_", "encoder_downsample1_")) or in_first_half:
        return 2 * number
    return 2 * number + 1


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", PRESETS)
def test_layer_depths_are_the_authors(preset):
    backbone, fine = architecture(preset), preset in FINE
    assert backbone.num_layers == FINE.get(preset, 3 if preset == "cednet_next_pico" else 4)
    depths = backbone.depths
    assert depths == {path: authors_layer_id(path, fine) for path in depths}
    assert set(depths.values()) == set(range(backbone.num_layers + 1))
    assert backbone.depth_of_a_head is None
