"""What every backbone promises. A family joins by being registered, a user's own too.

`families.FAMILIES` may have a small configuration of it; otherwise its defaults are tested.
"""

import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import DetectionPyramid, FeaturePyramid
from keras_densepred.backbones import backbone_families, find_backbone, load_backbone
from keras_densepred.layers.norm import SyncConvBatchNorm
from tests.contracts.families import FAMILIES, OwnBackbone
from tests.networks import images, max_difference, output_shapes, run
from tests.weights import gradients, set_deterministic_weights

SMALL = dict(FAMILIES.values())
JAX = keras.config.backend() == "jax"
# XLA takes long to compile the others; their layers are tested there one by one.
COMPILED_ON_JAX = ("CEDNetBackbone", "ResNetBackbone", "OwnBackbone")

every_family = pytest.mark.parametrize("family", backbone_families(), ids=lambda f: f.__name__)
# Keras takes longest to build BiCSNet; its lite form is the same code.
LONG = "BiCSNetBackbone"
every_family_computed = pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            f,
            marks=[
                *([] if f.__name__ in COMPILED_ON_JAX else [pytest.mark.slow_on("jax")]),
                *([pytest.mark.slow] if f.__name__ == LONG else []),
            ],
        )
        for f in backbone_families()
    ],
    ids=lambda f: f.__name__,
)


def build(family, **options):
    backbone = family(**{**SMALL.get(family, {}), **options})
    set_deterministic_weights(backbone)
    return backbone


@functools.cache
def built(family):
    """One for all tests that only look at it or call it, not as in training."""
    return build(family)


