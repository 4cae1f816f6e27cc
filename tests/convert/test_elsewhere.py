"""Presets of KerasHub, keras.applications and timm in networks of our own: the same outputs."""

import json
import pathlib
import re

import huggingface_hub
import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_densepred import ConvNeXtBackbone, CSPNetBackbone, HostBackbone, ResNetBackbone
from keras_densepred.backbones import converted, find_backbone, load_backbone
from keras_densepred.convert import convnext, timm
from tests.networks import images, max_difference, run
from tests.weights import set_deterministic_weights

safetensors = pytest.importorskip("safetensors.numpy")

CSPRESNEXT = dict(
    stem_filters=64,
    stem_kernel_size=7,
    stem_strides=4,
    stackwise_depth=[3, 3, 5, 2],
    stackwise_num_filters=[256, 512, 1024, 2048],
    bottle_ratio=[1.0],
    block_ratio=[0.5],
    expand_ratio=[1.0],
    stage_type="csp",
    block_type="bottleneck_block",
    stem_pooling="max",
    stackwise_strides=[1, 2, 2, 2],
    groups=32,
    cross_linear=True,
)
MSFM = {"after_conv2": {"ratios": (None, 16, 32, 64), "groups": 4}}


def keras_hub_resnet():
    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[1, 2, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    set_deterministic_weights(network)
    return network


@pytest.fixture(scope="module")
def keras_convnext():
    network = keras.applications.ConvNeXtTiny(include_top=False, weights=None)
    set_deterministic_weights(network)
    return network


@pytest.fixture(scope="module")
def small_state(keras_convnext):
    """The first block of each stage, by timm's keys."""
    state = convnext.keras_applications_state(keras_convnext)
    return {
        k: np.ascontiguousarray(v) for k, v in state.items() if not re.search(r"s\.[1-9]", k[9:])
    }


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for level, expected in theirs.items():
        largest = float(np.abs(ops.convert_to_numpy(expected)).max())
        assert max_difference(ours[level], expected) < 5e-5 * largest, level


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_resnet_that_keras_hub_saved(tmp_path):
    source = keras_hub_resnet()
    source.save_to_preset(tmp_path)
    backbone = ResNetBackbone.from_preset(str(tmp_path), msfm=MSFM, frozen_stages=1)
    assert backbone.depths == (1, 2, 1, 1) and backbone.frozen_stages == 1
    theirs = keras.Model(source.inputs[0], dict(source.pyramid_outputs))
    assert_same(run(backbone, images(64, 96)), run(theirs, images(64, 96)))
    assert type(load_backbone(str(tmp_path))) is HostBackbone


@pytest.mark.backend_free
def test_other_kinds_of_resnets_stay_what_they_are(tmp_path):
    config = keras_hub_resnet().get_config()
    config |= {"block_type": "basic_block"}
    keras_hub.models.ResNetBackbone.from_config(config).save_to_preset(tmp_path)
    with pytest.raises(ValueError, match=r"no plain bottleneck ResNet .* takes it as it is"):
        ResNetBackbone.from_preset(str(tmp_path))
    with pytest.raises(ValueError, match="has no option 'wings'"):
        ResNetBackbone.from_preset(str(tmp_path), wings=2)


@pytest.mark.slow
def test_a_cspnet_that_keras_hub_saved(tmp_path):
    source = keras_hub.models.CSPNetBackbone(**CSPRESNEXT)
    set_deterministic_weights(source)
    source.save_to_preset(tmp_path)
    backbone = CSPNetBackbone.from_preset(str(tmp_path))
    assert backbone.architecture == "csp_resnext_50_timm"
    theirs = keras.Model(source.inputs[0], dict(source.pyramid_outputs))
    assert_same(run(backbone, images(64, 96)), run(theirs, images(64, 96)))


@pytest.mark.slow
@pytest.mark.backend_free
def test_keras_hubs_keys_are_timms():
    source = keras_hub.models.CSPNetBackbone(**CSPRESNEXT)
    backbone = CSPNetBackbone.from_preset("csp_resnext_50_timm")
    assert timm.keras_hub_state(source).keys() == timm.timm_keys(backbone).keys()


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "family, word, counterpart",
    [
        (ResNetBackbone, "resnet_50_imagenet", True),
        (ResNetBackbone, "densenet_121_imagenet", False),
        (CSPNetBackbone, "csp_resnext_50_ra_imagenet", True),
        (ConvNeXtBackbone, "applications/convnext_base_imagenet", True),
        (ConvNeXtBackbone, "applications/mobilenet_v2", False),
    ],
)
def test_words_of_the_same_networks(family, word, counterpart, monkeypatch):
    asked = []

    def network_of(preset, load_weights):
        asked.append(preset)
        raise ValueError("asked for")

    monkeypatch.setattr(converted, "network_of", network_of)
    with pytest.raises(ValueError, match="asked for" if counterpart else "has no preset"):
        family.from_preset(word)
    assert asked == ([word] if counterpart else [])


