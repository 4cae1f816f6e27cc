"""What every segmenter promises, on every family of backbones. A new one joins by a line."""

import functools
import json

import keras
import numpy as np
import pytest

from keras_densepred import models
from keras_densepred.saved.opening import task_of
from tests.contracts.families import OwnBackbone, every_family, norms_apart, small_backbone
from tests.hosts import available
from tests.weights import gradients

CLASSES = 3
MASK2FORMER = dict(width=32, num_queries=8, encoder_layers=1, decoder_layers=2, num_heads=2)
MASK2FORMER |= dict(encoder_hidden=16, decoder_hidden=16, num_points=48)
SEGMENTERS = {
    "deeplab_v3": lambda backbone, **options: models.DeepLabV3(
        backbone, **{"num_classes": CLASSES, "width": 8, "atrous_rates": (2,), **options}
    ),
    # No grid of one cell: of two images, batch norm makes 1 and -1, without a gradient.
    "upernet": lambda backbone, num_classes=CLASSES, **options: models.UperNet(
        backbone, num_classes, width=8, pool_sizes=(2, 3), auxiliary_width=8, **options
    ),
    "deeplab_v3_keras_hub": lambda backbone, **options: models.DeepLabV3KerasHub(
        backbone, **{"num_classes": CLASSES, **options}
    ),
    "deeplab_v3_plus_keras_cv": lambda backbone, **options: models.DeepLabV3PlusKerasCV(
        backbone, **{"num_classes": CLASSES, **options}
    ),
    "mask2former": lambda backbone, **options: models.Mask2FormerSegmenter(
        backbone, **{"num_classes": CLASSES, **MASK2FORMER, **options}
    ),
}
SEGMENTERS = available(SEGMENTERS)
# Mask2Former's losses are a large graph.
compiled = pytest.mark.slow_on("jax", "tensorflow")
every_segmenter = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=compiled) if n == "mask2former" else n for n in SEGMENTERS],
)
# XLA compiles a training step for ten seconds, of the others in `make test-slow`.
every_segmenter_compiled = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "deeplab_v3" else pytest.mark.slow_on("jax", "tensorflow"))
        for n in SEGMENTERS
    ],
)

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("float32")
MASKS = np.random.default_rng(1).integers(0, CLASSES, (2, 32, 64)).astype("uint8")
MASKS[:, :8] = 255
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}


def make(name, **options):
    return SEGMENTERS[name](OwnBackbone(), **options)


@functools.cache
def backbone_of(family):
    """One for all segmenters, which here only stand on it: building takes longest."""
    return small_backbone(family)


@pytest.mark.backend_free
@every_segmenter
def test_batch_norms_are_shared_as_those_of_the_backbone(name):
    """On several devices a model trains as on one only if all of them are."""
    assert not norms_apart(SEGMENTERS[name])


@pytest.mark.backend_free
@every_segmenter
@every_family
def test_stands_on_every_family(name, family):
    model = SEGMENTERS[name](backbone_of(family))
    assert isinstance(model, models.Segmenter) and model.task == "segmentation"
    assert model.output_shape == (None, None, None, CLASSES) and model.num_classes == CLASSES


@pytest.mark.backend_free
@every_segmenter
def test_config_comes_back(name):
    model = make(name)
    config = model.get_config()
    copy = type(model).from_config(json.loads(json.dumps(config)))
    assert json.dumps(copy.get_config()) == json.dumps(config)
    assert [w.shape for w in copy.weights] == [w.shape for w in model.weights]


@every_segmenter_compiled
def test_trains_saves_and_goes_on_where_it_was(name, tmp_path):
    model = make(name)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), **COMPILE)
    before = model.get_weights()
    batches = ((IMAGES, MASKS) for _ in range(2))
    history = model.fit(batches, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    changed = [np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True)]
    assert all(changed)
    expected = model.predict(IMAGES, verbose=0)
    assert expected.shape == (*MASKS.shape, CLASSES) and expected.dtype == np.float32
    assert expected.min() < 0, "logits"

    path = tmp_path / "model.keras"
    model.save(path)
    assert task_of(path) == "segmentation"
    loaded = keras.saving.load_model(path)
    assert type(loaded) is type(model) and isinstance(loaded.loss, models.IgnoreCrossentropy)
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), expected, atol=1e-4)
    assert int(loaded.optimizer.iterations) == 2 and loaded.optimizer.momentum == 0.9
    for variable in (*model.non_trainable_variables, *loaded.non_trainable_variables):
        if "seed_generator" in variable.path:
            variable.assign(np.array([3, 0], "uint32"))
    losses = [m.train_on_batch(IMAGES, MASKS) for m in (model, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@every_segmenter_compiled
def test_gradients_are_finite_and_reach_every_weight(name):
    model = make(name)
    for weight, gradient in zip(model.trainable_weights, gradients(model, IMAGES), strict=True):
        assert gradient is not None and np.isfinite(gradient).all(), weight.path


@every_segmenter_compiled
def test_masks_without_any_label_do_nothing(name):
    model = make(name)
    model.compile(keras.optimizers.SGD(0.1), **COMPILE)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    assert model.train_on_batch(IMAGES, np.full_like(MASKS, 255)) == 0
    for old, weight in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(weight), weight.path)


@pytest.mark.slow_on("jax", "tensorflow")
@every_segmenter
def test_mixed_precision_gives_float32_logits_and_trains(name):
    model = SEGMENTERS[name](OwnBackbone(dtype="mixed_bfloat16"))
    assert model.backbone.compute_dtype == "bfloat16"
    model.compile(keras.optimizers.SGD(0.1), **COMPILE)
    assert np.isfinite(model.train_on_batch(IMAGES, MASKS))
    logits = model(IMAGES)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert np.isfinite(keras.ops.convert_to_numpy(logits)).all()


@every_segmenter
def test_default_optimizer_and_loss(name):
    model = make(name)
    model.compile()
    assert type(model.optimizer) is type(model.default_optimizer())
    assert isinstance(model.loss, models.IgnoreCrossentropy)


@pytest.mark.backend_free
@every_segmenter
def test_refuses_in_one_sentence(name):
    with pytest.raises(ValueError, match="`num_classes` is 0"):
        make(name, num_classes=0)
    with pytest.raises(ValueError, match="'plain', a Sequential, has no `pyramid_outputs`"):
        SEGMENTERS[name](keras.Sequential(name="plain"))
    with pytest.raises(ValueError, match="is channels_first"):
        SEGMENTERS[name](
            OwnBackbone(data_format="channels_first", image_shape=(3, None, None), name="first")
        )
    model = make(name)
    model.compile()
    logits = np.zeros((*MASKS.shape, CLASSES), "float32")
    for masks, message in (
        ({"semantic": MASKS}, "masks .batch, height, width. of class numbers.* got dict"),
        (MASKS[:, ::4, ::4], r"\(2, 32, 64\) here, and got \(2, 8, 16\)"),
        (np.eye(CLASSES)[MASKS % CLASSES], r"got \(2, 32, 64, 3\)"),
        (MASKS.astype("float32"), "integers, and these are float32"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compute_loss(IMAGES, masks, keras.ops.convert_to_tensor(logits))
