"""Which variables learn how fast and are decayed how much."""

import keras
import numpy as np
import pytest

from keras_densepred.training import layer_decay

COARSE = {
    "stem_conv1/kernel": 0,
    "p2_block1_dwconv/kernel": 1,
    "p2_downsample_conv/kernel": 1,
    "stage1_encoder_c3_block1_norm/gamma": 2,
    "stage3_encoder_c5_block2_pwconv1/kernel": 4,
    "stage2_decoder_norm2/beta": 3,
    "pyramid_p6_conv/kernel": None,
    "box_head/conv1/kernel": None,
}
FINE = {
    "stem_norm2/gamma": 0,
    "p2_downsample_norm/beta": 1,
    "stage2_encoder_c3_block2_dwconv/kernel": 4,
    "stage2_encoder_downsample1_conv/kernel": 4,
    "stage2_encoder_c4_block4_dwconv/kernel": 4,
    "stage2_encoder_c4_block5_dwconv/kernel": 5,
    "stage2_encoder_c4_block12_dwconv/kernel": 5,
    "stage2_encoder_downsample2_norm/gamma": 5,
    "stage2_encoder_c5_block1_dwconv/kernel": 5,
    "stage2_decoder_upsample1/kernel": 5,
    "pyramid_p3_norm/gamma": None,
}


@pytest.mark.parametrize(("path", "layer_id"), COARSE.items())
def test_layer_ids(path, layer_id):
    assert layer_decay.cednet_layer_id(path) == layer_id


@pytest.mark.parametrize(("path", "layer_id"), FINE.items())
def test_fine_layer_ids(path, layer_id):
    assert layer_decay.cednet_layer_id(path, fine=True) == layer_id


def test_rules_are_the_papers():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, name="stem_conv1")(inputs)
    x = keras.layers.LayerNormalization(name="p2_block1_norm")(x)
    for stage in (1, 2, 3):
        x = keras.layers.Conv2D(4, 1, name=f"stage{stage}_encoder_c3_block1_pwconv1")(x)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="pyramid_p3_conv")(x))
    rules = layer_decay.cednet_rules(model, 0.95)
    scales = [rules[v.path][0] for v in model.weights]
    # CEDNET.md 2.2, T at 0.95: 0.774, 0.815, 0.857, 0.903, 0.95, 1
    expected = np.repeat([0.774, 0.815, 0.857, 0.903, 0.95, 1.0], 2)
    np.testing.assert_allclose(scales, expected, atol=5e-4)
    assert rules["stem_conv1/kernel"][1] == 0.05
    assert rules["stem_conv1/bias"][1] == 0.0
    assert rules["p2_block1_norm/gamma"][1] == 0.0


def test_rules_need_a_cednet():
    with pytest.raises(ValueError, match="no CEDNet layers"):
        inputs = keras.Input((4,))
        layer_decay.cednet_rules(
            keras.Model(inputs, keras.layers.Dense(2, name="dense_x")(inputs)), 0.9
        )


@pytest.mark.parametrize(
    ("preset", "variant"),
    [
        ("cednet_next_t", "tiny"),
        ("cednet_next_base", "base"),
        ("cednet_next_tiny_unet", "tiny"),
        ("cednet_swin_tiny", "swin"),
        ("cednet_resnet50", "resnet50"),
    ],
)
def test_variants(preset, variant):
    assert layer_decay.cednet_variant(preset) == variant


def test_matrices_are_decayed_and_vectors_are_not():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    rules = layer_decay.matrix_decay_rules(model, 0.05)
    assert rules["conv/kernel"] == (1.0, 0.05)
    assert {rules[f"{name}"] for name in ("conv/bias", "norm/gamma", "norm/beta")} == {(1.0, 0.0)}