@pytest.mark.slow_on("jax")
def test_convnext_of_keras_applications(keras_convnext):
    source = keras_convnext
    backbone = convnext.from_keras_hub(source, {"stage_norms": False})
    assert backbone.architecture is None  # without the norms of detectors
    assert (backbone.depths, backbone.widths) == ((3, 3, 9, 3), (96, 192, 384, 768))
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    theirs = HostBackbone(source)(pixels)
    ours = backbone(((pixels - mean) / std).astype("float32"))
    for level in ("P2", "P3", "P4"):  # their P5 is behind the classifier's norm
        largest = float(np.abs(ops.convert_to_numpy(theirs[level])).max())
        assert max_difference(ours[level], theirs[level]) < 1e-4 * largest
    trained = sum(int(np.prod(w.shape)) for w in backbone.weights)
    assert trained == source.count_params() - 2 * 768  # that norm


@pytest.fixture
def timm_directory(tmp_path, small_state):
    """timm's ConvNeXt as Hugging Face has it, of which all but the number of blocks is real."""
    head = {"head.norm.weight": np.ones(768, "float32"), "head.fc.bias": np.ones(5, "float32")}
    state = small_state | head
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_tiny"}))
    return tmp_path


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("word", ["directory", "hf://timm/convnext_tiny.in12k"])
def test_timms_convnext(word, timm_directory, small_state, monkeypatch):
    def hf_hub_download(repository, file):
        assert repository == "timm/convnext_tiny.in12k"
        return str(timm_directory / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    word = str(timm_directory) if word == "directory" else word
    source = find_backbone(word)
    assert source.family is ConvNeXtBackbone and source.has_weights
    backbone = source.build(drop_path_rate=0.1, stage_norms=False)
    expected = ConvNeXtBackbone((1, 1, 1, 1), stage_norms=False)
    convnext.load_timm(expected, small_state)
    assert max_difference(backbone(images(64, 64)), expected(images(64, 64))) < 1e-6
    with pytest.raises(ValueError, match="is timm's convnext_tiny, no ResNetBackbone"):
        ResNetBackbone.from_preset(word)


@pytest.mark.backend_free
def test_weights_that_do_not_fit_are_named(small_state):
    state, backbone = small_state, ConvNeXtBackbone((1, 1, 1, 1))
    lacking = {key: value for key, value in state.items() if key != "stem.0.bias"}
    with pytest.raises(ValueError, match=r"missing keys stem\.0\.bias"):
        convnext.load_timm(backbone, lacking)
    wrong = {**state, "stem.0.bias": np.zeros(9)}
    with pytest.raises(ValueError, match=r"'stem\.0\.bias' has the shape \(9,\)"):
        convnext.load_timm(backbone, wrong)
    report = convnext.load_timm(backbone, {**state, "head.fc.bias": np.zeros(3)})
    assert report.skipped == ("head.fc.bias",)


@pytest.mark.backend_free
def test_without_a_network_timm_is_named(monkeypatch):
    def hf_hub_download(repository, file):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    with pytest.raises(ValueError, match=r"hf://timm/resnet50\.a1 could not be downloaded"):
        load_backbone("hf://timm/resnet50.a1")
    assert not pathlib.Path("hf:").exists()
