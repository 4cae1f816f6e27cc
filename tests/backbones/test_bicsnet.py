"""BiCSNet and its Lite form: exact counts of BICSNET.md, structure, sizes, round trips."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import BiCSNetBackbone, DetectionPyramid
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from keras_densepred.backbones.bicsnet import RESIDUAL_BLOCKS, drop_path_rates, main_path
from tests.networks import (
    BICSNET_FAMILY,
    images,
    max_difference,
    mini_bicsnet,
    output_shapes,
    run,
    trainable_parameters,
)

JAX = keras.config.backend() == "jax"
SIZES = ((97, 131), (45, 70))

# BICSNET.md 3.3: with endpoints, at the input size of Table I.
COUNTS = {
    ("bicsnet_48s", 640): (11_418_256, 15_044_889_600, 72_924_800),
    ("bicsnet_48", 640): (22_212_325, 27_566_327_875, 97_792_200),
    ("bicsnet_48l", 896): (22_212_325, 54_030_002_635, 191_672_712),
    ("bicsnet_94", 1024): (41_009_733, 135_347_141_888, 383_952_896),
    ("bicsnet_140", 1280): (57_244_864, 279_609_344_000, 761_881_600),
}
# BICSNET.md 3.3: what an option adds to BiCSNet-48, in millions of parameters.
OPTIONS = [
    ({"context": "conv"}, 0.936),
    ({"long_range": "up"}, -0.132),
    ({"stem_pathway": False}, -0.028),
    ({"residual_blocks": ("D5", "U6", "U4", "U3", "U2")}, 0.029),
    ({"residual_blocks": ()}, 1.328),
]


@pytest.mark.backend_free
@pytest.mark.parametrize("preset,size", COUNTS)
def test_exact_counts(preset, size):
    backbone = BiCSNetBackbone.from_preset(preset, image_shape=(size, size, 3))
    parameters, multiply_adds, normalised = COUNTS[preset, size]
    assert trainable_parameters(backbone) == parameters
    assert count_multiply_adds(backbone) == multiply_adds
    assert count_multiply_adds(backbone, norms=True) == multiply_adds + normalised


@pytest.mark.backend_free
@pytest.mark.parametrize("options,millions", OPTIONS, ids=str)
def test_what_options_cost(options, millions):
    backbone = BiCSNetBackbone.from_preset("bicsnet_48", **options)
    difference = trainable_parameters(backbone) - COUNTS["bicsnet_48", 640][0]
    assert difference / 1e6 == pytest.approx(millions, abs=5.1e-4)


@pytest.mark.backend_free
def test_convolutions_of_the_name():
    """48 is every convolution of a block, the stem's and the final layer, as in ResNet-50."""
    for repeat, number in ((1, 48), (2, 94)):
        names = [layer.name for layer in mini_bicsnet(depth_repeat=repeat).layers]
        in_blocks = [n for n in names if "_block" in n and n.endswith("_conv")]
        assert len([n for n in in_blocks if "shortcut" not in n]) + 2 == number


@pytest.mark.backend_free
def test_every_block_after_the_stem_has_two_sources():
    path = main_path()
    assert [block.name for block, _ in path] == (
        ["D3", "D4", "D5", "D6", "D7", "U6", "U5", "U4", "U3", "U2", "E3", "E4", "E5", "E6", "E7"]
    )
    assert all(len(sources) == 2 for _, sources in path)
    sources = {block.name: names for block, names in path}
    assert sources["D5"] == ("D4", "D3") and sources["U4"] == ("U5", "D4")
    assert sources["E3"] == ("U2", "S1") and sources["E6"] == ("E5", "D5")
    up = {block.name: names for block, names in main_path(long_range="up")}
    assert up["E6"] == ("E5", "U5") and up["E3"] == ("U2",)


@pytest.mark.backend_free
@pytest.mark.parametrize("member", BICSNET_FAMILY)
@pytest.mark.parametrize(
    "options,edges",
    [
        ({}, 30),
        ({"gap": False}, 26),
        ({"skip": False}, 25),
        ({"long_range": None}, 25),
        ({"long_range": "up"}, 29),
        ({"gap": False, "skip": False, "long_range": None, "stem_pathway": False}, 15),
        ({"middle": "down"}, 30),
    ],
    ids=str,
)
def test_each_pathway_can_be_switched_off(member, options, edges):
    cls, tiny = BICSNET_FAMILY[member]
    names = [layer.name for layer in cls(**tiny, **options).layers]
    assert sum("_fuse_act" in name for name in names) == 15
    assert len([n for n in names if n.endswith("_project_conv") and "_from_" in n]) == edges
    assert any(n.endswith("_upsample") for n in names) == (options.get("middle") != "down")


@pytest.mark.backend_free
def test_without_spatial_fusion_there_is_no_global_context():
    names = [layer.name for layer in mini_bicsnet(spatial_fusion=False).layers]
    assert not any("context" in name for name in names)
    assert any("context" in layer.name for layer in mini_bicsnet().layers)


