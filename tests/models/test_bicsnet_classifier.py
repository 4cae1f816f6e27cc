"""BiCSNetImageClassifier: the paper's head, its counts, training, round trips."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import BiCSNetBackbone, BiCSNetImageClassifier
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from tests.contracts.families import small_backbone
from tests.weights import set_deterministic_weights

# expected.json: cls1000 and cls8142, at 224 px.
COUNTS = {
    ("bicsnet_48", 1000): (22_469_325, 3_402_856_400),
    ("bicsnet_94", 8142): (43_102_227, 6_524_877_050),
    ("bicsnet_140", 1000): (57_501_864, 8_629_463_040),
}
LABELS = np.array([0, 1, 2, 0])
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 48, 3)).astype("float32")


@pytest.mark.backend_free
@pytest.mark.parametrize("preset,classes", COUNTS)
def test_exact_counts(preset, classes):
    backbone = BiCSNetBackbone.from_preset(preset, image_shape=(224, 224, 3))
    model = BiCSNetImageClassifier(backbone, classes)
    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert (parameters, count_multiply_adds(model)) == COUNTS[preset, classes]


def classifier(family="bicsnet"):
    model = BiCSNetImageClassifier(small_backbone(family), num_classes=3)
    set_deterministic_weights(model)
    return model


@pytest.mark.slow_on("jax", "tensorflow")
def test_logits_are_linear_in_the_mean_of_refined_levels():
    model = classifier()
    images = np.random.default_rng(0).normal(size=(1, 45, 70, 3)).astype("float32")
    levels = list(model.backbone.predict_on_batch(images).values())
    rows, columns = (np.arange(size) for size in levels[0].shape[1:3])
    refined = [x[:, rows // 2**n][:, :, columns // 2**n] for n, x in enumerate(levels)]
    kernel, bias = model.get_layer("head_logits").get_weights()
    expected = np.mean(refined, axis=0).mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_fit_changes_every_kernel_and_round_trips_are_exact(tmp_path):
    model = classifier("bicsnet_lite" if keras.config.backend() == "torch" else "bicsnet")
    before = model.get_weights()
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # XLA takes TensorFlow a minute for a graph of this many layers.
        jit_compile=keras.config.backend() == "jax",
    )
    history = model.fit(IMAGES, LABELS, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for old, weight in zip(before, model.weights, strict=True):
        if weight.name == "kernel" and weight.path.startswith(("head", "p3", "e3", "u2", "stem")):
            assert np.any(old != ops.convert_to_numpy(weight)), weight.path
    expected = model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras", compile=False),
        BiCSNetImageClassifier.from_preset(str(tmp_path / "preset")),
    ):
        assert isinstance(copy, BiCSNetImageClassifier)
        for ours, theirs in zip(model.get_weights(), copy.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert expected.shape == (4, 3)
    np.testing.assert_allclose(copy.predict(IMAGES, verbose=0), expected, atol=1e-5)


@pytest.mark.backend_free
def test_presets_of_both_forms_resolve_with_an_activation():
    model = BiCSNetImageClassifier.from_preset("bicsnet_lite0", num_classes=2, activation="softmax")
    assert model.name and model.output.shape == (None, 2)
    assert model.layers[-1].activation is keras.activations.softmax
    with pytest.raises(ValueError):
        BiCSNetImageClassifier.from_preset("bicsnet_49", num_classes=2)


@pytest.mark.backend_free
def test_levels_of_several_widths_are_refused():
    with pytest.raises(ValueError, match=r"must be of one width; the backbone's are .*'P2': 8"):
        BiCSNetImageClassifier(small_backbone("cednet", widths=(8, 8, 16)), num_classes=2)
