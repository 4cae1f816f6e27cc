"""Networks of KerasHub and keras.applications as backbones: levels, images, training, saving."""

import importlib
import json

import keras
import keras_hub
import numpy as np
import pytest
import requests
from keras import ops

from keras_densepred import FeaturePyramid, HostBackbone
from keras_densepred.backbones import find_backbone, load_backbone, pretrained
from keras_densepred.backbones.host_graph import ancestors
from keras_densepred.training import Preprocessing
from recipes import coco_retinanet, coco_yolo, voc_deeplab_v3
from tests.networks import EFFICIENTNET, images, max_difference
from tests.weights import set_deterministic_weights

DENSENET = dict(stackwise_num_repeats=[1] * 4, growth_rate=4)


def mobilenet():
    network = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35)
    set_deterministic_weights(network)
    return network


def densenet():
    network = keras_hub.models.DenseNetBackbone(**DENSENET)
    set_deterministic_weights(network)
    return network


def last_level(network):
    levels = getattr(network, "pyramid_outputs", {"P5": network.output})
    return keras.Model(network.inputs[0], levels["P5"])


# --- levels --------------------------------------------------------------------------------------

LEVELS = {
    "mobilenet_v2": (
        *("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu", "out_relu"),
        (144, 192, 576, 1280),
    ),
    "resnet_50": (
        *("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
        (256, 512, 1024, 2048),
    ),
    "efficientnet_v2_b0": (
        *("block2b_add", "block4a_expand_activation", "block6a_expand_activation"),
        *("top_activation", (32, 192, 672, 1280)),
    ),
    "densenet_121": (
        *("pool2_relu", "pool3_relu", "pool4_relu", "relu"),
        (256, 512, 1024, 1024),
    ),
    # Sums there are operations, after which the backbone has a layer of its own.
    "convnext_tiny": ("p2_end", "p3_end", "p4_end", "layer_normalization", (96, 192, 384, 768)),
}


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name",
    [n if n == "mobilenet_v2" else pytest.param(n, marks=pytest.mark.slow) for n in LEVELS],
)
def test_levels_end_where_the_stages_do(name):
    backbone = load_backbone(f"applications/{name}")
    *layers, channels = LEVELS[name]
    assert list(backbone.pyramid_level_inputs.values()) == layers
    found = backbone.feature_info.values()
    assert tuple(info.channels for info in found) == channels
    assert [info.stride for info in found] == [4, 8, 16, 32]


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("name", [n for n in pretrained.applications() if "xlarge" not in n])
def test_all_networks_of_keras_applications_have_levels(name):
    network = pretrained.applications()[name].network()
    backbone = HostBackbone(network)
    assert backbone.levels == (2, 3, 4, 5)
    if not name.startswith("vgg"):  # whose last level is the pooled one
        last = network.output._keras_history.operation.name
        assert last in [layer.name for layer in backbone.layers]


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2", "mobilenet_v3_small"])
def test_the_open_size_is_not_warned_of(name, recwarn):
    pretrained.applications()[name].network()
    assert not [str(warning.message) for warning in recwarn if "input_shape" in str(warning)]


@pytest.mark.backend_free
def test_levels_can_be_named_by_layers():
    names = {f"P{n}": f"block_{block}_add" for n, block in ((2, 2), (3, 5), (4, 12), (5, 15))}
    backbone = HostBackbone(mobilenet(), level_layers=names)
    assert backbone.pyramid_level_inputs == names
    assert HostBackbone.from_config(backbone.get_config()).level_layers == names
    with pytest.raises(ValueError, match="no layer 'nowhere', which `level_layers` names for P3"):
        HostBackbone(mobilenet(), level_layers={"P3": "nowhere"})
    with pytest.raises(ValueError, match=r'"P3" a size of .* its stride must be 8'):
        HostBackbone(mobilenet(), level_layers={"P3": "block_2_add"})


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("network", [mobilenet, densenet])
def test_the_same_outputs_as_the_network_and_nothing_shared(network):
    network = network()
    backbone = HostBackbone(network)
    batch = images(64, 96)
    network = last_level(network)
    last = network(batch)
    assert max_difference(backbone(batch)["P5"], last) < 1e-5
    for weight in backbone.weights:
        weight.assign(ops.zeros_like(weight))
    assert max_difference(network(batch), last) < 1e-5


@pytest.mark.backend_free
def test_what_is_no_network_of_images_is_refused():
    vectors = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="a backbone needs a network of one batch of RGB images"):
        HostBackbone(vectors)
    with pytest.raises(ValueError, match="must be a functional Keras model, got Dense"):
        HostBackbone(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="`colors` must be one of"):
        HostBackbone(mobilenet(), colors="grey")
    with pytest.raises(ValueError, match="`frozen_stages` must be None or 0 to 4, got 5"):
        HostBackbone(mobilenet(), frozen_stages=5)


