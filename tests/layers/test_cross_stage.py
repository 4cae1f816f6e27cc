"""The cross-stage-partial form of any stage, and the layers it is made of."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.layers import (
    ChannelSlice,
    Concat,
    ConvNorm,
    CrossStage,
    DenseBlock,
    MaxPool,
    NeXtMixer,
    residual_block,
)

KIT = ConvNorm("swish")


def maps(height=6, width=5, channels=8):
    return np.random.default_rng(0).normal(size=(2, height, width, channels)).astype("float32")


def cednet_stage(x):
    """Two blocks of CEDNet, at the width of what they are given."""
    mixer = NeXtMixer(layer_scale_init=0.1)
    for number in (1, 2):
        x = mixer.lr_block(x, name=f"block{number}", rate=0.0, index=number - 1, level=5)
    return x


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_stage_of_cednet_in_partial_form_trains():
    images = keras.Input((8, 8, 16))
    outputs = CrossStage(KIT, gamma=0.25, width=20)(images, cednet_stage, "c5")
    assert outputs.shape == (None, 8, 8, 20)
    model = keras.Model(images, outputs)
    assert model.get_layer("c5_bypass_conv").kernel.shape == (16, 4)
    assert model.get_layer("block1_dwconv1").kernel.shape[:3] == (7, 7, 12)
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=keras.config.backend() == "jax")
    targets = np.zeros((2, 8, 8, 20), "float32")
    history = model.fit(maps(8, 8, 16), targets, batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for old, weight in zip(before, model.weights, strict=True):
        if weight.name == "kernel":
            assert np.any(old != ops.convert_to_numpy(weight)), weight.path


STAGES = {
    "dense": lambda x: DenseBlock(KIT, growth=4)(x, 2, 4, "dense"),
    "one-way": lambda x: DenseBlock(KIT, growth=4, ways=1)(x, 2, 4, "dense"),
    "sparse": lambda x: DenseBlock(KIT, growth=4, sparse=True, se=True)(x, 2, 4, "dense"),
    "grouped": lambda x: DenseBlock(KIT, growth=8, grouped=True)(x, 2, 8, "dense"),
    "residual": lambda x: residual_block(KIT, x, x.shape[-1], "block"),
    "layer": keras.layers.ReLU(),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fusion", ["both", "first", "last"])
def test_any_stage_and_its_width(stage, fusion):
    images = keras.Input((None, None, 8))
    growth = {"dense": 8, "one-way": 8, "sparse": 8, "grouped": 16}.get(stage, 0)
    partial = CrossStage(KIT, part_widths=(3, 4), fusion=fusion)
    assert partial(images, STAGES[stage], "s").shape[-1] == 3 + 4 + growth
    if fusion != "last":
        wide = CrossStage(KIT, part_widths=(3, 4), fusion=fusion, width=10)
        assert wide(images, STAGES[stage], "s").shape[-1] == 10


@pytest.mark.backend_free
def test_fusion_says_which_transitions_there_are():
    images = keras.Input((None, None, 8))
    for fusion, expected in (
        ("both", {"s_transition_conv", "s_fuse_conv"}),
        ("first", {"s_fuse_conv"}),
        ("last", {"s_transition_conv"}),
    ):
        model = keras.Model(images, CrossStage(KIT, fusion=fusion)(images, STAGES["layer"], "s"))
        convolutions = {layer.name for layer in model.layers if layer.name.endswith("_conv")}
        assert convolutions == expected | {"s_bypass_conv", "s_branch_conv"}


def test_slices_and_order_of_the_concat():
    images, batch = keras.Input((6, 5, 8)), maps()
    for bypass_first in (False, True):
        cross_stage = CrossStage(
            KIT, gamma=0.25, split="slices", fusion="first", bypass_first=bypass_first
        )
        outputs = cross_stage.partial(images, keras.layers.Rescaling(2.0), "s")
        bypass, branch = batch[..., :2], 2 * batch[..., 2:]
        expected = np.concatenate([bypass, branch] if bypass_first else [branch, bypass], -1)
        result = keras.Model(images, outputs)(batch)
        np.testing.assert_array_equal(ops.convert_to_numpy(result), expected)


@pytest.mark.backend_free
def test_pools_halve_where_they_are_said_to():
    images = keras.Input((7, 5, 8))
    for pool in ("parts", "transition"):
        partial = CrossStage(KIT, pool=pool)
        assert partial(images, STAGES["layer"], "s").shape == (None, 4, 3, 8)
    before = CrossStage(KIT, pool="transition").partial(images, STAGES["layer"], "s")
    assert before.shape == (None, 7, 5, 8)
    model = keras.Model(images, CrossStage(KIT, pool="parts")(images, STAGES["layer"], "s"))
    assert model.get_layer("s_branch_conv").output.shape[1:3] == (7, 5)
    assert model.get_layer("s_bypass_conv").output.shape[1:3] == (4, 3)


@pytest.mark.backend_free
def test_bad_arguments_are_named():
    images = keras.Input((4, 4, 8))
    for changes, message in (
        ({"split": "half"}, "`split` must be one of"),
        ({"fusion": "none"}, "`fusion` must be one of"),
        ({"pool": "stem"}, "`pool` must be one of"),
        ({"gamma": 0}, "`gamma` must be between 0 and 1, got 0"),
        ({"gamma": 0.01}, "8 channels cannot be split into 0 and 8"),
        ({"part_widths": (6, 6), "split": "slices"}, "cannot be split into 6 and 6"),
    ):
        with pytest.raises(ValueError, match=message):
            CrossStage(KIT, **changes)(images, STAGES["layer"], "s")


def test_layers_equal_numpy_and_round_trip():
    batch = maps()
    for layer, expected in (
        (ChannelSlice(2, 5), batch[..., 2:5]),
        (MaxPool(2, 2), _max_pool_2x2(batch)),
    ):
        layer.build(batch.shape)
        for copy in (layer, type(layer).from_config(layer.get_config())):
            copy.build(batch.shape)
            result = ops.convert_to_numpy(copy(ops.convert_to_tensor(batch)))
            np.testing.assert_array_equal(result, expected)
            assert copy.compute_output_shape(batch.shape) == expected.shape
    joined = Concat()
    for _ in range(2):  # built by the first call
        result = joined([ops.convert_to_tensor(batch), ops.convert_to_tensor(-batch[..., :3])])
        expected = np.concatenate([batch, -batch[..., :3]], -1)
        np.testing.assert_array_equal(ops.convert_to_numpy(result), expected)


def _max_pool_2x2(x):
    padded = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    return np.maximum.reduce([padded[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