@pytest.mark.backend_free
def test_drop_path_rates_rise_over_the_15_blocks():
    rates = drop_path_rates("up", 0.3)
    assert rates["D3"] == pytest.approx(0.02) and rates["E7"] == pytest.approx(0.3)
    layers = {
        layer.name: layer for layer in mini_bicsnet(drop_path_rate=0.3, depth_repeat=2).layers
    }
    assert layers["u6_block2_drop_path"].rate == pytest.approx(rates["U6"]) == pytest.approx(0.12)
    assert not any(name.startswith("s") and "drop_path" in name for name in layers)


@pytest.mark.backend_free
@pytest.mark.parametrize("member", BICSNET_FAMILY)
def test_layer_names_and_presets_are_pinned(member, golden):
    """Layer names and preset contents are public API: weights and user code refer to them."""
    pinned = json.loads((golden / "bicsnet_public.json").read_text())[member]
    cls, _ = BICSNET_FAMILY[member]
    presets = cls.architecture_presets()
    assert {name: entry["config"] for name, entry in presets.items()} == pinned["presets"]
    assert not any(entry["aliases"] for entry in presets.values())
    for case in pinned["cases"]:
        assert [layer.name for layer in mini_bicsnet(member, **case["config"]).layers] == case[
            "layers"
        ]


@pytest.mark.parametrize("member", BICSNET_FAMILY)
def test_backends_agree(member, golden):
    """Outputs against one stored reference within 5e-5, so any two backends agree to 1e-4."""
    outputs = run(mini_bicsnet(member), images())
    with np.load(golden / "bicsnet_tiny.npz") as file:
        for level, output in outputs.items():
            output = ops.convert_to_numpy(output)
            np.testing.assert_allclose(output, file[f"{member}/{level}"], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(
    "member", ["full", pytest.param("lite", marks=pytest.mark.slow_on("tensorflow"))]
)
def test_any_image_size(member):
    backbone = mini_bicsnet(member)
    for height, width in SIZES:
        assert output_shapes(backbone, images(height, width)) == {
            level: (1, -(-height // info.stride), -(-width // info.stride), info.channels)
            for level, info in backbone.feature_info.items()
        }
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        signature = tf.TensorSpec((None, None, None, 3), "float32")
        call = tf.function(lambda x: backbone(x), input_signature=[signature])
        for height, width in SIZES:
            assert max_difference(call(images(height, width)), backbone(images(height, width))) < (
                1e-5
            )


CHANGES = {
    "full": {"context": "conv", "activation": "swish", "drop_path_rate": 0.2, "middle": "down"},
    "lite": {"long_range": "up", "se_ratio": 0.2},
}


@pytest.mark.slow  # the contracts save both, at other settings
@pytest.mark.parametrize("member", ["full", "lite"])
def test_round_trips_are_exact(member, tmp_path):
    backbone = mini_bicsnet(member, **CHANGES[member])
    outputs = run(backbone, images())
    cls = type(backbone)
    backbone.save(tmp_path / "model.keras")
    backbone.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras"),
        cls.from_preset(str(tmp_path / "preset")),
    ):
        assert isinstance(copy, cls)
        assert copy.get_config() == backbone.get_config()
        assert [w.path for w in copy.weights] == [w.path for w in backbone.weights]
        assert max_difference(run(copy, images()), outputs) == 0


@pytest.mark.backend_free
def test_a_detection_pyramid_projects_the_five_levels():
    pyramid = DetectionPyramid(mini_bicsnet(), width=12)
    assert {info.channels for info in pyramid.feature_info.values()} == {12}
    assert pyramid.get_layer("pyramid_p7_conv").kernel.shape == (8, 12)  # 1x1, not strided
    assert list(DetectionPyramid(mini_bicsnet(), 12, max_level=5).pyramid_outputs) == [
        "P3",
        "P4",
        "P5",
    ]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "member,changes,message",
    [
        ("full", {"residual_blocks": ("D3", "E8")}, r"may name D3, .*E7, got E8\."),
        ("full", {"residual_blocks": ("S0",)}, "got S0"),
        ("full", {"context": "se"}, "`context` must be one of"),
        ("full", {"gamma": 0}, "`gamma` must be positive, got 0"),
        ("full", {"depth_repeat": 0}, "`depth_repeat` must be at least 1"),
        ("full", {"data_format": "NHWC"}, "`data_format` must be"),
        ("full", {"middle": "down", "skip": False}, "tie the parts together: leave both on"),
        ("lite", {"long_range": "both"}, "`long_range` must be one of"),
        ("lite", {"middle": "flat"}, "`middle` must be one of"),
        ("lite", {"activation": "gelu"}, "`activation` must be one of"),
        ("lite", {"drop_path_rate": 1.0}, r"must be in \[0, 1\)"),
        ("lite", {"se_ratio": -1}, "`se_ratio` must not be negative"),
        ("lite", {"width_multiplier": 0.0}, "`width_multiplier` must be positive"),
        ("lite", {"output_width": 0}, "`output_width` must be at least 1"),
    ],
)
def test_bad_arguments_are_named(member, changes, message):
    with pytest.raises(ValueError, match=message):
        mini_bicsnet(member, **changes)


@pytest.mark.backend_free
def test_the_default_network_is_bicsnet_48():
    default = BiCSNetBackbone().get_config()
    preset = BiCSNetBackbone.from_preset("bicsnet_48").get_config()
    assert {**default, "name": ""} == {**preset, "name": ""}
    assert default["residual_blocks"] == RESIDUAL_BLOCKS["up"]
