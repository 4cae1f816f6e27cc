"""CSPNet's necks: what the networks cost, as the paper counts."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_densepred.analysis import darknet_costs
from keras_densepred.backbones import CSPDenseNetBackbone, CSPNetBackbone, PeleeNetBackbone
from keras_densepred.convert import darknet
from keras_densepred.models import YOLO_NECKS, YOLOv3Detector
from keras_densepred.necks.yolo import ObjectnessBias
from tests.models.conftest import ToyPyramid

COUNTS = {
    row["name"]: row
    for row in json.loads(
        (Path(__file__).parents[1] / "golden" / "csp" / "counts.json").read_text()
    )
}
# Networks of counts.json, without the image size that ends the name.
NETWORKS = {
    "PeleeNet-PRN": (PeleeNetBackbone, "peleenet", "prn"),
    "PeleeNet-PRN-3l": (PeleeNetBackbone, "peleenet", "prn_3l"),
    "CSPPeleeNet-PRN": (CSPDenseNetBackbone, "csp_peleenet", "prn"),
    "CSPPeleeNet-PRN-3l": (CSPDenseNetBackbone, "csp_peleenet", "prn_3l"),
    "CSPPeleeNet-CEM": (CSPDenseNetBackbone, "csp_peleenet", "cem"),
    "CSPPeleeNet-CEM-SAM": (CSPDenseNetBackbone, "csp_peleenet", "cem_sam"),
    "CSPPeleeNet-GFM": (CSPDenseNetBackbone, "csp_peleenet", "gfm"),
    "CSPPeleeNet-EFM": (CSPDenseNetBackbone, "csp_peleenet", "efm"),
    "CSPPeleeNet-EFM-SAM": (CSPDenseNetBackbone, "csp_peleenet", "efm_sam"),
    "CSPPeleeNet-EFM-SPP": (CSPDenseNetBackbone, "csp_peleenet", "efm_spp"),
    "CSPPeleeNet-Ref-EFM-SAM": (CSPDenseNetBackbone, "csp_peleenet_ref", "efm_sam"),
    "CSPDenseNet-Ref-EFM-SAM": (CSPDenseNetBackbone, "csp_densenet_ref", "efm_sam"),
    "CSPPeleeNet-Ref-PRN-3l": (CSPDenseNetBackbone, "csp_peleenet_ref", "prn_3l"),
    "CSPPeleeNet-Ref-PRN": (CSPDenseNetBackbone, "csp_peleenet_ref", "prn"),
    "CSPDenseNet-Ref-PRN": (CSPDenseNetBackbone, "csp_densenet_ref", "prn"),
    "CSPDenseNetb-Ref-PRN": (CSPDenseNetBackbone, "csp_densenet_b_ref", "prn"),
    "cfg:CSPResNeXt50-PANet-SPP": (CSPNetBackbone, "csp_resnext_50", "panet_spp"),
}
DETECTORS = [name for name in COUNTS if name.rpartition("-")[0] in NETWORKS and name[-3:].isdigit()]


@pytest.mark.backend_free
def test_every_detector_of_the_counts_is_here():
    assert len(DETECTORS) == 21
    assert {name.rpartition("-")[0] for name in DETECTORS} == set(NETWORKS)


@functools.cache
def backbone(family, preset, size):
    return family.from_preset(preset, image_shape=(size, size, 3))


@pytest.mark.backend_free
@pytest.mark.parametrize("network", NETWORKS)
def test_counts(network):
    family, preset, neck = NETWORKS[network]
    rows = [COUNTS[name] for name in DETECTORS if name.rpartition("-")[0] == network]
    size = rows[0]["size"]
    model = YOLOv3Detector(backbone(family, preset, size), 80, neck)
    operations = darknet_costs.count_operations(model) / 1e9
    for row in rows:
        assert round(darknet_costs.count_weights(model) / 1e6, 4) == row["w"]
        assert round(darknet_costs.count_file_floats(model) / 1e6, 4) == row["file"]
        # Every layer of the networks with several sizes works at every position.
        assert round(operations * (row["size"] / size) ** 2, 4) == row["bf"]


@pytest.mark.backend_free
def test_darknet_files():
    """The length of the published csresnext50-panet-spp.weights; predictions follow their maps."""
    backbone = CSPNetBackbone.from_preset("csp_resnext_50")
    model = YOLOv3Detector(backbone, 80, "panet_spp")
    weights = darknet.darknet_weights(model)
    assert 20 + 4 * sum(int(np.prod(weight.shape)) for weight in weights) == 228_123_400
    order = model.darknet_order
    behind = [order[order.index(f"yolo_p{level}_prediction") + 1 :][:1] for level in (3, 4, 5)]
    assert behind == [("panet_n4_down_conv",), ("panet_n5_down_conv",), ()]


def cost(neck, size=416):
    backbone = Pyramid416(image_shape=(size, size, 3))
    model = YOLOv3Detector(backbone, 80, neck)
    return darknet_costs.count_weights(model), darknet_costs.count_operations(model) / 1e9


def Pyramid416(image_shape):
    """A backbone of CSPPeleeNet's widths that costs nothing worth counting twice."""
    images = keras.Input(image_shape)
    outputs, x = {}, keras.layers.MaxPooling2D(4)(images)
    for level, channels in (("P3", 256), ("P4", 512), ("P5", 640)):
        x = keras.layers.Conv2D(channels, 1, 2, name=level)(x)
        outputs[level] = x
    model = keras.Model(images, outputs)
    model.pyramid_outputs, model.image_shape = outputs, image_shape
    return model


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("neck", "base", "weights", "operations"),
    [
        ("prn_3l", "prn", 196_480, 0.996),
        ("efm_sam", "efm", 147_456, 0.1994),
        ("cem_sam", "cem", 49_152, 0.1163),
        ("efm_sam", "prn", 1_086_528, None),
        ("efm_spp", "efm", -49_152, -0.0047),
    ],
)
def test_differences_hold_on_any_backbone(neck, base, weights, operations):
    first, second = cost(neck), cost(base)
    assert first[0] - second[0] == weights
    if operations is not None:
        assert first[1] - second[1] == pytest.approx(operations, abs=6e-4)


