"""Layers of Deformable DETR against the authors' (`tests/golden/detr`, rule in detr_state.py).

The tables of mistakes in the references' rule: what the outputs of whole layers catch is offsets
over (height, width) or as (y, x), pixel corners for centres, clamped borders, nearest samples, a
softmax for each level, padding not masked or masked before `value_proj`, valid ratios of 1, the
position added to values, and Keras' epsilon of layer norms. `test_sine_positions` catches offset 0,
x before y, and features that are not interleaved.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.convert.detr import authors_targets
from keras_densepred.convert.state import assign_state
from keras_densepred.layers import initializers
from keras_densepred.layers.deformable_attention import (
    DeformableAttention,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from keras_densepred.layers.sine_position import sine_positions
from keras_densepred.layers.token_attention import FeedForward, TokenAttention
from keras_densepred.layers.token_maps import TokenLayout, as_tokens
from keras_densepred.models.detr.decoder import DeformableDecoderLayer
from keras_densepred.runtime.input_gradient import input_gradient
from tests.convert.detr_state import keys_of, make_input, make_state

GOLDEN = Path(__file__).parents[1] / "golden" / "detr"


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("name,offset", [("offset_minus_half", -0.5), ("offset_zero", 0.0)])
def test_sine_positions(name, offset):
    with np.load(GOLDEN / "sine_position.npz") as file:
        expected, valid = file[name], ~file["mask"]
    counts = np.stack([valid[:, :, 0].sum(1), valid[:, 0].sum(1)], axis=1)
    found = numpy(sine_positions((7, 9), ops.convert_to_tensor(counts, "int32"), 256, offset))
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5)
    assert np.isfinite(found).all()
    whole = numpy(sine_positions((7, 9), None, 256, offset))
    np.testing.assert_allclose(whole[0], expected[0], atol=1e-5)


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "ddetr_layers.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def layers(reference):
    """Encoder and decoder layer 0 of the authors, named as they are in a transformer."""
    encoder = DeformableEncoder(1, name="encoder")
    encoder.build((None, None, 256))
    decoder = DeformableDecoderLayer(name="decoder_0")
    decoder.build((None, None, 256))
    state = make_state(keys_of(reference))
    targets = authors_targets([*encoder.encoder_layers[0].weights, *decoder.weights])
    assign_state(keras.Sequential(), targets, state, is_optional=lambda key: "layers.1." in key)
    return encoder.encoder_layers[0], decoder


def gradients(function, inputs, variables):
    """Of a scalar function of several tensors, compiled once."""
    sizes = np.cumsum([int(np.prod(x.shape)) for x in inputs])[:-1].tolist()

    def of_one(x, _):
        parts = ops.split(x, sizes)
        return function(*(ops.reshape(p, i.shape) for p, i in zip(parts, inputs, strict=True)))

    flat = np.concatenate([numpy(x).reshape(-1) for x in inputs])
    parts = np.split(input_gradient(of_one, variables)(flat, {}), sizes)
    return [p.reshape(i.shape) for p, i in zip(parts, inputs, strict=True)]


def layout_of(reference):
    maps = [np.zeros((2, *shape, 1), "float32") for shape in reference["spatial_shapes"].tolist()]
    return TokenLayout.of(
        [ops.convert_to_tensor(x) for x in maps],
        ops.convert_to_tensor(reference["sizes"], "int32"),
        tuple(reference["canvas"].tolist()),
    )


def inputs(*names):
    shapes = {"query": (2, 6, 256), "query_pos": (2, 6, 256), "dec_grad": (2, 6, 256)}
    return [
        ops.convert_to_tensor(make_input(f"ddetr_layers:{n}", shapes.get(n, (2, 128, 256))))
        for n in names
    ]


@pytest.mark.slow_on("jax")
def test_layout_of_padded_images(reference):
    layout = layout_of(reference)
    np.testing.assert_array_equal(numpy(layout.valid), ~reference["padding_mask"])
    np.testing.assert_allclose(numpy(layout.valid_ratios), reference["valid_ratios"], atol=1e-7)
    np.testing.assert_allclose(
        numpy(layout.on_levels(layout.centres)), reference["enc_reference"], rtol=1e-6
    )
    whole = TokenLayout(layout.shapes)
    assert whole.valid is None
    np.testing.assert_allclose(
        numpy(whole.on_levels(whole.centres)), reference["enc_reference"][:1], rtol=1e-6
    )


def test_tokens_become_maps_again():
    maps = [ops.convert_to_tensor(make_input(f"m{n}", (2, 3 - n, 4, 5))) for n in range(3)]
    layout = TokenLayout.of(maps)
    for old, new in zip(maps, layout.split(as_tokens(maps)), strict=True):
        np.testing.assert_array_equal(numpy(old), numpy(new))


@pytest.mark.slow_on("jax", "tensorflow")
def test_encoder_layer(reference, layers):
    encoder, layout, valid = layers[0], layout_of(reference), ~reference["padding_mask"]
    tokens, positions, grad = inputs("tokens", "pos", "grad")
    places = layout.on_levels(layout.centres)
    found = numpy(encoder(tokens, positions, places, layout=layout))
    np.testing.assert_allclose(found[valid], reference["enc_output"][valid], atol=1e-4)

    weights = ops.convert_to_tensor(numpy(grad) * valid[..., None])
    names = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    biases = [getattr(encoder.attention, name).bias for name in names]

    def loss(tokens, *values):
        with keras.StatelessScope(state_mapping=list(zip(biases, values, strict=True))):
            return ops.sum(encoder(tokens, positions, places, layout=layout) * weights)

    found = gradients(loss, [tokens, *(bias.value for bias in biases)], encoder.variables)
    np.testing.assert_allclose(found[0], reference["enc_d_tokens"], rtol=1e-3, atol=1e-4)
    for name, gradient in zip(names, found[1:], strict=True):
        expected = reference[f"enc_d_{name}_bias"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.slow_on("jax", "tensorflow")
def test_decoder_layer(reference, layers, numbers):
    decoder, layout = layers[1], layout_of(reference)
    query, position, memory, grad = inputs("query", "query_pos", "memory", "dec_grad")
    places = layout.on_levels(ops.convert_to_tensor(reference["dec_reference"][..., :numbers]))
    found = numpy(decoder(query, position, memory, places, layout=layout))
    np.testing.assert_allclose(found, reference[f"dec_output_{numbers}d"], atol=1e-4)
    if numbers == 4:
        return

    def loss(query, memory):
        out = decoder(query, position, memory, places, layout=layout)
        return ops.sum(out * grad)

    of_query, of_memory = gradients(loss, [query, memory], decoder.variables)
    np.testing.assert_allclose(of_query, reference["dec_d_query"], rtol=1e-3, atol=1e-4)
    expected = reference["dec_d_memory_image1"]
    np.testing.assert_allclose(of_memory[1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.backend_free
def test_layers_start_as_the_authors(monkeypatch):
    """DETR.md 1.4 and 1.7: bounds of PyTorch's packed matrix, offsets on the unit square."""
    monkeypatch.setattr(initializers.random, "randint", lambda *_: 7)
    attention = TokenAttention(8)
    attention.build((None, None, 256))
    for layer, fans in (("query", 1024), ("key", 1024), ("value", 1024), ("output", 512)):
        kernel = numpy(getattr(attention, f"{layer}_proj").kernel)
        assert np.abs(kernel).max() == pytest.approx(np.sqrt(6 / fans), rel=1e-3)
        assert not numpy(getattr(attention, f"{layer}_proj").bias).any()
    feed_forward = FeedForward(1024)
    feed_forward.build((None, None, 256))
    for layer, fan_in in ((feed_forward.expand, 256), (feed_forward.reduce, 1024)):
        assert np.abs(numpy(layer.kernel)).max() == pytest.approx(np.sqrt(6 / 1280), rel=1e-3)
        assert np.abs(numpy(layer.bias)).max() == pytest.approx(fan_in**-0.5, rel=0.02)
    deformable = DeformableAttention(8, 4, 4)
    deformable.build((None, None, 256))
    assert not numpy(deformable.sampling_offsets.kernel).any()
    start = numpy(deformable.sampling_offsets.bias).reshape(8, 4, 4, 2)
    directions = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    for point in range(4):
        for level in range(4):
            np.testing.assert_allclose(
                start[:, level, point], (point + 1) * np.array(directions), atol=1e-6
            )
    assert not numpy(deformable.attention_weights.kernel).any()
    # Mask2Former's: normal, but for the attention, which starts as everywhere.
    layer = DeformableEncoderLayer(8, 3, 4, xavier="normal")
    layer.build((None, None, 256))
    values, expand = (
        numpy(x.kernel) for x in (layer.attention.value_proj, layer.feed_forward.expand)
    )
    assert np.abs(values).max() == pytest.approx(np.sqrt(6 / 512), rel=1e-3)
    assert expand.std() == pytest.approx(np.sqrt(2 / 1280), rel=0.02)
    assert np.abs(expand).max() > np.sqrt(6 / 1280)


