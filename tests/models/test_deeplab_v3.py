"""DeepLabv3 on pyramids: structure, any size, ignored pixels, training, saving, presets."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import models
from keras_densepred.backbones import CEDNetBackbone
from keras_densepred.runtime import replicas
from tests.models.conftest import ToyPyramid

BACKEND = keras.backend.backend()
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if BACKEND == "tensorflow" else {}


def make(backbone, **options):
    return models.DeepLabV3(backbone, 3, **{"width": 8, "atrous_rates": (2,), **options})


def batch(height=32, width=48):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, height, width, 3)).astype("float32")
    masks = random.integers(0, 3, (2, height, width)).astype("int32")
    masks[:, : height // 2] = 255
    return images, masks


@pytest.mark.slow_on("jax")
def test_trains_predicts_and_comes_back(toy_backbone, tmp_path):
    images, masks = batch()
    model = make(toy_backbone)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), **COMPILE)

    def batches():
        while True:
            yield images, masks

    losses = model.fit(batches(), steps_per_epoch=4, epochs=2, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(3), abs=0.15) and losses[1] < losses[0]
    expected = model.predict(images, verbose=0)
    assert expected.shape == (2, 32, 48, 3) and expected.dtype == np.float32
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is models.DeepLabV3
    assert isinstance(loaded.loss, models.IgnoreCrossentropy)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, atol=1e-5)
    model.save_to_preset(tmp_path / "preset")
    preset = models.DeepLabV3.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(preset.predict(images, verbose=0), expected, atol=1e-5)
    # New classes keep the backbone's weights.
    other = models.DeepLabV3.from_preset(str(tmp_path / "preset"), num_classes=5)
    assert other.output_shape[-1] == 5
    for ours, theirs in zip(model.backbone.weights, other.backbone.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ours, theirs)))


@pytest.mark.slow_on("jax", "tensorflow")
def test_any_size(toy_backbone):
    model = make(toy_backbone)
    for height, width in ((32, 32), (33, 47), (9, 70)):
        images = np.zeros((1, height, width, 3), "float32")
        assert tuple(model(images).shape) == (1, height, width, 3)


def test_the_papers_head_has_the_counted_parameters():
    """BICSNET.md 3.2: 25.63 M for BiCSNet-48, of which 22,212,325 are the backbone's."""
    model = models.DeepLabV3(ToyPyramid(filters=256), num_classes=21)

    def trainable(part):
        return sum(int(np.prod(weight.shape)) for weight in part.trainable_weights)

    assert trainable(model) - trainable(model.backbone) == 3_417_365
    assert pytest.approx(25.63, abs=0.005) == (22_212_325 + 3_417_365) / 1e6
    names = [layer.name for layer in model.layers]
    assert not any(name.startswith("lateral") for name in names)


@pytest.mark.slow_on("jax", "tensorflow")
def test_levels_of_different_widths_are_projected_and_finer_ones_left_out():
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 16), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    assert "P2" in backbone.pyramid_outputs
    model = make(backbone, atrous_rates=None)
    names = [layer.name for layer in model.layers]
    assert {f"lateral_p{level}_conv" for level in (3, 4, 5)} <= set(names)
    assert not any("p2" in name or "aspp" in name for name in names)
    assert model(np.zeros((1, 32, 64, 3), "float32")).shape == (1, 32, 64, 3)


def test_a_built_in_name_of_a_backbone():
    model = models.DeepLabV3.from_preset("cednet_next_pico", num_classes=4, width=8)
    assert isinstance(model.backbone, CEDNetBackbone) and model.num_classes == 4
    with pytest.raises((ValueError, FileNotFoundError, OSError)):
        models.DeepLabV3.from_preset("no_such_preset", num_classes=4)


@pytest.mark.slow_on("jax")
def test_logits_are_float32_in_mixed_precision():
    model = make(ToyPyramid(ready=False, dtype="mixed_bfloat16"))
    logits = model(np.zeros((1, 32, 32, 3), "float32"))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.get_layer("head_1_conv").compute_dtype == "bfloat16"


def test_defaults_of_compile(toy_backbone):
    model = make(toy_backbone)
    assert isinstance(model.loss, models.IgnoreCrossentropy)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert not isinstance(model.loss, models.IgnoreCrossentropy)


class NoFinerThanP4(ToyPyramid):
    def __init__(self, **kwargs):
        super().__init__(ready=False, **kwargs)
        del self.pyramid_outputs["P3"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "`width` is 0"),
        ({"num_classes": 0}, "`num_classes` is 0"),
        ({"activation": "tanh"}, "`activation`"),
        ({"backbone": NoFinerThanP4}, "has no level P3"),
        (
            {"backbone": lambda: keras.Sequential(name="plain")},
            "'plain', a Sequential, has no `pyramid_outputs`",
        ),
    ],
)
def test_bad_arguments_are_named(toy_backbone, options, message):
    make_backbone = options.pop("backbone", lambda: toy_backbone)
    arguments = {"num_classes": 3, **options}
    with pytest.raises(ValueError, match=message):
        models.DeepLabV3(make_backbone(), **arguments)


def test_a_channels_first_backbone_is_refused(toy_backbone, monkeypatch):
    monkeypatch.setattr(toy_backbone, "data_format", "channels_first", raising=False)
    with pytest.raises(ValueError, match="is channels_first"):
        make(toy_backbone)


def test_devices_with_unlike_many_labelled_pixels_share_one_mean(toy_backbone, monkeypatch):
    """Two replicas by turns, in one process: the engines average what they return."""
    model = make(toy_backbone)
    model.compile()
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (2, 8, 8)).astype("int32")
    masks[0, 1:] = 255  # 8 labelled pixels against 64
    logits = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    images = np.zeros((2, 8, 8, 3), "float32")

    def loss(rows):
        value = model.compute_loss(images[rows], masks[rows], ops.convert_to_tensor(logits[rows]))
        return float(ops.convert_to_numpy(value))

    whole = loss(slice(0, 2))
    monkeypatch.setattr(replicas, "replica_count", lambda: 2)
    monkeypatch.setattr(replicas, "sum_over_replicas", lambda count: 0 * count + 72.0)
    parts = [loss(slice(row, row + 1)) for row in (0, 1)]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-5)