@pytest.mark.backend_free
@pytest.mark.parametrize("neck", YOLO_NECKS)
def test_narrow_backbones(neck):
    """Narrower than any maxout, so that convolutions stand in."""
    model = YOLOv3Detector(ToyPyramid(ready=False), 2, neck)
    levels = ["P4", "P5"] if neck in ("prn", "tiny") else ["P3", "P4", "P5"]
    assert list(model.output) == levels
    assert all(x.shape[2:] == (3, 7) and x.dtype == "float32" for x in model.output.values())


@pytest.mark.slow_on("jax", "tensorflow")  # test_yolov3.py trains and predicts there
@pytest.mark.parametrize("neck", YOLO_NECKS)
def test_runs(neck):
    model = YOLOv3Detector(Pyramid416((None, None, 3)), 2, neck)
    outputs = model.predict_on_batch(np.ones((1, 64, 96, 3), "float32"))
    assert outputs["num_detections"].shape == (1,)
    outputs = model(np.ones((1, 64, 96, 3), "float32"))
    for level, x in outputs.items():
        stride = 2 ** int(level[1:])
        assert x.shape == (1, 64 * 96 // stride**2, 3, 7)
    start = keras.ops.convert_to_numpy(keras.ops.sigmoid(outputs["P5"][..., 4]))
    np.testing.assert_allclose(start, 0.01, atol=5e-3)


@pytest.mark.backend_free
def test_bias_is_the_prior_of_objectness_alone():
    bias = keras.ops.convert_to_numpy(ObjectnessBias(3, 0.1)((21,))).reshape(3, 7)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias[:, 4])), 0.1, rtol=1e-5)
    assert (np.delete(bias, 4, axis=1) == 0).all()