@pytest.mark.backend_free
def test_networks_of_one_image_size_are_built_for_another():
    network = keras_hub.models.MiTBackbone(
        layerwise_depths=[1] * 4,
        num_layers=4,
        layerwise_num_heads=[1] * 4,
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[8] * 4,
        image_shape=(64, 64, 3),
    )
    assert HostBackbone(network).image_shape == (64, 64, 3)
    larger = HostBackbone(network, image_shape=(128, 128, 3))
    assert larger.pyramid_outputs["P2"].shape == (None, 32, 32, 8)
    for ours, theirs in zip(larger.weights, network.weights, strict=True):
        assert max_difference(ours, theirs) == 0
    with pytest.raises(ValueError, match="cannot be built for images of None x None; as it is"):
        HostBackbone(network, image_shape=(None, None, 3))


# --- training ------------------------------------------------------------------------------------


@pytest.mark.backend_free
def test_frozen_stages_end_with_a_level():
    def trainable(backbone):
        return [layer for layer in backbone.layers if layer.weights and layer.trainable]

    network = mobilenet()
    whole = HostBackbone(network)
    weighted = [layer for layer in whole.layers if layer.weights]
    assert trainable(whole) == weighted
    counts = []
    for stages in range(5):
        backbone = HostBackbone(network, frozen_stages=stages)
        left = {layer.name for layer in trainable(backbone)}
        counts.append(len(left))
        end = f"P{stages + 1}"
        if stages:
            for operation in ancestors(backbone.pyramid_outputs[end]):
                assert operation.name not in left
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0
    assert 0 < counts[1] < counts[0] < len(weighted)
    copy = HostBackbone.from_config(backbone.get_config())
    assert copy.frozen_stages == 4 and not copy.trainable_weights


@pytest.mark.slow_on("jax", "tensorflow")
def test_fixed_batch_norms_keep_their_statistics_and_train():
    """Those too that KerasHub's layers make within themselves."""
    network = keras_hub.models.EfficientNetBackbone(**EFFICIENTNET)
    free, fixed = (HostBackbone(network, fixed_batch_norm=value) for value in (False, True))
    batch = images(64, 64, batch=2)
    for backbone, changes in ((free, True), (fixed, False)):
        before = {w.path: ops.convert_to_numpy(w) for w in backbone.weights}
        model = keras.Model(backbone.inputs, backbone.pyramid_outputs["P5"])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        model.train_on_batch(batch, np.ones((2, 2, 2, model.output_shape[-1])))
        after = {w.path: ops.convert_to_numpy(w) for w in backbone.weights}
        moved = {path for path in before if (before[path] != after[path]).any()}
        statistics = [path for path in before if "moving_" in path]
        assert statistics and {path in moved for path in statistics} == {changes}
        assert any(path.endswith("gamma") for path in moved)


# --- images --------------------------------------------------------------------------------------

MODULES = {
    "convnext": "convnext",
    "densenet": "densenet",
    "efficientnet_b": "efficientnet",
    "efficientnet_v2": "efficientnet_v2",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3",
    "mobilenet": "mobilenet",
    "vgg_16": "vgg16",
    "vgg_19": "vgg19",
}


def module_of(name):
    if name.startswith("resnet"):
        return "resnet_v2" if name.endswith("v2") else "resnet"
    return next(module for start, module in MODULES.items() if name.startswith(start))


@pytest.mark.backend_free
@pytest.mark.parametrize("name", pretrained.applications())
def test_images_are_what_keras_applications_wants(name):
    module = importlib.import_module(f"keras.applications.{module_of(name)}")
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype("float32")
    scaling = find_backbone(f"applications/{name}")
    mean, std = scaling.normalization
    given = (pixels - np.array(mean)) / np.array(std)
    if scaling.config["colors"] == "bgr":
        given = given[..., ::-1]  # `test_colors_are_turned_around`
    np.testing.assert_allclose(given, module.preprocess_input(pixels.copy()), atol=1e-4)


@pytest.mark.slow_on("jax")
def test_colors_are_turned_around():
    rgb, bgr = (HostBackbone(mobilenet(), colors=colors) for colors in ("rgb", "bgr"))
    batch = images(32, 32)
    expected = rgb(batch)
    assert max_difference(bgr(batch[..., ::-1].copy()), expected) < 1e-5
    assert max_difference(bgr(batch), expected) > 1e-3


