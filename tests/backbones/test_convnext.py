"""ConvNeXt: the published counts, rates by depth, patches."""

import keras
import numpy as np
import pytest

from keras_densepred import ConvNeXtBackbone, FeaturePyramid, models
from keras_densepred.layers.conv import PatchConv
from tests.networks import max_difference

# CEDNet, Tables 1 to 3, by BASELINES.md 2.1: parameters.
RETINANET = {"convnext_tiny": 38_759_572, "convnext_small": 60_394_132}
MASK = {"convnext_tiny": 48_095_376, "convnext_small": 69_729_936}
CASCADE_MASK = {
    "convnext_tiny": 85_930_578,
    "convnext_small": 107_565_138,
    "convnext_base": 145_800_242,
}
CASCADE_HEADS = dict(
    head_convs=4, head_fcs=1, head_norm=True, class_agnostic=False, box_loss="giou"
)


def fpn(preset, retinanet=False):
    backbone = ConvNeXtBackbone.from_preset(preset)
    if retinanet:
        return FeaturePyramid(backbone, 256, 3, 7, extra_levels="conv_on_c5")
    return FeaturePyramid(backbone)


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset, count",
    [
        ("convnext_tiny", 27_818_592),
        pytest.param("convnext_small", 49_453_152, marks=pytest.mark.slow),
        pytest.param("convnext_base", 87_564_416, marks=pytest.mark.slow),
    ],
)
def test_backbones_have_the_published_size(preset, count):
    assert trainable(ConvNeXtBackbone.from_preset(preset, stage_norms=False)) == count


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("preset", RETINANET)
def test_retinanet_has_the_published_size(preset):
    assert trainable(models.RetinaNet(fpn(preset, True), 80)) == RETINANET[preset]


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("preset", MASK)
def test_mask_rcnn_has_the_published_size(preset):
    assert trainable(models.MaskRCNN(fpn(preset), 80)) == MASK[preset]


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("preset", CASCADE_MASK)
def test_cascade_mask_rcnn_has_the_published_size(preset):
    model = models.CascadeMaskRCNN(fpn(preset), 80, **CASCADE_HEADS)
    assert trainable(model) == CASCADE_MASK[preset]


@pytest.mark.backend_free
@pytest.mark.parametrize("depths, last", [((3, 3, 9, 3), 6), ((3, 3, 27, 3), 12)])
def test_depths_are_those_of_the_authors_code(depths, last):
    backbone = ConvNeXtBackbone(depths, (4, 4, 4, 4))
    assert backbone.num_layers == last
    expected = {
        "stem_conv/kernel": 0,
        "stage1_block3_dwconv/kernel": 1,
        "stage2_downsample_norm/gamma": 2,
        "stage2_block1_pwconv1/kernel": 2,
        "stage3_downsample_conv/kernel": 3,
        "stage3_block3_layer_scale/gamma": 3,
        "stage3_block4_norm/gamma": 4,
        f"stage3_block{depths[2]}_norm/beta": last - 1,
        "stage4_downsample_conv/bias": last,
        "stage4_block1_dwconv/bias": last,
        "stage4_norm/gamma": None,
        "fpn_p3_conv/kernel": None,
    }
    paths = {weight.path for weight in backbone.weights}
    for path, depth in expected.items():
        assert path in paths or path.startswith("fpn")
        assert backbone.layer_depth(path) == depth, path


@pytest.mark.backend_free
def test_drop_path_rises_from_block_to_block():
    backbone = ConvNeXtBackbone((1, 1, 2, 1), (4, 4, 4, 4), drop_path_rate=0.4)
    rates = [layer.rate for layer in backbone.layers if layer.name.endswith("_drop_path")]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4])  # the first block has none


def test_patches_lie_side_by_side():
    x = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype("float32")
    layer = PatchConv(5, 4, 4)
    expected = keras.layers.Conv2D(5, 4, 4, "valid", data_format="channels_last")
    expected.build(x.shape)
    found = layer(x)
    expected.set_weights(layer.get_weights())
    assert max_difference(found, expected(x)) < 1e-5
    assert layer.compute_output_shape((1, 8, 12, 3)) == tuple(found.shape) == (1, 2, 3, 5)
    copy = PatchConv.from_config(layer.get_config())
    assert copy.padding == 0 and copy.strides == 4


@pytest.mark.backend_free
def test_sizes_that_are_refused():
    with pytest.raises(ValueError, match="must be four positive numbers"):
        ConvNeXtBackbone((3, 3, 9))
    with pytest.raises(ValueError, match=r"`drop_path_rate` must be in \[0, 1\)"):
        ConvNeXtBackbone(drop_path_rate=1.0)


@pytest.mark.backend_free
@pytest.mark.parametrize("extra_levels, channels", [("conv", 8), ("conv_on_c5", 12)])
def test_what_p6_is_made_of(extra_levels, channels):
    backbone = ConvNeXtBackbone((1, 1, 1, 1), (4, 4, 4, 12))
    pyramid = FeaturePyramid(backbone, 8, 3, 7, extra_levels=extra_levels)
    assert pyramid.get_layer("fpn_p6_conv").kernel.shape == (3, 3, channels, 8)
    assert pyramid.get_layer("fpn_p7_conv").kernel.shape == (3, 3, 8, 8)
    copy = FeaturePyramid.from_config(pyramid.get_config())
    assert copy.extra_levels == extra_levels
