"""CSPNetImageClassifier: its head, its presets, how recipes find it."""

import keras
import numpy as np
import pytest

from keras_densepred import CSPNetImageClassifier
from keras_densepred.models import classifier_class, image_classifier
from tests.contracts.families import FAMILIES, small_backbone
from tests.weights import set_deterministic_weights


def test_logits_are_linear_in_the_mean_of_p5():
    model = CSPNetImageClassifier(small_backbone("csp_densenet"), num_classes=3)
    set_deterministic_weights(model)
    taps = {"p5": model.backbone.pyramid_outputs["P5"], "logits": model.output}
    images = np.random.default_rng(0).normal(size=(1, 45, 70, 3)).astype("float32")
    outputs = keras.Model(model.input, taps).predict_on_batch(images)
    kernel, bias = model.get_layer("head_logits").get_weights()
    expected = outputs["p5"].mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", ["csp_resnet_10", "csp_densenet_b_ref"])
def test_presets_of_every_family_make_a_classifier(preset):
    model = CSPNetImageClassifier.from_preset(preset, num_classes=2, activation="softmax")
    assert model.output.shape == (None, 2)
    assert model.layers[-1].activation is keras.activations.softmax
    assert isinstance(image_classifier(preset, num_classes=4), CSPNetImageClassifier)
    with pytest.raises(ValueError):
        CSPNetImageClassifier.from_preset(f"{preset}_x", num_classes=2)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["cspnet", "peleenet", "csp_densenet", "elastic_densenet"])
def test_it_is_the_classifier_of_every_family_of_the_paper(name):
    family, _ = FAMILIES[name]
    assert classifier_class(family) is CSPNetImageClassifier
