"""Files whose layers had other classes when they were saved."""

import io
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_densepred.saved import load_model
from keras_densepred.saved.other_classes import load_by_layer_names
from tests.weights import set_deterministic_weights


@pytest.fixture
def model():
    x = images = keras.Input((4,))
    for name in ("one", "two"):
        x = keras.layers.Dense(4, name=name)(x)
    model = keras.Model(images, x)
    set_deterministic_weights(model)
    return model


@pytest.fixture
def saved_with(model, tmp_path):
    """Saves the model and changes the file of its weights."""

    def save(change):
        path = tmp_path / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        weights = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            change(file["layers"])
        parts["model.weights.h5"] = weights.getvalue()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return path

    return save


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.backend_free
def test_a_layer_is_found_by_its_name(model, saved_with):
    def reclass(layers):
        layers.move("dense", "older_dense")
        layers.move("dense_1", "dense")  # as the first of its class, now that the other has another

    path = saved_with(reclass)
    with pytest.raises(ValueError, match="could not be loaded"):
        keras.saving.load_model(path)
    loaded = load_model(path)
    for weight, before in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (weight, before)))


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.backend_free
def test_it_is_compiled_as_it_was(model, saved_with):
    model.compile(keras.optimizers.SGD(0.5), "mae")
    path = saved_with(lambda layers: layers.move("dense_1", "older_dense"))
    assert load_model(path, compile=True).optimizer.learning_rate == 0.5
    assert not load_model(path).compiled


@pytest.mark.backend_free
def test_what_is_missing_is_named(saved_with):
    path = saved_with(lambda layers: layers.pop("dense_1"))
    with pytest.raises(ValueError, match=r"model.keras cannot be loaded .*for the layer two\)"):
        load_model(path)


@pytest.mark.backend_free
@pytest.mark.parametrize("link", [h5py.ExternalLink, lambda *args: h5py.SoftLink("/layers/dense")])
def test_links_are_not_followed(saved_with, tmp_path, link):
    def leave(layers):
        del layers["dense_1"]
        layers["dense_1"] = link(tmp_path / "other.h5", "/layers/dense")

    path = saved_with(leave)
    (tmp_path / "other.h5").write_bytes(zipfile.ZipFile(path).read("model.weights.h5"))
    with pytest.raises(ValueError, match="no weights for the layer two"):
        load_by_layer_names(path)
