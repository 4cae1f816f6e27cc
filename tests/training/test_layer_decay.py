"""Which variables learn how fast and are decayed how much."""

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, DetectionPyramid, ResNetBackbone
from keras_densepred.training import layer_decay


def scales(rules, *prefixes):
    """The learning-rate scales of the layers whose names start so."""
    found = [{scale for path, (scale, _) in rules.items() if path.startswith(p)} for p in prefixes]
    assert all(len(values) == 1 for values in found), found
    return [value for (value,) in found]


def cednet(num_stages=3, c4_blocks=1):
    return CEDNetBackbone(
        p2_width=8,
        p2_depth=1,
        widths=(8, 8, 8),
        depths=(1, c4_blocks, 1),
        num_stages=num_stages,
        stem_width=8,
    )


def test_rules_are_the_papers():
    """CEDNET.md 2.2, T at 0.95: 0.774, 0.815, 0.857, 0.903, 0.95, 1."""
    pyramid = DetectionPyramid(cednet(), 8)
    rules = layer_decay.layer_decay_rules(pyramid, 0.95)
    assert rules.keys() == {variable.path for variable in pyramid.weights}
    found = scales(rules, "stem_", "p2_", "stage1_", "stage2_", "stage3_", "pyramid_p6_")
    np.testing.assert_allclose(found, [0.774, 0.815, 0.857, 0.903, 0.95, 1.0], atol=5e-4)
    assert rules["p2_downsample_conv/kernel"][1] == 0.05
    assert rules["p2_downsample_conv/bias"][1] == 0.0
    assert rules["p2_block1_norm/gamma"][1] == 0.0


def test_large_variants_have_finer_layers():
    """CEDNET.md 2.2: S and B have 9 layers, each stage is two of them."""
    rules = layer_decay.layer_decay_rules(cednet(num_stages=4, c4_blocks=6), 0.9)
    first = scales(rules, "stage4_encoder_c3_", "stage4_encoder_c4_block4_")
    second = scales(rules, "stage4_encoder_c4_block5_", "stage4_encoder_c5_")
    np.testing.assert_allclose([first, second], [[0.9**2] * 2, [0.9] * 2])
    np.testing.assert_allclose(scales(rules, "stem_"), [0.9**10])


def test_a_rate_needs_depths():
    resnet = ResNetBackbone(depths=(1, 1, 1, 1), width=8)
    with pytest.raises(ValueError, match="ResNetBackbone does not say how deep its layers lie"):
        layer_decay.layer_decay_rules(resnet, 0.9)
    rules = layer_decay.layer_decay_rules(resnet, 1.0, 0.1)
    assert rules == layer_decay.matrix_decay_rules(resnet, 0.1)


def test_matrices_are_decayed_and_vectors_are_not():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    rules = layer_decay.matrix_decay_rules(model, 0.05)
    assert rules["conv/kernel"] == (1.0, 0.05)
    assert {rules[f"{name}"] for name in ("conv/bias", "norm/gamma", "norm/beta")} == {(1.0, 0.0)}
