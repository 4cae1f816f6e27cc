"""When networks first fuse scales: by hand, and for CEDNet's argument."""

import keras
import pytest
from keras import layers

from keras_densepred import CEDNetBackbone, ResNetBackbone
from keras_densepred.analysis.fusion_time import fusion_time
from keras_densepred.layers import MSFM
from keras_densepred.layers.upsampling import NearestUpsample
from keras_densepred.necks.fpn import FeaturePyramid

pytestmark = pytest.mark.backend_free

SHAPE = (128, 128, 3)


def conv(x, filters, name, stride=1):
    return layers.Conv2D(filters, 1, stride, "same", name=name)(x)


def test_parameters_before_the_first_addition_by_hand():
    inputs = keras.Input(SHAPE)
    fine = conv(inputs, 2, "fine", 4)  # 3 * 2 + 2 = 8
    coarse = layers.BatchNormalization()(conv(fine, 4, "coarse", 2))  # 2 * 4 + 4 + 8 = 20
    lateral = conv(coarse, 2, "lateral")  # 4 * 2 + 2 = 10
    up = NearestUpsample(name="up")(lateral, fine)
    fused = layers.Add(name="fuse")([fine, up])
    outputs = [conv(fused, 5, "after"), conv(coarse, 5, "beside")]  # 15 and 25
    found = fusion_time(keras.Model(inputs, outputs))
    assert (found.layer, found.parameters_before, found.parameters) == ("fuse", 38, 78)
    assert found.share == 38 / 78


def test_joins_on_the_way_down_and_global_means_are_no_fusion():
    inputs = keras.Input(SHAPE)
    x = conv(inputs, 2, "stem", 4)
    x = layers.Add()([conv(x, 4, "main", 2), conv(layers.MaxPooling2D()(x), 4, "shortcut")])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, conv(gate, 4, "gate")])
    assert fusion_time(keras.Model(inputs, x)) is None
    assert fusion_time(ResNetBackbone.from_preset("resnet50", image_shape=SHAPE)) is None


def test_models_inside_and_layers_that_fuse_inside():
    inner_input = keras.Input((32, 32, 4))
    inner = keras.Model(inner_input, conv(inner_input, 16, "inner", 2))
    inputs = keras.Input(SHAPE)
    fine = conv(inputs, 4, "fine", 4)  # 16
    up = layers.UpSampling2D()(inner(fine))  # 4 * 16 + 16 = 80
    joined = layers.Concatenate(name="join")([fine, up])
    found = fusion_time(keras.Model(inputs, joined))
    assert (found.layer, found.parameters_before, found.share) == ("join", 96, 1)
    fused = MSFM(ratio=1, groups=1, name="msfm")(fine)
    found = fusion_time(keras.Model(inputs, fused))
    assert (found.layer, found.parameters_before) == ("msfm", 16)


def test_an_open_image_size_is_refused():
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="Counting needs a fixed image size"):
        fusion_time(keras.Model(inputs, conv(inputs, 2, "conv")))


def test_cednet_fuses_after_its_first_encoder():
    """By CEDNET.md 1.15: stem and P2 stage, the first encoder, and the first up-sampling's conv."""
    found = fusion_time(CEDNetBackbone.from_preset("cednet_next_tiny", image_shape=SHAPE))
    assert found.layer == "stage1_decoder_add1"
    assert (found.parameters_before, found.parameters) == (10_481_120, 30_718_336)
    stages = (found.parameters - 10_481_120) / 2  # two more encoders, one more decoder
    assert 10_000_000 < stages < 10_481_120


def test_fpn_comes_late():
    fpn = FeaturePyramid(ResNetBackbone.from_preset("resnet50", image_shape=SHAPE))
    late = fusion_time(fpn)
    # All of ResNet-50 (without its classifier) and the laterals of C5 and C4.
    assert late.layer == "fpn_p4_add"
    assert late.parameters_before == 23_508_032 + (2048 + 1) * 256 + (1024 + 1) * 256
    assert round(100 * late.share, 1) == 90.5


def test_fpn_on_convnext_s_is_less_than_a_tenth_of_it():
    """The example of the paper's introduction (arXiv version 1, as summaries of it quote)."""
    backbone = keras.applications.ConvNeXtSmall(
        include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    maps = {}
    for layer in backbone.layers:
        if len(layer.output.shape) == 4 and layer.output.shape[1] in (56, 28, 14, 7):
            maps[{56: "P2", 28: "P3", 14: "P4", 7: "P5"}[layer.output.shape[1]]] = layer.output
    backbone.pyramid_outputs, backbone.image_shape = maps, (224, 224, 3)
    backbone.data_format = "channels_last"
    pyramid = FeaturePyramid(backbone, min_level=3, max_level=7, extra_levels="conv")
    found = fusion_time(pyramid)
    own = backbone.count_params()
    assert (found.parameters - own) / own < 0.1
    assert found.parameters_before > own and round(100 * found.share, 1) == 94.3
