"""MSFM against its definition in NumPy, its start, sizes and errors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import MSFM
from tests.networks import run
from tests.weights import set_deterministic_weights

SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)


def reference(layer: MSFM, x: np.ndarray) -> np.ndarray:
    """The module as MSFM.md writes it, for one image (H, W, C)."""
    weights = {w.path.split("/", 1)[-1]: ops.convert_to_numpy(w) for w in layer.weights}

    def conv(y, name):
        kernel = weights[f"{name}/kernel"]
        if kernel.ndim == 2:
            return y @ kernel + weights[f"{name}/bias"]
        padded = np.pad(y, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        return np.einsum("hwcij,ijcd->hwd", windows, kernel) + weights[f"{name}/bias"]

    def norm(y, name):
        grouped = y.reshape(-1, layer.groups, y.shape[-1] // layer.groups)
        mean, variance = grouped.mean((0, 2)), grouped.var((0, 2))
        grouped = (grouped - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
        return grouped.reshape(y.shape) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def resize_axis(y, size):
        at = np.clip((np.arange(size) + 0.5) * len(y) / size - 0.5, 0, len(y) - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, len(y) - 1), (at - low)[:, None, None]
        return y[low] * (1 - share) + y[high] * share

    def resize(y, size):
        return resize_axis(resize_axis(y, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)

    squeezed = np.maximum(norm(conv(x, "squeeze"), "squeeze_norm"), 0)
    counts = layer.num_convs
    counts = [counts] * len(layer.scales) if isinstance(counts, int) else counts
    branches = []
    for number, (scale, count) in enumerate(zip(layer.scales, counts, strict=True), 1):
        size = [max(1, int(np.floor(side * scale + 1e-6))) for side in x.shape[:2]]
        y = resize(squeezed, size)
        for i in range(1, count + 1):
            y = conv(y, f"branch{number}_conv{i}")
            y = np.maximum(norm(y, f"branch{number}_norm{i}"), 0)
        branches.append(resize(y, x.shape[:2]))
    fused = np.concatenate(branches, -1) if layer.fusion == "cat" else sum(branches)
    return x + norm(conv(fused, "expand"), "expand_norm")


def module(**options) -> MSFM:
    layer = MSFM(ratio=4, groups=2, name="msfm", **options)
    layer.build((None, None, None, 16))
    return layer


@pytest.mark.parametrize(
    "options",
    [
        {"scales": SCALES, "num_convs": (1, 1, 1, 2, 2)},
        {"fusion": "cat"},
    ],
    ids=str,
)
def test_equals_the_definition(options):
    layer = module(**options)
    set_deterministic_weights(layer)
    x = np.random.default_rng(0).normal(size=(1, 13, 10, 16)).astype("float32")
    outputs = ops.convert_to_numpy(run(layer, x))
    np.testing.assert_allclose(outputs[0], reference(layer, x[0]), atol=2e-5)


def test_any_size_in_a_functional_model():
    inputs = keras.Input((None, None, 16))
    model = keras.Model(inputs, module(scales=(0.7, 1.4))(inputs))
    assert model.output_shape == (None, None, None, 16)
    for size in ((9, 8), (1, 1)):
        x = np.ones((1, *size, 16), "float32")
        # As it starts, the module is the identity.
        assert np.array_equal(ops.convert_to_numpy(run(model, x)), x)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        set_deterministic_weights(model)
        signature = tf.TensorSpec((None, None, None, 16), "float32")
        call = tf.function(lambda x: model(x), input_signature=[signature])
        x = np.random.default_rng(0).normal(size=(2, 11, 7, 16)).astype("float32")
        np.testing.assert_allclose(call(x).numpy(), model(x).numpy(), atol=1e-5)


@pytest.mark.backend_free
def test_rounding_of_sizes():
    """90 * 0.7 is 63, which plain floats round down to 62."""
    layer = module(scales=(0.7,))
    assert layer.multiply_adds((90, 1, 16)) == 2 * 90 * 16 * 4 + 63 * 9 * 4 * 4


@pytest.mark.backend_free
def test_without_zero_start_it_is_no_identity():
    gamma = module(zero_init=False).expand_norm.gamma
    assert np.all(ops.convert_to_numpy(gamma) == 1)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "options,message",
    [
        ({"ratio": 3, "groups": 2}, r"has 5 squeezed channels, .* `groups` 2"),
        ({"ratio": 32}, "0 squeezed channels"),
        ({"groups": 0}, "must be positive"),
        ({"scales": ()}, "`scales` must be positive"),
        ({"fusion": "max"}, "`fusion` must be one of"),
        ({"num_convs": (1, 2)}, "one for each of the 3 scales"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MSFM(**{"ratio": 4, "groups": 2, **options}).build((None, None, None, 16))


@pytest.mark.backend_free
def test_config_round_trip():
    layer = module(scales=[0.5, 1], num_convs=[1, 2], fusion="cat", zero_init=False)
    assert MSFM.from_config(layer.get_config()).get_config() == layer.get_config()
