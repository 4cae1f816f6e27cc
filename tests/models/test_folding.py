"""Batch norms folded into convolutions: equal outputs, on every family of networks."""

import keras
import numpy as np
import pytest

from keras_densepred.backbones import (
    BiCSNetBackbone,
    CEDNetBackbone,
    CSPDenseNetBackbone,
    CSPNetBackbone,
)
from keras_densepred.models import (
    CEDNetImageClassifier,
    FoldedDetector,
    RetinaNetKerasHub,
    YOLOv3Detector,
    fold_batch_norm,
)
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights

SLOW_ON_JAX = pytest.mark.slow if keras.config.backend() == "jax" else ()
IMAGES = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")


def norms(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def assert_equal(found, expected):
    for ours, theirs in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        ours, theirs = keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def small_model():
    """A convolution of each kind with a norm, a shared one, and a norm after an activation."""
    x = inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(x)
    x = keras.layers.BatchNormalization(scale=False)(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = keras.layers.BatchNormalization(center=False)(x)
    x = keras.layers.Dense(6)(x)
    x = keras.layers.BatchNormalization()(keras.layers.ReLU()(x))
    shared = keras.layers.Conv2D(6, 1)
    y = keras.layers.BatchNormalization()(shared(x))
    z = keras.layers.BatchNormalization()(shared(y))
    read_twice = keras.layers.Conv2D(6, 1)(z)
    x = keras.layers.BatchNormalization()(read_twice)
    return keras.Model(inputs, {"a": keras.layers.Add()([x, read_twice]), "b": y})


def test_folds_what_can_be_folded_and_nothing_else():
    model = small_model()
    set_deterministic_weights(model)
    before = [keras.ops.convert_to_numpy(w).copy() for w in model.weights]
    expected = model(IMAGES)
    folded = fold_batch_norm(model)
    assert_equal(folded(IMAGES), expected)
    # After an activation, after the two calls of one layer, after what is read elsewhere.
    assert (len(norms(model)), len(norms(folded))) == (6, 4)
    assert set(folded.output) == {"a", "b"}
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
    for weight in folded.weights:
        weight.assign(np.zeros(weight.shape))
    assert_equal(model(IMAGES), expected)


def cednet(num_stages=1, **arguments):
    return CEDNetBackbone(
        p2_width=8,
        p2_depth=1,
        widths=(8, 8, 8),
        depths=(1, 1, 1),
        num_stages=num_stages,
        stem_width=8,
        **arguments,
    )


BACKBONES = {
    "cednet_resnet": lambda: cednet(token_mixer="resnet"),
    "csp_peleenet": lambda: CSPDenseNetBackbone.from_preset("csp_peleenet"),
    "csp_resnet_10": lambda: CSPNetBackbone.from_preset("csp_resnet_10"),
    "bicsnet": lambda: BiCSNetBackbone.from_preset("bicsnet_48s"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES])
def test_backbones(name):
    model = BACKBONES[name]()
    set_deterministic_weights(model)
    folded = fold_batch_norm(model)
    assert_equal(folded(IMAGES, training=False), model(IMAGES, training=False))
    assert len(norms(model)) > 10
    assert not norms(folded)


def make_detector(head_separable=None):
    pyramid = ToyPyramid(ready=head_separable is not None)
    if head_separable is None:
        anchors = [(8, 8), (12, 14), (20, 24), (34, 28), (50, 56), (88, 60)]
        model = YOLOv3Detector(pyramid, 3, "prn", anchors)
    else:
        model = RetinaNetKerasHub(
            pyramid,
            3,
            head_width=8,
            head_depth=2,
            head_norm=True,
            head_separable=head_separable,
        )
    set_deterministic_weights(model)
    return model


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "head_separable",
    [None, pytest.param(False, marks=SLOW_ON_JAX), pytest.param(True, marks=SLOW_ON_JAX)],
)
def test_detectors_predict_alike_and_survive_saving(head_separable, tmp_path):
    model = make_detector(head_separable)
    folded = fold_batch_norm(model)
    assert isinstance(folded, FoldedDetector)
    assert not norms(folded)
    assert_equal(folded(IMAGES), model(IMAGES))
    expected, found = model.predict(IMAGES, verbose=0), folded.predict(IMAGES, verbose=0)
    assert expected["num_detections"].min() > 0
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-4)
    folded.save(tmp_path / "folded.keras")
    reloaded = keras.models.load_model(tmp_path / "folded.keras")
    for key, value in found.items():
        np.testing.assert_array_equal(reloaded.predict(IMAGES, verbose=0)[key], value)


def test_needs_a_graph():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="no functional model"):
        fold_batch_norm(Subclassed())


@pytest.mark.slow_on("jax", "tensorflow")
def test_what_a_call_leaves_out_is_not_in_the_graph():
    model = CEDNetImageClassifier(cednet(num_stages=2), 5)
    set_deterministic_weights(model)
    folded = fold_batch_norm(model)
    assert_equal(folded(IMAGES), model(IMAGES, training=False))
    assert not [layer.name for layer in folded.layers if layer.name.startswith("head1")]


class FirstAlone(keras.Model):
    def compute_output_spec(self, inputs, training=None, mask=None):
        return super().compute_output_spec(inputs, training, mask)[0]


def test_a_call_that_its_graph_does_not_tell_is_refused():
    pixels = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="other outputs than its graph"):
        fold_batch_norm(FirstAlone(pixels, [keras.layers.ReLU()(pixels), pixels]))