@pytest.mark.backend_free
@pytest.mark.parametrize("recipe", [coco_retinanet, coco_yolo, voc_deeplab_v3])
def test_recipes_give_the_network_what_it_wants(recipe, tmp_path):
    def prepared(**source):
        settings = recipe.Settings(image_size=64, experiment="small", **source)
        return recipe.preprocessing(settings)

    assert prepared(preset="applications/convnext_tiny").std == (1.0, 1.0, 1.0)
    assert prepared(preset="applications/mobilenet_v2").mean == (127.5, 127.5, 127.5)
    HostBackbone(densenet(), image_mean=(1, 2, 3), image_std=(4, 5, 6)).save_to_preset(tmp_path)
    found = prepared(weights=str(tmp_path))
    assert isinstance(found, Preprocessing)
    assert (found.mean, found.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    own = prepared(preset="cednet_next_pico")
    assert own.std == ((255.0,) * 3 if recipe is coco_yolo else (58.395, 57.12, 57.375))


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.slow_on("jax")
def test_a_preset_that_keras_hub_saved(tmp_path):
    network = densenet()
    network.save_to_preset(tmp_path)
    source = find_backbone(str(tmp_path))
    assert source.family is HostBackbone and source.has_weights
    assert source.normalization == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    backbone = load_backbone(str(tmp_path), fixed_batch_norm=True)
    batch = images(64, 64)
    assert max_difference(backbone(batch)["P5"], last_level(network)(batch)) < 1e-5
    with pytest.raises(ValueError, match="HostBackbone has no option 'wings'"):
        load_backbone(str(tmp_path), wings=2)


@pytest.mark.backend_free
def test_what_keras_hub_wrote_about_images_beside_it(tmp_path):
    densenet().save_to_preset(tmp_path)
    converter = keras_hub.layers.ImageConverter(scale=1 / 127.5, offset=[-1.0, -0.5, 0.0])
    config = keras.saving.serialize_keras_object(converter)
    (tmp_path / "image_converter.json").write_text(json.dumps(config))
    source = find_backbone(str(tmp_path))
    assert source.normalization == ((127.5, 63.75, 0.0), (127.5,) * 3)
    assert load_backbone(str(tmp_path)).image_mean == (127.5, 63.75, 0.0)


@pytest.mark.backend_free
def test_options_change_what_is_saved(tmp_path):
    HostBackbone(densenet()).save_to_preset(tmp_path / "free")
    fixed = load_backbone(str(tmp_path / "free"), fixed_batch_norm=True, frozen_stages=1)
    fixed.save_to_preset(tmp_path / "fixed")
    free = load_backbone(str(tmp_path / "fixed"), fixed_batch_norm=False, frozen_stages=None)
    for ours, theirs in zip(free.weights, densenet().weights):  # noqa: B905 - not the last norm
        assert max_difference(ours, theirs) == 0
    assert free.trainable_weights and not free.fixed_batch_norm


@pytest.mark.backend_free
def test_random_weights_and_trained_ones_are_told_apart(monkeypatch):
    asked = []

    def constructor(include_top, weights):
        asked.append(weights)
        return keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25)

    monkeypatch.setattr(keras.applications, "MobileNetV2", constructor)
    for word in ("applications/mobilenet_v2", "applications/MobileNetV2_imagenet"):
        source = find_backbone(word)
        assert source.has_weights == word.endswith("imagenet")
        assert source.build().colors == "rgb"
    HostBackbone.from_preset("applications/mobilenet_v2_imagenet", load_weights=False)
    assert asked == [None, "imagenet", None]


@pytest.mark.backend_free
def test_words_that_name_nothing():
    with pytest.raises(ValueError, match="no 'applications/alexnet': keras"):
        load_backbone("applications/alexnet")
    with pytest.raises(ValueError, match="KerasHub's presets or applications/NAME"):
        load_backbone("resnet_5000")


URL = "https://storage.example/mobilenet_no_top.h5"


@pytest.mark.backend_free
def test_rematerialization_is_refused_not_ignored():
    backbone = HostBackbone(keras_hub.models.EfficientNetBackbone(**EFFICIENTNET))
    for model in (backbone, FeaturePyramid(backbone, width=8)):
        with pytest.raises(ValueError, match="leave --rematerialize out"):
            model.rematerialize()
        model.rematerialize(False)


@pytest.mark.parametrize("word", ["applications/mobilenet_v2_imagenet", "resnet_50_imagenet"])
def test_without_a_network_it_says_what_to_do(word, monkeypatch):
    def keras_fails(**options):
        raise Exception(f"URL fetch failure on {URL}: None -- [Errno -2] Name not known")

    def hub_fails(*arguments, **options):
        raise requests.exceptions.ConnectionError("HTTPSConnectionPool: Name not known")

    monkeypatch.setattr(keras.applications, "MobileNetV2", keras_fails)
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", hub_fails)
    monkeypatch.setattr(keras_hub.layers.ImageConverter, "from_preset", hub_fails)
    with pytest.raises(ValueError, match="could not be downloaded: give a directory") as raised:
        load_backbone(word)
    message = str(raised.value)
    assert f'`load_backbone("{word}").save_to_preset(DIRECTORY)`' in message
    assert "\n" not in message and len(message) < 250 + len(URL)
    assert (URL in message) == word.startswith("applications")
