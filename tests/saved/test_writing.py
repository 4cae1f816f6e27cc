"""A saved model is for predicting: small files that load everywhere, and old ones become such."""

import io
import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_densepred
from keras_densepred import saved
from tests.networks import run
from tools import export

IMAGES = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")


def parts(path):
    """How many numbers an optimizer has in a .keras file, and the bytes of its weights."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read("model.weights.h5")
    numbers = []
    with h5py.File(io.BytesIO(content)) as file:
        if "optimizer" in file:
            file["optimizer"].visititems(lambda _, part: numbers.append(getattr(part, "size", 0)))
        return sum(numbers), len(content)


@pytest.fixture
def old_run(golden, tmp_path):
    """A run of an earlier version, whose detector is saved with its optimizer."""
    shutil.copytree(golden / "saved" / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow_on("jax", "tensorflow")
def test_neither_optimizer_nor_losses_are_saved_and_the_model_trains_on(old_run, tmp_path):
    model = keras.saving.load_model(old_run / "preset" / "detector.keras")
    optimizer = model.optimizer
    with saved.without_training_state(model):
        model.save(tmp_path / "detector.keras")
    assert model.compiled and model.optimizer is optimizer
    before, after = parts(old_run / "preset" / "detector.keras"), parts(tmp_path / "detector.keras")
    # KerasHub's are compiled at birth, and look for the two numbers of an optimizer without state.
    assert before[0] > 1000 and after[0] == 2 and after[1] < before[1] / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = keras.saving.load_model(tmp_path / "detector.keras")
    assert again.optimizer is None or not again.optimizer.built
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))


@pytest.mark.slow_on("jax", "tensorflow")
def test_an_old_run_becomes_a_preset_of_half_the_size_with_the_same_classes(old_run, tmp_path):
    command = [str(old_run), "--format", "keras", "--output"]
    assert export.main([*command, str(tmp_path / "full")]) == 0
    assert export.main([*command, str(tmp_path / "half"), "--weights", "float16"]) == 0
    full, half = (saved.open_model(tmp_path / name) for name in ("full", "half"))
    assert half.class_names == full.class_names == saved.open_model(old_run).class_names
    assert half.preprocessing == full.preprocessing
    sizes = [parts(model.path)[1] for model in (full, half)]
    kernels = [w for w in full.model.weights if len(w.shape) > 1]
    spared = 2 * sum(int(np.prod(w.shape)) for w in kernels)
    assert sizes[0] - sizes[1] >= 0.9 * spared  # HDF5's own structure is the most of so small ones
    for one, other in zip(full.model.weights, half.model.weights, strict=True):
        assert other.dtype == "float32"
        one, other = map(keras.ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-7)
    found, expected = run(half.model, IMAGES), run(full.model, IMAGES)
    for name, value in expected.items():
        pair = map(keras.ops.convert_to_numpy, (found[name], value))
        np.testing.assert_allclose(*pair, rtol=0.02, atol=0.02)


def test_a_kernel_beyond_float16_stays_as_it_is(tmp_path):
    layer = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(1e6))
    model = keras.Sequential([keras.Input((3,)), layer])
    model.num_classes = 2
    opened = saved.SavedModel(tmp_path / "model.keras", model, None, ("a", "b"), (0, 1), False)
    saved.save_copy(opened, tmp_path / "half", "float16")
    again = keras.saving.load_model(tmp_path / "half" / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again.layers[0].kernel), 1e6)
    with pytest.raises(ValueError, match="int4"):
        saved.save_copy(opened, tmp_path / "small", "int4")


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_classifiers_preset_is_copied_too(golden, tmp_path):
    source = golden / "saved" / "cspnet_classifier_preset"
    model = keras_densepred.CSPNetImageClassifier.from_preset(str(source))
    opened = saved.SavedModel(source, model, None, ("a", "b", "c"), (0, 1, 2), False)
    saved.save_copy(opened, tmp_path / "half", "float16")
    again = saved.load_model(tmp_path / "half" / source.name)
    found, expected = (keras.ops.convert_to_numpy(run(each, IMAGES)) for each in (again, model))
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)
