"""Multiply-adds of CEDNet's ImageNet classifiers against CEDNET.md 1.15."""

import keras
import pytest

from keras_densepred import CEDNetBackbone, CEDNetImageClassifier, ResNetBackbone
from keras_densepred.analysis.multiply_adds import count_attention_products, count_multiply_adds
from keras_densepred.layers import ShiftedWindowAttention

pytestmark = pytest.mark.backend_free

# In units of 1e9, at 224x224: with the last head alone, as in inference.
INFERENCE = {
    "cednet_next_tiny": 5.691,
    "cednet_next_small": 9.651,
    "cednet_next_base": 16.195,
    "cednet_swin_tiny": 5.841,
    "cednet_resnet50": 4.965,
    "cednet_next_tiny_fpn": 5.281,
    "cednet_next_tiny_unet": 5.057,
    "cednet_next_tiny_hourglass": 4.952,
}
# The same with the heads of all stages, as in training; the paper's 9.8G for S is this one.
ALL_HEADS = {
    "cednet_next_tiny": 5.797,
    "cednet_next_small": 9.811,
    "cednet_next_base": 16.413,
}
NO_FINAL_DECODER = ("cednet_next_tiny_unet", "cednet_next_tiny_hourglass")  # as released


@pytest.mark.parametrize("preset", INFERENCE)
def test_classifiers_of_the_paper(preset):
    released = {"final_decoder": False} if preset in NO_FINAL_DECODER else {}
    backbone = CEDNetBackbone.from_preset(preset, image_shape=(224, 224, 3), **released)
    model = CEDNetImageClassifier(backbone, num_classes=1000)
    inference = keras.Model(model.input, model.outputs[-1])
    assert round(count_multiply_adds(inference) / 1e9, 3) == INFERENCE[preset]
    if preset in ALL_HEADS:
        assert round(count_multiply_adds(model) / 1e9, 3) == ALL_HEADS[preset]


@pytest.mark.parametrize("preset, expected", [("resnet50", 83.41), ("resnet50_dcn", 85.98)])
def test_deformable_convolutions_count_the_one_that_finds_offsets(preset, expected):
    """POINTS.md 0, 800 x 1280 px."""
    backbone = ResNetBackbone.from_preset(preset, image_shape=(800, 1280, 3))
    assert round(count_multiply_adds(backbone) / 1e9, 2) == expected


def test_window_attention_counts_padded_positions():
    inputs = keras.Input((8, 10, 4))
    model = keras.Model(inputs, ShiftedWindowAttention(num_heads=2)(inputs))
    assert count_multiply_adds(model) == 14 * 14 * (4 * 12 + 4 * 4)


def test_an_open_image_size_is_refused():
    inputs = keras.Input((None, 32, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match="Counting needs a fixed image size"):
        count_multiply_adds(model)


def test_a_layer_of_unknown_arithmetic_is_refused():
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Conv2DTranspose(4, 3, name="grow")(inputs))
    with pytest.raises(ValueError, match="arithmetic of 'grow', a Conv2DTranspose, is unknown"):
        count_multiply_adds(model)


def test_norms_count_on_request_and_shared_layers_at_every_call():
    image = keras.Input((8, 6, 3))
    conv, norm = keras.layers.Conv2D(4, 1), keras.layers.BatchNormalization()
    inner = keras.Model(image, norm(conv(image)))
    outer = keras.Input((8, 6, 3))
    shared = keras.layers.Conv2D(4, 1)
    x = inner(outer)
    model = keras.Model(outer, shared(shared(x)))
    assert count_multiply_adds(model) == 48 * (3 * 4 + 2 * 4 * 4)
    assert count_multiply_adds(model, norms=True) == 48 * (3 * 4 + 2 * 4 * 4 + 4)


@pytest.mark.parametrize("preset,billions", [("cednet_swin_tiny", 0.241), ("cednet_next_pico", 0)])
def test_attention_products_stand_apart(preset, billions):
    """CEDNET.md 1.15: 5.841 G and 0.241 G of attention."""
    backbone = CEDNetBackbone.from_preset(preset, image_shape=(224, 224, 3))
    assert round(count_attention_products(backbone) / 1e9, 3) == billions
