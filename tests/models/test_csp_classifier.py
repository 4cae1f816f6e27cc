"""CSPNetImageClassifier: its head, its presets, how recipes find it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import CSPNetImageClassifier
from keras_densepred.models.classifiers import registry as image_classifier
from tests.backbones.test_bicsnet import images, run
from tests.backbones.test_csp import MEMBERS, mini
from tests.weights import set_deterministic_weights


def test_logits_are_linear_in_the_mean_of_p5():
    model = CSPNetImageClassifier(mini("dense"), num_classes=3)
    set_deterministic_weights(model)
    taps = {"p5": model.backbone.pyramid_outputs["P5"], "logits": model.output}
    outputs = run(keras.Model(model.input, taps), images())
    kernel, bias = model.get_layer("head_logits").get_weights()
    expected = ops.convert_to_numpy(outputs["p5"]).mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(ops.convert_to_numpy(outputs["logits"]), expected, atol=1e-5)


@pytest.mark.backend_free
@pytest.mark.parametrize("preset", ["csp_resnet_10", "csp_densenet_b_ref"])
def test_presets_of_every_family_make_a_classifier(preset):
    model = CSPNetImageClassifier.from_preset(preset, num_classes=2, activation="softmax")
    assert model.output.shape == (None, 2)
    assert model.layers[-1].activation is keras.activations.softmax
    assert isinstance(image_classifier(preset, num_classes=4), CSPNetImageClassifier)
    with pytest.raises(ValueError):
        CSPNetImageClassifier.from_preset(f"{preset}_x", num_classes=2)
    families = [cls for cls, _ in MEMBERS.values()]
    assert set(CSPNetImageClassifier.backbone_classes) == set(families)
