"""Shifted-window attention against NumPy, and the faults of CEDNet's ImageNet code (CEDNET.md 1.7).

No outputs of the authors' Swin classifier are at hand, so the facts of the specification stand in:
no padding, no roll of the input and no mask where the map is one window high, but always a roll of
a shifted block's output.
"""

import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetBackbone
from keras_densepred.layers import ShiftedWindowAttention
from tests.weights import compiled

WINDOW, SHIFT, HEADS, CHANNELS = 7, 3, 2, 4


def layer_and_inputs(height, width, shift_size, compat, batch=1):
    """A layer with weights large enough that every part of it shows in the output."""
    rng = np.random.default_rng(0)
    layer = ShiftedWindowAttention(
        HEADS, WINDOW, shift_size=shift_size, classification_compat=compat
    )
    layer.build((None, height, width, CHANNELS))
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer, rng.normal(size=(batch, height, width, CHANNELS)).astype("float32")


def run(layer, inputs):
    return ops.convert_to_numpy(compiled(layer)(inputs))


def reference(layer, inputs, shift_input, shift_output):
    """The attention, one pair of positions after the other, of one image that is whole windows."""
    qkv_kernel, qkv_bias, proj_kernel, proj_bias = (
        ops.convert_to_numpy(weight).astype(np.float64)
        for weight in (layer.qkv.kernel, layer.qkv.bias, layer.proj.kernel, layer.proj.bias)
    )
    table = ops.convert_to_numpy(layer.relative_position_bias)
    height, width = inputs.shape[1:3]
    size = CHANNELS // HEADS
    attended = np.zeros((height, width, CHANNELS))

    def place(row, column):
        """Where the rolled input's position lies in the window grid, and whether it wrapped."""
        shifted = row - shift_input, column - shift_input
        wrapped = shifted[0] < 0, shifted[1] < 0
        return shifted[0] % height, shifted[1] % width, wrapped

    positions = [(r, c) for r in range(height) for c in range(width)]
    qkv = (inputs[0] @ qkv_kernel + qkv_bias).reshape(height, width, 3, HEADS, size)
    for here in positions:
        row, column, wrapped = place(*here)
        seen, offsets = [], []
        for there in positions:
            other_row, other_column, other_wrapped = place(*there)
            same_window = (row // WINDOW, column // WINDOW) == (
                other_row // WINDOW,
                other_column // WINDOW,
            )
            if same_window and wrapped == other_wrapped:
                seen.append(there)
                down, right = row - other_row + WINDOW - 1, column - other_column + WINDOW - 1
                offsets.append(down * (2 * WINDOW - 1) + right)
        rows, columns = np.array(seen).T
        for head in range(HEADS):
            query = qkv[here[0], here[1], 0, head] * size**-0.5
            logits = qkv[rows, columns, 1, head] @ query + table[offsets, head]
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            values = weights @ qkv[rows, columns, 2, head]
            attended[row, column, head * size : (head + 1) * size] = values
    outputs = attended @ proj_kernel + proj_bias
    return np.roll(outputs, (shift_output, shift_output), axis=(0, 1))[None]


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("shift", [0, SHIFT])
def test_taller_than_a_window_both_codes_shift_mask_and_shift_back(compat, shift):
    layer, inputs = layer_and_inputs(14, 14, shift, compat)
    assert_close(run(layer, inputs), reference(layer, inputs, shift, shift))


def test_only_the_height_decides():
    """14x7 is shifted and masked although it is one window wide, 7x14 is not."""
    layer, inputs = layer_and_inputs(14, 7, SHIFT, compat=True)
    assert_close(run(layer, inputs), reference(layer, inputs, SHIFT, SHIFT))
    layer, inputs = layer_and_inputs(7, 14, SHIFT, compat=True)
    assert_close(run(layer, inputs), reference(layer, inputs, 0, SHIFT))


@pytest.mark.parametrize("width", [7, 14])
def test_one_window_high_compat_rolls_only_the_output(width):
    shifted, inputs = layer_and_inputs(7, width, SHIFT, compat=True, batch=2)
    plain, _ = layer_and_inputs(7, width, 0, compat=True)
    expected = np.roll(run(plain, inputs), (SHIFT, SHIFT), axis=(1, 2))
    np.testing.assert_array_equal(run(shifted, inputs), expected)


def test_one_window_high_without_compat_rolls_both_and_masks():
    layer, inputs = layer_and_inputs(7, 7, SHIFT, compat=False)
    assert_close(run(layer, inputs), reference(layer, inputs, SHIFT, SHIFT))
    compat, _ = layer_and_inputs(7, 7, SHIFT, compat=True)
    assert np.abs(run(layer, inputs) - run(compat, inputs)).max() > 0.1


def test_blocks_without_shift_are_the_same_in_both_codes():
    compat, inputs = layer_and_inputs(7, 7, 0, compat=True)
    plain, _ = layer_and_inputs(7, 7, 0, compat=False)
    np.testing.assert_array_equal(run(compat, inputs), run(plain, inputs))


@pytest.mark.parametrize("size", [(8, 7), (7, 13), (6, 6)])
def test_compat_pads_nothing(size):
    layer, inputs = layer_and_inputs(*size, SHIFT, compat=True)
    with pytest.raises(ValueError, match="sides are multiples of 224"):
        layer(inputs)
    padding, _ = layer_and_inputs(*size, SHIFT, compat=False)
    assert run(padding, inputs).shape == inputs.shape


def test_a_compat_backbone_takes_multiples_of_224():
    sizes = dict(p2_width=32, p2_depth=1, widths=(32, 32, 32), depths=(1, 1, 1), num_stages=1)
    settings = {**sizes, "token_mixer": "swin", "swin_classification_compat": True}
    backbone = CEDNetBackbone(**settings, image_shape=(224, 448, 3))
    assert backbone.size_divisor == 224
    with pytest.raises(ValueError, match="must be multiples of 224"):
        CEDNetBackbone(**settings, image_shape=(256, 224, 3))


def test_padding_is_attended_to_and_cut_off():
    """As the detection code: an 8x8 map is a 14x14 one with zeros at the bottom and the right."""
    layer, inputs = layer_and_inputs(8, 8, SHIFT, compat=False)
    padded = np.pad(inputs, ((0, 0), (0, 6), (0, 6), (0, 0)))
    expected = reference(layer, padded, SHIFT, SHIFT)[:, :8, :8]
    assert_close(run(layer, inputs), expected)


def test_config_round_trip():
    layer, inputs = layer_and_inputs(7, 7, SHIFT, compat=True)
    copy = ShiftedWindowAttention.from_config(layer.get_config())
    copy.build((None, 7, 7, CHANNELS))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(run(copy, inputs), run(layer, inputs))
