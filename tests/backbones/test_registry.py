"""Backbones by the name or directory of their preset, whichever family they are of."""

import keras
import numpy as np
import pytest

from keras_densepred import plugins
from keras_densepred.backbones import (
    CEDNetBackbone,
    CSPNetBackbone,
    DetectionPyramid,
    PyramidBackbone,
    ResNetBackbone,
    backbone_families,
    built_in_preset,
    built_in_presets,
    find_backbone,
    image_input,
    load_backbone,
    register_backbone,
    registry,
)
from keras_densepred.layers.norm import SyncConvBatchNorm

pytestmark = pytest.mark.backend_free
TINY = dict(p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8)
RESNET = dict(depths=(1, 1, 1, 1), width=8)


@pytest.fixture
def own_registry(monkeypatch):
    """Families that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_families", dict(registry._families))


def two_convs(name="TwoConvs", **architectures):
    def __init__(self, width=4, image_shape=(None, None, 3), **kwargs):
        inputs, x = image_input(image_shape)
        maps = {}
        for level in (1, 2):
            x = maps[f"P{level}"] = keras.layers.Conv2D(width, 3, 2, "same", name=f"c{level}")(x)
        PyramidBackbone.__init__(
            self,
            inputs=inputs,
            pyramid_outputs=maps,
            image_shape=image_shape,
            **kwargs,
        )
        self.width = width

    return type(name, (PyramidBackbone,), {"__init__": __init__, "architectures": architectures})


def test_every_preset_is_found_with_its_architecture():
    for preset in built_in_presets():
        source = find_backbone(preset)
        assert source.architecture == built_in_preset(preset) == preset
        # bicsnet_48 and 48l are one network at two image sizes.
        assert source.family.architecture_of(source.config) in (preset, preset.removesuffix("l"))
    assert find_backbone("cednet_next_t").architecture == "cednet_next_tiny"


def test_architecture_does_not_depend_on_how_it_trains():
    backbone = load_backbone(
        "cednet_next_pico", drop_path_rate=0.3, layer_scale_init=0.2, dtype="mixed_bfloat16"
    )
    assert backbone.architecture == "cednet_next_pico"
    assert load_backbone("cednet_next_pico", p2_depth=2).architecture is None
    assert CSPNetBackbone().architecture == "csp_resnet_50"


def test_options_that_a_family_lacks_are_named():
    with pytest.raises(ValueError, match="CEDNetBackbone has no option 'activation'; it has"):
        load_backbone("cednet_resnet50", sync_batch_norm=True, activation="swish")
    with pytest.raises(ValueError, match="ResNetBackbone has no option 'drop_path_rate'"):
        load_backbone("resnet50", drop_path_rate=0.1)
    with pytest.raises(ValueError, match="CEDNetBackbone has no option 'activation'"):
        CEDNetBackbone(**TINY, activation="swish")
    source = find_backbone("resnet50")
    assert source.accepts("sync_batch_norm") and source.accepts("dtype")
    assert not source.accepts("drop_path_rate") and not source.accepts("kwargs")


def test_the_resnet_mixer_honours_sync_batch_norm(tmp_path):
    backbone = CEDNetBackbone(**TINY, token_mixer="resnet", sync_batch_norm=True)
    norms = [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and all(isinstance(norm, SyncConvBatchNorm) for norm in norms)


@pytest.mark.parametrize(
    "saved,options",
    [
        (ResNetBackbone, {"sync_batch_norm": True}),
        (ResNetBackbone, {"fixed_batch_norm": True, "frozen_stages": 1}),
        (CEDNetBackbone, {"sync_batch_norm": True}),
    ],
)
def test_weights_load_whatever_the_batch_norms_were_saved_as(saved, options, tmp_path):
    tiny = RESNET if saved is ResNetBackbone else {**TINY, "token_mixer": "resnet"}
    backbone = saved(**tiny)
    backbone.save_to_preset(tmp_path)
    loaded = load_backbone(str(tmp_path), **options)
    assert {**loaded.get_config(), **options} == loaded.get_config()
    for weight, expected in zip(loaded.weights, backbone.weights, strict=True):
        assert weight.path == expected.path
        np.testing.assert_array_equal(weight, expected)


def test_weights_of_another_network_are_refused(tmp_path):
    ResNetBackbone(**RESNET).save_to_preset(tmp_path)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        load_backbone(str(tmp_path), depths=(2, 1, 1, 1), sync_batch_norm=True)


@pytest.mark.parametrize("place", ["", "backbone", "preset", "preset/backbone"])
def test_directories_of_recipes_and_tasks(place, tmp_path):
    backbone = CEDNetBackbone(**TINY)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    backbone.save_to_preset(tmp_path / place)
    source = find_backbone(str(tmp_path))
    assert source.family is CEDNetBackbone and source.architecture is None
    assert source.config["p2_width"] == 8
    assert source.build(drop_path_rate=0.1).drop_path_rate == 0.1


def test_what_is_no_backbone_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no built-in preset 'cednet_next_huge'. Did you mean"):
        find_backbone("cednet_next_huge")
    with pytest.raises(ValueError, match=r"'zzz'. Give the directory of a run"):
        find_backbone("zzz")
    with pytest.raises(ValueError, match="holds no backbone"):
        find_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"registered_name": "theirs>Net", "config": {}}')
    with pytest.raises(ValueError, match="holds a theirs>Net, which is not registered: import"):
        find_backbone(str(tmp_path))


def test_necks_load_and_give_the_depths_of_their_backbone(tmp_path):
    pyramid = DetectionPyramid(CEDNetBackbone(**TINY), width=8)
    pyramid.save_to_preset(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert isinstance(loaded, DetectionPyramid) and loaded.get_config() == pyramid.get_config()
    assert loaded.num_layers == 2
    depths = {w.path.split("/")[0]: loaded.layer_depth(w.path) for w in loaded.weights}
    assert depths["stem_conv1"] == 0 and depths["stage1_encoder_c5_block1_norm1"] == 2
    assert depths["pyramid_p6_conv"] is None


def test_a_family_of_ones_own(own_registry, tmp_path):
    family = register_backbone(two_convs(two_convs_small={"width": 2}))
    assert keras.saving.get_registered_name(family) == "keras_densepred>TwoConvs"
    assert family in backbone_families() and "two_convs_small" in built_in_presets()
    backbone = load_backbone("two_convs_small", width=3)
    assert backbone.feature_info["P2"].channels == 3 and backbone.is_pyramid
    backbone.save_to_preset(tmp_path)
    assert load_backbone(str(tmp_path)).get_config() == backbone.get_config()
    assert load_backbone("two_convs_small").architecture == "two_convs_small"
    assert register_backbone(family) is family  # a notebook's cell that runs again


def test_names_that_are_taken_are_refused(own_registry):
    with pytest.raises(ValueError, match="has a preset 'resnet50' already"):
        register_backbone(two_convs("Other", resnet50={}))
    with pytest.raises(ValueError, match=r"ResNetBackbone: register .* under another name"):
        register_backbone(two_convs("ResNetBackbone"))


def test_faults_of_a_family_are_named():
    class Wrong(PyramidBackbone):
        def __init__(self, names=("P1",), size=32, **kwargs):
            inputs, x = image_input((size, None, 3))
            x = keras.layers.Conv2D(2, 3, 2, "same")(x)
            super().__init__(
                inputs=inputs,
                pyramid_outputs=dict.fromkeys(names, x),
                image_shape=(size, None, 3),
                **kwargs,
            )

    with pytest.raises(ValueError, match=r'"P2" a size of .*; its stride must be 4'):
        Wrong(names=("P2",))
    with pytest.raises(ValueError, match=r'"P3" a size of .*; its stride must be 8'):
        Wrong(names=("P3",), size=None)
    with pytest.raises(ValueError, match=r"A level is called .* not 'c1'"):
        Wrong(names=("c1",))
    with pytest.raises(AttributeError, match="names"):
        Wrong().get_config()


def test_modules_of_users_are_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "my_module.py").write_text("value = 3\n")
    plugins.import_modules(["my_module"])
    import sys

    assert sys.modules.pop("my_module").value == 3
    with pytest.raises(ImportError, match="There is no module 'not_there'"):
        plugins.import_modules(["not_there"])
