"""Parameters of two-stage detectors: MMDetection's and the papers', 80 classes."""

import pytest

from keras_densepred import CEDNetBackbone, DetectionPyramid, ResNetBackbone
from keras_densepred.models import CascadeMaskRCNN, CascadeRCNN, FasterRCNN, GridRCNN, MaskRCNN
from tests.networks import trainable_parameters

pytestmark = pytest.mark.backend_free

CEDNET_CASCADE = dict(
    head_convs=4, head_fcs=1, head_norm=True, class_agnostic=False, box_loss="giou"
)


@pytest.mark.parametrize(
    "detector,parameters",
    [
        (FasterRCNN, 41_527_712),
        (CascadeRCNN, 69_169_422),
        (MaskRCNN, 44_170_992),
        (GridRCNN, 64_322_857),
    ],
)
def test_resnet50_with_fpn(detector, parameters):
    """MSFM.md, "Fit"; POINTS.md 0: exactly MMDetection's, stem and first stage frozen."""
    backbone = ResNetBackbone.from_preset("resnet50", frozen_stages=1)
    assert trainable_parameters(detector(backbone, num_classes=80)) == parameters


def test_grid_rcnn_with_modules():
    """The paper has 66.7M: 0.06M more, which nothing in it explains."""
    backbone = ResNetBackbone.from_preset("msfm_resnet50", frozen_stages=1)
    model = GridRCNN(backbone, num_classes=80)
    assert trainable_parameters(model) == 66_641_585
    assert model.box_heads[0].count_params() == 13_978_705
    assert model.grid_head.count_params() == 23_123_145
    assert model.box_heads[0].multiply_adds() == pytest.approx(13.98e6, rel=1e-3)
    assert model.grid_head.multiply_adds() == pytest.approx(1.133e9, rel=1e-3)


@pytest.mark.parametrize(
    "preset,detector,options,millions",
    [
        ("cednet_next_tiny", MaskRCNN, {}, 49.741),
        pytest.param("cednet_next_small", MaskRCNN, {}, 72.090, marks=pytest.mark.slow),
        ("cednet_next_tiny", CascadeMaskRCNN, CEDNET_CASCADE, 87.577),
        pytest.param(
            "cednet_next_small", CascadeMaskRCNN, CEDNET_CASCADE, 109.925, marks=pytest.mark.slow
        ),
    ],
)
def test_cednet_without_fpn(preset, detector, options, millions):
    """CEDNET.md 1.15, within 0.1 % as the issue asks, in fact within its rounding."""
    backbone = CEDNetBackbone.from_preset(preset)
    pyramid = DetectionPyramid(backbone, min_level=2, max_level=6)
    model = detector(pyramid, num_classes=80, **options)
    assert trainable_parameters(model) / 1e6 == pytest.approx(millions, abs=5.1e-4)


@pytest.mark.parametrize(
    "preset,parameters", [("resnet50_dcn", 42_108_554), ("msfm_resnet50_dcn", 44_427_282)]
)
def test_resnet50_with_deformable_convolutions(preset, parameters):
    """POINTS.md 0: MMDetection's "dconv c3-c5", and with MSFM's modules."""
    backbone = ResNetBackbone.from_preset(preset, frozen_stages=1)
    assert trainable_parameters(FasterRCNN(backbone, num_classes=80)) == parameters