@pytest.mark.slow_on("jax")
def test_encoder_is_made_anew_from_its_config():
    encoder = DeformableEncoder(
        1, num_heads=2, num_levels=2, num_points=1, hidden=4, dropout=0.5, offset=0.0
    )
    copy = DeformableEncoder.from_config(encoder.get_config())
    maps = [ops.convert_to_tensor(make_input(f"x{n}", (2, 4 - n, 3, 8))) for n in range(2)]
    layout = TokenLayout.of(maps)
    for layer in (encoder, copy):
        layer.build((None, None, 8))
    assert [w.path.split("/")[1:] for w in copy.weights] == [
        w.path.split("/")[1:] for w in encoder.weights
    ]
    copy.set_weights(encoder.get_weights())
    found = numpy(encoder(maps, layout=layout))
    np.testing.assert_array_equal(found, numpy(copy(maps, layout=layout)))
    assert found.shape == (2, 21, 8)
    dropped = numpy(encoder(maps, layout=layout, training=True))
    assert np.abs(dropped - found).max() > 1e-3


def test_attention_looks_only_where_it_may():
    attention = TokenAttention(2)
    attention.build((None, None, 4))
    query, keys = (ops.convert_to_tensor(make_input(n, (1, 3, 4))) for n in "qk")
    allowed = np.array([[[True, False, False]] * 3])
    found = numpy(attention(query, keys, keys, allowed=ops.convert_to_tensor(allowed)))
    value = attention.output_proj(attention.value_proj(keys[:, :1]))
    np.testing.assert_allclose(found, np.broadcast_to(numpy(value), found.shape), atol=1e-5)


@pytest.mark.backend_free
def test_channels_divide_into_heads():
    for layer in (TokenAttention(3), DeformableAttention(3)):
        with pytest.raises(ValueError, match="do not divide into `num_heads` 3"):
            layer.build((None, None, 8))
