"""DetectionPyramid: levels and round trips; test_cednet.py counts the authors' detectors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetBackbone, DetectionPyramid
from tests.networks import CEDNET_TINY, max_difference, mini_cednet, trainable_parameters

# TensorFlow takes longest to build them.
ONE_WILL_DO = pytest.mark.slow_on("tensorflow")


@pytest.mark.backend_free
def test_without_long_range_blocks():
    """Table 8: 38.5M."""
    backbone = CEDNetBackbone.from_preset("cednet_next_tiny", lr_blocks=False)
    total = trainable_parameters(DetectionPyramid(backbone)) + 6_463_220
    assert total / 1e6 == pytest.approx(38.476, abs=5e-4)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize(
    "levels",
    [(3, 7), *(pytest.param(levels, marks=[ONE_WILL_DO]) for levels in ((2, 6), (3, 5)))],
)
def test_levels_and_round_trip(levels, tmp_path):
    pyramid = DetectionPyramid(mini_cednet(), 24, *levels)
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
    outputs = pyramid(images)
    assert list(outputs) == [f"P{level}" for level in range(levels[0], levels[1] + 1)]
    for level, output in outputs.items():
        stride = 2 ** int(level[1:])
        assert tuple(output.shape) == (2, -(-64 // stride), -(-96 // stride), 24)
    assert list(pyramid.pyramid_level_inputs) == list(outputs)
    pyramid.save(tmp_path / "pyramid.keras")
    pyramid.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "pyramid.keras"),
        DetectionPyramid.from_preset(str(tmp_path / "preset")),
    ):
        assert isinstance(copy, DetectionPyramid) and isinstance(copy.backbone, CEDNetBackbone)
        assert max_difference(copy(images), outputs) == 0


def test_freezing_the_backbone_leaves_the_projections_trainable():
    pyramid = DetectionPyramid(mini_cednet(), 24)
    pyramid.backbone.trainable = False
    names = {w.path.split("/")[0] for w in pyramid.trainable_weights}
    assert names and all(name.startswith("pyramid_p") for name in names)


@pytest.mark.slow_on("jax")
def test_levels_above_are_padded_like_the_authors():
    """A stride-2 convolution with symmetric padding: an even map keeps its even positions."""
    pyramid = DetectionPyramid(mini_cednet(), 8, max_level=6)
    images = np.random.default_rng(0).normal(size=(1, 128, 128, 3)).astype("float32")
    tap = pyramid.get_layer("pyramid_p6_conv").output
    p5, outputs = keras.Function(pyramid.inputs, [pyramid.pyramid_outputs["P5"], tap])([images])
    p5, outputs = ops.convert_to_numpy(p5), ops.convert_to_numpy(outputs)
    layer = pyramid.get_layer("pyramid_p6_conv")
    kernel, bias = (ops.convert_to_numpy(w) for w in layer.weights)
    padded = np.pad(p5, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.einsum("hwc,hwco->o", padded[0, 2:5, 0:3], kernel) + bias
    np.testing.assert_allclose(outputs[0, 1, 0], expected, atol=1e-4)


@pytest.mark.backend_free
def test_bad_levels_are_named():
    backbone = CEDNetBackbone(**CEDNET_TINY)
    with pytest.raises(ValueError, match="`min_level` must be 2 or 3"):
        DetectionPyramid(backbone, min_level=4)
    with pytest.raises(ValueError, match="has no level P2; it has P3"):
        DetectionPyramid(DetectionPyramid(backbone, 8), min_level=2)