def size_of(backbone, divisor=None):
    """An image size that fits a backbone, not square, at least as large as its coarsest stride."""
    divisor = divisor or backbone.size_divisor
    coarsest = 2 ** backbone.levels[-1]
    return divisor * -(-coarsest // divisor), divisor * -(-(coarsest + 1) // divisor)


def expected_shapes(backbone, height, width):
    return {
        level: (1, -(-height // info.stride), -(-width // info.stride), info.channels)
        for level, info in backbone.feature_info.items()
    }


def test_a_users_own_family_is_among_them():
    assert OwnBackbone in backbone_families()
    assert not OwnBackbone.__module__.startswith("keras_densepred")


@every_family
def test_levels_have_the_sizes_of_their_strides(family):
    backbone = built(family)
    assert list(backbone.pyramid_outputs) == [f"P{level}" for level in backbone.levels]
    assert list(backbone.levels) == sorted(backbone.levels)
    size = size_of(backbone)
    assert output_shapes(backbone, images(*size)) == expected_shapes(backbone, *size)
    for level, name in backbone.pyramid_level_inputs.items():
        assert backbone.get_layer(name).output is backbone.pyramid_outputs[level]


@every_family
def test_the_size_divisor_is_true(family):
    """Other sizes are refused in one sentence, or the maps are of the right sizes, too."""
    backbone = built(family)
    size = tuple(side + 13 for side in size_of(backbone))
    try:
        shapes = output_shapes(backbone, images(*size))
    except ValueError as error:
        assert f"multiples of {backbone.size_divisor}, got {size[0]} x {size[1]}" in str(error)
    else:
        assert shapes == expected_shapes(backbone, *size)


@every_family_computed
def test_open_sizes_in_a_graph(family):
    if keras.config.backend() != "tensorflow":
        pytest.skip("of TensorFlow's graphs")
    import tensorflow as tf

    backbone = built(family)
    batch = images(*size_of(backbone))
    signature = tf.TensorSpec((None, None, None, 3), "float32")
    call = tf.function(lambda x: backbone(x), input_signature=[signature])
    assert max_difference(call(batch), backbone(batch)) < 1e-5


@pytest.mark.backend_free
@every_family
def test_config_comes_back(family):
    backbone = built(family)
    config = backbone.get_config()
    assert set(family._arguments()) <= set(config)
    copy = family.from_config(json.loads(json.dumps(config)))
    assert json.dumps(copy.get_config()) == json.dumps(config)
    assert [w.path for w in copy.weights] == [w.path for w in backbone.weights]


@every_family_computed
def test_saves_and_loads_exactly(family, tmp_path):
    backbone = built(family)
    backbone.save(tmp_path / "model.keras")
    backbone.save_to_preset(tmp_path / "preset")
    source = find_backbone(str(tmp_path / "preset"))
    assert source.family is family and source.architecture == backbone.architecture
    for copy in (keras.models.load_model(tmp_path / "model.keras"), source.build()):
        assert type(copy) is family and copy.get_config() == backbone.get_config()
        for weight, expected in zip(copy.weights, backbone.weights, strict=True):
            assert weight.path == expected.path
            assert np.array_equal(*map(ops.convert_to_numpy, (weight, expected)))
        if not JAX:  # the same weights, compiled again
            batch = images(*size_of(backbone))
            assert max_difference(copy(batch), backbone(batch)) == 0


@every_family_computed
def test_gradients_are_finite(family):
    backbone = build(family)
    batch = images(*size_of(backbone), batch=2)
    for weight, gradient in zip(
        backbone.trainable_variables, gradients(backbone, batch), strict=True
    ):
        assert gradient is not None and np.all(np.isfinite(gradient)), weight.path


@every_family_computed
def test_channels_first_is_the_same_network(family):
    last = built(family)
    first = build(family, data_format="channels_first", image_shape=(3, None, None))
    batch = images(*size_of(last))
    outputs = {
        level: ops.transpose(x, (0, 2, 3, 1))
        for level, x in run(first, batch.transpose(0, 3, 1, 2)).items()
    }
    assert max_difference(outputs, run(last, batch)) < 1e-6
    assert first.feature_info == last.feature_info


@every_family_computed
def test_mixed_bfloat16_stays_close(family):
    mixed, plain = build(family, dtype="mixed_bfloat16"), built(family)
    batch = images(*size_of(plain))
    reference = run(plain, batch)
    for level, output in run(mixed, batch).items():
        assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
        output = ops.convert_to_numpy(ops.cast(output, "float32"))
        expected = ops.convert_to_numpy(reference[level])
        assert np.mean(np.abs(output - expected)) < 0.05 * (np.std(expected) + 0.1)
    assert {w.dtype for w in mixed.trainable_weights} == {"float32"}


@pytest.mark.backend_free
@every_family
def test_is_pyramid_is_what_heads_need(family):
    backbone = built(family)
    levels, widths = backbone.levels, {x.channels for x in backbone.feature_info.values()}
    contiguous = levels == tuple(range(levels[0], levels[-1] + 1))
    assert backbone.is_pyramid == (contiguous and len(widths) == 1)


@pytest.mark.backend_free
@pytest.mark.parametrize("neck", [DetectionPyramid, FeaturePyramid])
@pytest.mark.parametrize(
    "family",
    [
        # Lite has the same levels.
        pytest.param(f, marks=pytest.mark.slow if f.__name__ == LONG else ())
        for f in backbone_families()
    ],
    ids=lambda f: f.__name__,
)
def test_necks_make_a_pyramid_of_it_or_say_what_is_missing(neck, family):
    backbone = built(family)
    missing = [f"P{level}" for level in (3, 4, 5) if level not in backbone.levels]
    if missing:
        with pytest.raises(ValueError, match=f"has no level {', '.join(missing)}"):
            neck(backbone, 8, min_level=3)
        return
    pyramid = neck(backbone, 8, min_level=3, max_level=7)
    assert pyramid.is_pyramid and pyramid.levels == (3, 4, 5, 6, 7)
    assert pyramid.size_divisor % backbone.size_divisor == 0
    assert pyramid.num_layers == backbone.num_layers
    config = pyramid.get_config()
    copy = neck.from_config(json.loads(json.dumps(config)))
    assert type(copy.backbone) is family and json.dumps(copy.get_config()) == json.dumps(config)


@pytest.mark.backend_free
@every_family
def test_the_kit_makes_layers_for_heads(family):
    kit, x = built(family).kit, keras.Input((8, 8, 4))
    x = kit.act(kit.norm(kit.conv(x, 6, 3, "conv", stride=2), "norm"), "act")
    assert x.shape == (None, 4, 4, 6)


@pytest.mark.backend_free
@every_family
def test_options_that_it_lacks_are_named(family):
    for argument in (*family._arguments(), "name", "trainable", "dtype"):
        assert family.accepts(argument)
    assert not family.accepts("kwargs") and not family.accepts("wings")
    with pytest.raises(ValueError, match=f"{family.__name__} has no option 'wings'"):
        build(family, wings=2)
    for preset in list(family.architecture_presets())[:1]:
        with pytest.raises(ValueError, match=f"{family.__name__} has no option 'wings'"):
            load_backbone(preset, wings=2)


@pytest.mark.backend_free
@every_family
def test_presets_are_told_from_each_other(family):
    presets = family.architecture_presets()
    for preset, entry in presets.items():
        found = family.architecture_of(entry["config"])
        assert found == preset or presets[found]["config"] == entry["config"]
        changed = {**entry["config"], "drop_path_rate": 0.7, "sync_batch_norm": True}
        assert family.architecture_of(changed) == found


@pytest.mark.backend_free
@every_family
def test_depths_are_those_of_its_layers(family):
    backbone = built(family)
    depths = {backbone.layer_depth(weight.path) for weight in backbone.weights}
    assert depths == ({None} if not backbone.num_layers else set(range(backbone.num_layers + 1)))
    assert backbone.layer_depth("another_model/kernel") is None


@pytest.mark.backend_free
@every_family
def test_sync_batch_norm_is_of_all_batch_norms(family):
    if not family.accepts("sync_batch_norm"):
        pytest.skip("has no such option")
    options = {"token_mixer": "resnet"} if family.accepts("token_mixer") else {}
    backbone = build(family, sync_batch_norm=True, **options)
    norms = [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and all(isinstance(norm, SyncConvBatchNorm) for norm in norms)
