"""Every model on networks of KerasHub and keras.applications: it trains, or says what to do."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred import BiFPN, DetectionPyramid, FeaturePyramid, HostBackbone, models
from tests.networks import EFFICIENTNET

SIDE = 64
IMAGES = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype("float32")
BOXES = np.full((2, 2, 4), -1.0, "float32")
LABELS = np.full((2, 2), -1, "int32")
BOXES[:, 0], LABELS[:, 0] = (8, 8, 40, 50), 1
MASKS = np.zeros((2, 2, SIDE, SIDE), "uint8")
MASKS[:, 0, 8:50, 8:40] = 1
CLASS_MASKS = np.random.default_rng(1).integers(0, 3, (2, SIDE, SIDE)).astype("int32")
# Compilation takes XLA longer than these few steps take without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}

hub = keras_hub.models
SHAPE = (None, None, 3)
RESNET = dict(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 16, 16, 16],
    stackwise_num_blocks=[1, 1, 1, 1],
    stackwise_num_strides=[1, 2, 2, 2],
    block_type="basic_block",
)
RESNET_VD = {
    **RESNET,
    "input_conv_filters": [8, 8, 64],
    "input_conv_kernel_sizes": [3, 3, 3],
    "block_type": "basic_block_vd",
}
CSP_DARKNET = dict(
    stackwise_num_filters=[8] * 5, stackwise_depth=[1] * 5, block_ratio=[0.5], bottle_ratio=[1.0]
)
CSP_RESNET = dict(
    stackwise_num_filters=[8] * 4,
    stackwise_depth=[1] * 4,
    stackwise_strides=[1, 2, 2, 2],
    bottle_ratio=[0.5],
    expand_ratio=[2.0],
    stem_pooling="max",
)
MIT = dict(
    layerwise_depths=[1] * 4,
    num_layers=4,
    layerwise_num_heads=[1] * 4,
    layerwise_sr_ratios=[8, 4, 2, 1],
    max_drop_path_rate=0.1,
    layerwise_patch_sizes=[7, 3, 3, 3],
    layerwise_strides=[4, 2, 2, 2],
    hidden_dims=[8] * 4,
    image_shape=(SIDE, SIDE, 3),
)
HGNETV2 = dict(
    depths=[1] * 4,
    embedding_size=8,
    hidden_sizes=[8] * 4,
    stem_channels=[3, 8, 8],
    hidden_act="relu",
    use_learnable_affine_block=False,
    stackwise_stage_filters=[(8, 8, 8, 1, 1, 3)] * 4,
    apply_downsample=[False, True, True, True],
    use_lightweight_conv_block=[False] * 4,
)
SWIN = dict(
    image_shape=(224, 224, 3),
    patch_size=4,
    embed_dim=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    window_size=7,
)
DINOV2 = dict(
    patch_size=14,
    num_layers=1,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=16,
    image_shape=(56, 56, 3),
)
DINOV3 = {**DINOV2, "patch_size": 16, "image_shape": (64, 64, 3)}
VGG = dict(stackwise_num_repeats=[1] * 5, stackwise_num_filters=[8] * 5)


def application(name, **options):
    return getattr(keras.applications, name)(include_top=False, weights=None, **options)


# What users have, of a few layers where its constructor allows.
NETWORKS = {
    "ResNet": lambda: hub.ResNetBackbone(**RESNET),
    "ResNet-vd": lambda: hub.ResNetBackbone(**RESNET_VD),
    "DenseNet": lambda: hub.DenseNetBackbone([1] * 4, growth_rate=4),
    "CSP darknet": lambda: hub.CSPNetBackbone(
        8, 3, 1, stackwise_strides=2, block_type="dark_block", stage_type="csp", **CSP_DARKNET
    ),
    "CSP resnet": lambda: hub.CSPNetBackbone(
        8, 7, 4, block_type="bottleneck_block", stage_type="csp", **CSP_RESNET
    ),
    # keras-hub 0.32.0: its configuration forgets `num_features`, so others than 1280 do not load.
    "EfficientNet": lambda: hub.EfficientNetBackbone(**{**EFFICIENTNET, "num_features": 1280}),
    "MiT": lambda: hub.MiTBackbone(**MIT),
    "DINOv2": lambda: hub.DINOV2Backbone(**DINOV2),
    "DINOv3": lambda: hub.DINOV3Backbone(**DINOV3),
    "HGNetV2": lambda: hub.HGNetV2Backbone(**HGNETV2),
    "Swin": lambda: hub.SwinTransformerBackbone(**SWIN),
    "VGG": lambda: hub.VGGBackbone(**VGG),
    "ConvNeXt": lambda: application("ConvNeXtTiny"),
    "EfficientNetV2B0": lambda: application("EfficientNetV2B0"),
    "MobileNetV2": lambda: application("MobileNetV2", alpha=0.35),
}

AS_THEY_ARE = ("ResNet", "ResNet-vd", "DenseNet", "CSP resnet", "EfficientNet")
WITHOUT_MAPS = ("DINOv2", "DINOv3", "Swin")

HEADS = dict(head_width=8, head_depth=1)
RCNN = dict(head_width=8, samples=8, num_proposals=12, rpn_width=8, max_detections=5)


def fpn(backbone, **options):
    return FeaturePyramid(backbone, width=8, **options)


MODELS = {
    "RN(b)": lambda b: models.RetinaNetKerasHub(b, 3, **HEADS),
    "RN(DP(b))": lambda b: models.RetinaNetKerasHub(DetectionPyramid(b, 8), 3, **HEADS),
    "RN(FP(b))": lambda b: models.RetinaNetKerasHub(
        fpn(b, min_level=3, max_level=7, extra_levels="conv"), 3, **HEADS
    ),
    "RN(BP(b))": lambda b: models.RetinaNet(BiFPN(b, 8, 1), 3, **HEADS),
    "FasterRCNN(b)": lambda b: models.FasterRCNN(b, 3, **RCNN),
    "FasterRCNN(FP(b))": lambda b: models.FasterRCNN(fpn(b), 3, **RCNN),
    "FasterRCNN(BP(b))": lambda b: models.FasterRCNN(BiFPN(b, 8, 1, 2, 6), 3, **RCNN),
    "FasterRCNN(DP(b))": lambda b: models.FasterRCNN(
        DetectionPyramid(b, 8, min_level=2, max_level=6), 3, **RCNN
    ),
    "MaskRCNN(FP(b))": lambda b: models.MaskRCNN(fpn(b), 3, mask_convs=1, **RCNN),
    "CascadeRCNN(FP(b))": lambda b: models.CascadeRCNN(fpn(b), 3, **RCNN),
    "YOLOv3(b)": lambda b: models.YOLOv3Detector(b, 3, neck="prn"),
    "DeepLabV3(b)": lambda b: models.DeepLabV3(b, 3, width=8, atrous_rates=(2,)),
}


def assert_trains_predicts_and_reloads(model, path):
    model.compile(optimizer=keras.optimizers.SGD(1e-4), **COMPILE)
    y = {"boxes": BOXES, "labels": LABELS}
    if isinstance(model, models.MaskRCNN):
        y["masks"] = MASKS
    if isinstance(model, models.Segmenter):
        y = CLASS_MASKS
    assert np.isfinite(model.train_on_batch(IMAGES, y)).all()
    expected = model.predict(IMAGES, batch_size=2, verbose=0)
    model.save(path)
    found = keras.models.load_model(path).predict(IMAGES, batch_size=2, verbose=0)
    for ours, theirs in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


FAST = {("MobileNetV2", "RN(FP(b))"), ("ResNet", "DeepLabV3(b)"), ("MiT", "FasterRCNN(FP(b))")}


def cells(networks, fast):
    return [
        pytest.param(n, m, marks=() if (n, m) in fast else pytest.mark.slow, id=f"{n}-{m}")
        for n in networks
        for m in MODELS
    ]


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "network, model", cells([n for n in NETWORKS if n not in WITHOUT_MAPS], FAST)
)
def test_models_on_host_backbones(network, model, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = HostBackbone(NETWORKS[network]())
    assert_trains_predicts_and_reloads(MODELS[model](backbone), tmp_path / "model.keras")


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "network, model", cells(AS_THEY_ARE, {("DenseNet", "RN(DP(b))"), ("ResNet", "DeepLabV3(b)")})
)
def test_models_on_networks_as_they_are(network, model, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = NETWORKS[network]()
    assert_trains_predicts_and_reloads(MODELS[model](backbone), tmp_path / "model.keras")


@pytest.mark.backend_free
@pytest.mark.parametrize("network", [name for name in NETWORKS if name not in AS_THEY_ARE])
def test_what_is_not_a_pyramid_of_true_levels_is_refused_in_a_sentence(network):
    backbone = NETWORKS[network]()
    for name, model in MODELS.items():
        with pytest.raises(ValueError, match=r"give `keras_densepred\.HostBackbone") as raised:
            model(backbone)
        assert "\n" not in str(raised.value), name


@pytest.mark.backend_free
@pytest.mark.parametrize("network", WITHOUT_MAPS)
def test_networks_without_maps_are_refused_in_a_sentence(network):
    with pytest.raises(ValueError, match=r"has no feature maps of stride .*: take a network of"):
        HostBackbone(NETWORKS[network]())
