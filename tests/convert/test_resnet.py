"""ResNet's weights from KerasHub and timm."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetBackbone, ResNetBackbone
from keras_densepred.convert import resnet
from tests.networks import max_difference, run
from tests.weights import normal, set_deterministic_weights

DEPTHS = (1, 2, 1, 1)
IMAGES = np.random.default_rng(0).normal(size=(1, 64, 40, 3)).astype("float32")


def keras_hub_resnet(depths=DEPTHS) -> keras_hub.models.ResNetBackbone:
    """KerasHub's v1 ResNet: stride in the 3x3 convolution. It takes no width but 64."""
    model = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(depths),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    set_deterministic_weights(model)
    return model


def timm_state(backbone: ResNetBackbone) -> dict[str, np.ndarray]:
    """Random arrays under timm's names, made from its architecture rather than from ours."""
    state = {}

    def unit(conv, bn, inputs, outputs, kernel):
        state[f"{conv}.weight"] = normal(conv, (outputs, inputs, kernel, kernel))
        for number, part in enumerate(("weight", "bias", "running_mean", "running_var")):
            state[f"{bn}.{part}"] = np.abs(normal(f"{bn}{number}", (outputs,))) + 0.1
        state[f"{bn}.num_batches_tracked"] = np.array(7)

    width = backbone.width
    unit("conv1", "bn1", 3, width, 7)
    channels = width
    for stage, depth in enumerate(backbone.depths):
        planes = width * 2**stage
        for block in range(depth):
            prefix = f"layer{stage + 1}.{block}"
            unit(f"{prefix}.conv1", f"{prefix}.bn1", channels, planes, 1)
            unit(f"{prefix}.conv2", f"{prefix}.bn2", planes, planes, 3)
            unit(f"{prefix}.conv3", f"{prefix}.bn3", planes, 4 * planes, 1)
            if block == 0:
                shortcut = f"{prefix}.downsample"
                unit(f"{shortcut}.0", f"{shortcut}.1", channels, 4 * planes, 1)
            channels = 4 * planes
    return {**state, "fc.weight": np.zeros((1000, channels)), "fc.bias": np.zeros(1000)}


@pytest.mark.slow_on("jax", "tensorflow")
def test_keras_hubs_outputs_are_ours():
    source = keras_hub_resnet()
    msfm = {"after_conv2": {"ratios": (None, 16, 32, 64), "groups": 4}}
    # Starts as the plain network.
    backbone = ResNetBackbone(DEPTHS, msfm=msfm, deformable_stages=(3, 4, 5))
    report = resnet.load_keras_hub(backbone, source)
    assert len(report.loaded) == len(source.weights)
    pyramid = run(keras.Model(source.input, dict(source.pyramid_outputs)), IMAGES)
    outputs = run(backbone, IMAGES)
    assert outputs.keys() == pyramid.keys()
    for level, output in outputs.items():
        output, theirs = (ops.convert_to_numpy(x) for x in (output, pyramid[level]))
        np.testing.assert_allclose(output, theirs, atol=2e-5 * np.abs(theirs).max())


def test_a_deformable_network_starts_as_the_plain_one():
    """Which offsets drawn at random, or samples halved by v2's factors, would not."""
    outputs = []
    for options in ({}, {"deformable_stages": (3, 4, 5)}):
        backbone = ResNetBackbone(DEPTHS, width=4, **options)
        resnet.load_timm(backbone, timm_state(backbone))
        outputs.append(run(backbone, IMAGES))
    deformable = {w.path.split("/")[-2] for w in backbone.weights if w.name == "offset_kernel"}
    assert deformable == {
        "stage2_block1_spatial_conv",
        "stage2_block2_spatial_conv",
        "stage3_block1_spatial_conv",
        "stage4_block1_spatial_conv",
    }
    largest = ops.convert_to_numpy(outputs[0]["P5"]).max()
    assert max_difference(*outputs) < 1e-4 * largest


@pytest.mark.backend_free
def test_timms_keys_are_all_used():
    backbone = ResNetBackbone((3, 4, 6, 3), width=4)
    state = timm_state(backbone)
    report = resnet.load_timm(backbone, state)
    used = {*report.loaded, *report.skipped}
    assert used == {key for key in state if "num_batches" not in key}
    kernel = ops.convert_to_numpy(backbone.get_layer("stage3_block2_spatial_conv").kernel)
    assert np.array_equal(kernel[1, 2, 3, 4], state["layer3.1.conv2.weight"][4, 3, 1, 2])
    kernel = ops.convert_to_numpy(backbone.get_layer("stage4_block1_shortcut_conv").kernel)
    assert np.array_equal(kernel[0, 0].T, state["layer4.0.downsample.0.weight"][:, :, 0, 0])
    kernel = ops.convert_to_numpy(backbone.get_layer("stage4_block1_expand_conv").kernel)
    assert np.array_equal(kernel.T, state["layer4.0.conv3.weight"][:, :, 0, 0])
    norm = backbone.get_layer("stage1_block1_shortcut_norm")
    variance = ops.convert_to_numpy(norm.moving_variance)
    assert np.array_equal(variance, state["layer1.0.downsample.1.running_var"])


@pytest.mark.backend_free
def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    backbone = ResNetBackbone((1, 1, 1, 1), width=4)
    before = [ops.convert_to_numpy(w) for w in backbone.weights]
    state = timm_state(backbone)
    wide = {**state, "conv1.weight": np.zeros((8, 3, 7, 7))}
    short = {key: value for key, value in state.items() if key != "layer2.0.bn2.bias"}
    for wrong, message in (
        (wide, r"'conv1.weight' has the shape \(8, 3, 7, 7\)"),
        (short, "lack layer2.0.bn2.bias: give those"),
        ({**state, "layer1.1.conv1.weight": 0}, "unknown here, layer1.1.conv1.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            resnet.load_timm(backbone, wrong)
    for weight, value in zip(backbone.weights, before, strict=True):
        assert np.array_equal(ops.convert_to_numpy(weight), value)
    with pytest.raises(ValueError, match="serves ResNetBackbone"):
        resnet.load_timm(CEDNetBackbone.from_preset("cednet_next_pico"), state)
