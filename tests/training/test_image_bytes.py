"""Images that travel as bytes: the steps make of them what the host would have sent."""

import importlib
import types

import keras
import numpy as np
import pytest

from keras_densepred import data, training
from keras_densepred.training.devices.cluster import entered
from keras_densepred.training.devices.image_bytes import normalization, take_bytes
from tests.recipes import toy
from tests.training import distribution_toy
from tests.training.processes import BACKEND, assert_close, finish, result, start, start_two

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = np.array([(16, 16), (5, 16), (16, 9), (1, 1)], np.int32)
SHARES = np.array([0.3, 0.3, 1.0, 1.0], np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)


def normalised():
    """As `data.batches` makes them, in float64."""
    images = (PIXELS - np.array(MEAN)) / np.array(STD)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[height:] = image[:, width:] = 0
    shares = SHARES[:, None, None, None]
    return shares * images + (1 - shares) * images[[1, 0, 3, 2]]


class Steps:
    """Not a model, but what its steps are given."""

    def __init__(self, input_keys=("images",)):
        self.input_keys = input_keys

    def _given(self, *args):
        return args[-1]

    train_step = test_step = predict_step = _given

    def _symbolic_build(self, iterator=None, data_batch=None):
        self.built_on = next(iterator)[2][0] if data_batch is None else data_batch


def as_input(model, x):
    take_bytes(model, MEAN, STD)
    return model.predict_step((x,))[0]


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_bytes_become_what_the_host_would_have_sent():
    x = as_input(Steps(), {"images": PIXELS, "image_sizes": SIZES, "shares": SHARES})
    assert keras.backend.standardize_dtype(x.dtype) == "float32"
    np.testing.assert_allclose(array(x), normalised(), rtol=0, atol=1e-6)
    assert (array(x)[3, 1:] == 0).all() and (array(x)[2, :, 9:] == 0).all(), "padding"
    alone = array(as_input(Steps(), PIXELS))
    np.testing.assert_allclose(alone, (PIXELS - np.array(MEAN)) / np.array(STD), rtol=0, atol=1e-6)


def test_a_model_gets_what_it_asks_for():
    x = as_input(Steps(("images", "image_sizes")), {"images": PIXELS, "image_sizes": SIZES})
    assert set(x) == {"images", "image_sizes"}
    np.testing.assert_array_equal(array(x["image_sizes"]), SIZES)


def test_floats_stay_as_they_are():
    images = normalised().astype("float32")
    assert as_input(Steps(), images) is images
    both = {"images": images, "image_sizes": SIZES}
    assert as_input(Steps(), both) is both


def test_targets_and_state_pass_through():
    model = Steps()
    take_bytes(model, MEAN, STD)
    x, y, weight = model.train_step("state", (PIXELS, "targets", None))
    assert (y, weight) == ("targets", None) and keras.backend.standardize_dtype(x.dtype) == (
        "float32"
    )
    for batches in ([(PIXELS, "targets")], iter([(PIXELS, "targets")])):
        model._symbolic_build(iterator=iter([(0, 1, batches)]))
        assert keras.backend.standardize_dtype(model.built_on[0].dtype) == "float32"


def test_batches_and_model_agree():
    prepared = types.SimpleNamespace(mean=MEAN, std=STD)
    model = Steps()
    assert normalization(model, prepared) == {"mean": MEAN, "std": STD}
    batch = {"images": PIXELS, "image_sizes": SIZES}
    assert data.model_input(model, batch) is PIXELS, "of a model that normalises as it likes"
    take_bytes(model, MEAN, STD)
    assert normalization(model, prepared) == {"mean": None, "std": None}
    assert set(data.model_input(model, batch)) == set(batch)
    assert data.model_input(model, {"images": PIXELS}) is PIXELS
    floats = normalised()
    assert data.model_input(model, {**batch, "images": floats}) is floats


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_evaluating_and_predicting_are_the_same(policy):
    """On images that are all image, and through `fit`, which builds by the first batch."""

    def run(x, as_bytes):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((16, 16, 3))
        features = keras.layers.Conv2D(4, 3, dtype=policy)(inputs)
        features = keras.layers.GlobalAveragePooling2D(dtype=policy)(features)
        outputs = keras.layers.Dense(2, dtype="float32")(features)
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
        if as_bytes:
            take_bytes(model, MEAN, STD)
        targets = np.ones((4, 2), "float32")

        def batches():
            for _ in range(3):
                yield x, targets

        history = model.fit(batches(), steps_per_epoch=3, shuffle=False, verbose=0).history
        tested = model.evaluate(batches(), steps=2, verbose=0)
        return [*history.values(), tested, model.predict_on_batch(x), *model.get_weights()]

    floats = (PIXELS - np.float32(MEAN)) / np.float32(STD)
    tolerance = 1e-6 if policy == "float32" else 1e-2  # a last bit of bfloat16
    for ours, theirs in zip(run(PIXELS, True), run(floats, False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", toy.RECIPES)
def test_recipes_send_the_same_images(name, tmp_path):
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    flags = ["--image-size", "64", "--batch-size", "4", "--steps", "4", "--steps-per-epoch", "2"]
    settings = training.parse_settings(recipe.settings, flags, "", recipe.experiments)
    train, _ = recipe.open_data(settings)
    settings = recipe.complete(settings, train, train)
    model = Steps()
    model.size_divisor = 32
    take_bytes(model, recipe.preprocessing(settings).mean, recipe.preprocessing(settings).std)
    plain = types.SimpleNamespace(size_divisor=32)
    sent, _ = next(recipe.batches(settings, train, model=model)(1))
    expected, _ = next(recipe.batches(settings, train, model=plain)(1))
    pixels = sent["images"] if isinstance(sent, dict) else sent
    resized_here = name == "coco_yolo" and recipe.sizes is not None
    assert pixels.dtype == (np.float32 if resized_here else np.uint8)
    found = array(model.train_step((sent, None))[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_pairs_that_devices_would_part_are_mixed_here():
    recipe = importlib.import_module("recipes.imagenet_pretrain").RECIPE
    flags = ["--image-size", "64", "--batch-size", "6", "--mixup", "0.8"]
    settings = training.parse_settings(recipe.settings, flags, "", recipe.experiments)
    train, _ = recipe.open_data(settings)
    settings = recipe.complete(settings, train, train)
    model = Steps()
    take_bytes(model, MEAN, STD)
    sent, _ = next(recipe.batches(settings, train, model=model)(0))
    assert set(sent) == {"images", "shares"}
    with entered(training.Cluster(devices=2)):
        parted, _ = next(recipe.batches(settings, train, model=model)(0))
    np.testing.assert_allclose(array(model.predict_step(sent)), parted, rtol=0, atol=1e-6)
    assert parted.dtype == np.float32


@pytest.mark.slow_on("jax", "torch")
def test_several_devices_train_alike(tmp_path):
    """PyTorch has one device in a process: two of them."""
    distribution_toy.main([str(tmp_path / "one")])
    toy, run = distribution_toy.__file__, tmp_path / "several"
    if BACKEND == "torch":
        finish(start_two([toy, run], "--bytes"))
    else:
        flags = ["--devices", 2, "--simulate", 2, "--bytes"]
        simulated = "--xla_force_host_platform_device_count=2"
        finish([start([toy, run, *flags], XLA_FLAGS=simulated)])
    found = result(run)
    assert found["cluster"][0] == 2
    assert_close(found, result(tmp_path / "one"))
