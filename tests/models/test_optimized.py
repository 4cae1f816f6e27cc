"""The inference form of a model: equal outputs, and nothing left in it that training needs."""

import concurrent.futures

import keras
import numpy as np
import pytest

from keras_densepred import backbones, models
from keras_densepred.backbones import CEDNetBackbone
from keras_densepred.layers import Conv, DropPath, LayerScale
from keras_densepred.models import optimize
from keras_densepred.models.inference.optimized import InferenceGraph, fastest_predictor
from tests.models.conftest import ToyPyramid
from tests.networks import run
from tests.weights import set_deterministic_weights

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 64, 64, 3)).astype("float32")
on_pytorch = pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's list of calls")


def cednet(**arguments):
    return CEDNetBackbone(
        p2_width=8,
        p2_depth=1,
        widths=(8, 16, 16),
        depths=(1, 1, 1),
        num_stages=2,
        stem_width=8,
        **arguments,
    )


def retinanet(**options):
    return models.RetinaNet(ToyPyramid(ready=True), 3, head_width=8, head_depth=2, **options)


NETWORKS = {
    "cednet_next": lambda: cednet(layer_scale_init=0.3, drop_path_rate=0.2),
    "cednet_resnet": lambda: cednet(token_mixer="resnet", layer_scale_init=None),
    "resnet": lambda: backbones.ResNetBackbone((1, 1, 1, 1), width=4),
    "bicsnet_lite": lambda: backbones.load_backbone("bicsnet_lite0"),
    "csp": lambda: backbones.load_backbone("csp_resnet_10"),
    "host": lambda: backbones.HostBackbone(
        keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35)
    ),
    "classifier": lambda: models.CEDNetImageClassifier(cednet(), 5),
    "retinanet": retinanet,
    "retinanet_with_norms": lambda: retinanet(head_norm=True, head_separable=True),
}
COMPILED = pytest.mark.slow_on("jax", "tensorflow")


def assert_close(found, expected, tolerance=1e-5):
    found, expected = keras.tree.flatten(found), keras.tree.flatten(expected)
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize(
    "name", [n if n == "resnet" else pytest.param(n, marks=COMPILED) for n in NETWORKS]
)
def test_outputs_are_equal_at_any_size(name):
    model = NETWORKS[name]()
    set_deterministic_weights(model)
    optimized = optimize(model)
    for images in (IMAGES, np.zeros((1, 96, 128, 3), "float32") + IMAGES[:1, :1, :1]):
        expected, found = run(model, images), optimized(images)
        assert_close(found, expected)
        assert type(found) is type(expected)


def test_a_detector_predicts_what_it_predicted():
    model = retinanet()
    set_deterministic_weights(model)
    expected = model.predict(IMAGES, verbose=0)
    found = optimize(model).predict(IMAGES, verbose=0)
    assert expected["num_detections"].min() > 0
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-5)


def test_later_training_is_not_seen():
    model = NETWORKS["resnet"]()
    optimized = optimize(model)
    before = optimized(IMAGES)
    for weight in model.weights:
        weight.assign(weight + 1.0)
    assert_close(optimized(IMAGES), before, 0.0)


@on_pytorch
@pytest.mark.parametrize("make", [cednet, retinanet])
def test_it_is_not_saved(make, tmp_path):
    with pytest.raises(ValueError, match="save the model that it was made of"):
        optimize(make()).save(tmp_path / "optimized.keras")
    assert not list(tmp_path.iterdir())


@on_pytorch
def test_what_has_no_graph_is_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="no functional model"):
        optimize(Subclassed())


@on_pytorch
def test_half_precision_is_recorded_too():
    import torch

    model = cednet(dtype="mixed_bfloat16")
    set_deterministic_weights(model)
    optimized = optimize(model)
    packed = [c.function for c in optimized.recording.calls if hasattr(c.function, "packed")]
    assert {call.dtype for call in packed} == {torch.bfloat16}
    is_known = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # by the processor
    assert {call.packed for call in packed} == {is_known}
    exact = cednet()
    set_deterministic_weights(exact)
    exact = exact(IMAGES, training=False)

    def error(maps):
        pairs = zip(keras.tree.flatten(maps), keras.tree.flatten(exact), strict=True)
        differences = (keras.ops.convert_to_numpy(a - b) for a, b in pairs)
        return [np.abs(difference).mean() for difference in differences]

    # Both round, at other places.
    own = error(model(IMAGES, training=False))
    assert all(a < 1.2 * b for a, b in zip(error(optimized(IMAGES)), own, strict=True))


@on_pytorch
def test_layers_of_two_precisions_keep_theirs():
    pixels = keras.Input((8, 8, 3))
    half = Conv(4, 3, dtype="mixed_bfloat16")(pixels)
    probability = keras.layers.Activation("sigmoid", dtype="float32")(half)
    whole = Conv(4, 3)(pixels)
    rectified = keras.layers.ReLU(dtype="mixed_bfloat16")(whole)
    added = keras.layers.Add(dtype="float32")([Conv(4, 1, dtype="mixed_bfloat16")(whole), whole])
    model = keras.Model(pixels, [probability, rectified, added])
    set_deterministic_weights(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    expected, found = model(images, training=False), optimize(model)(images)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert_close([x.float() for x in found], [x.float() for x in expected], 2e-2)


@on_pytorch
def test_float16_runs_as_it_is():
    model = cednet(dtype="mixed_float16")
    set_deterministic_weights(model)
    assert optimize(model).recording is None
    assert_close(optimize(model)(IMAGES), model(IMAGES, training=False), 2e-2)


@on_pytorch
def test_nothing_is_left_that_could_be_taken_along():
    """What makes it fast, without a clock: GELU, scale and residual of each MLP are in products."""
    from keras_densepred.ops.packed_torch import Convolution, Dilated, Product

    model = cednet(layer_scale_init=0.3, drop_path_rate=0.2)
    scales = sum(isinstance(layer, LayerScale) for layer in model.layers)
    mlps = sum("pwconv2" in layer.name for layer in model.layers)
    assert scales == mlps > 4 and any(isinstance(layer, DropPath) for layer in model.layers)
    calls = [call.function for call in optimize(model).recording.calls]
    products = [call for call in calls if isinstance(call, Product)]
    assert sum(call.name == "gelu" for call in products) == mlps
    residual = [call for call in optimize(model).recording.calls if len(call.inputs) == 2]
    assert sum(isinstance(call.function, Product) for call in residual) == mlps
    packed = [call for call in calls if isinstance(call, (Convolution, Product))]
    assert packed and all(call.packed for call in packed)
    assert any(isinstance(call, Dilated) for call in calls)
    names = {type(getattr(call, "__self__", call)).__name__ for call in calls}
    assert not names & {"LayerScale", "DropPath", "Permute", "Conv", "Pointwise", "DepthwiseConv"}


@on_pytorch
def test_threads_do_not_disturb_each_other():
    model = cednet()
    optimized = optimize(model)
    batches = [IMAGES * scale for scale in range(8)]
    expected = [optimized(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(optimized, batches), expected, strict=True):
            assert_close(found, one, 0.0)


@on_pytorch
def test_what_is_packed_is_not_kept_twice():
    optimized = optimize(cednet())
    assert not optimized.weights and optimized.graph is None


@on_pytorch
@pytest.mark.parametrize("name", ["classifier", "retinanet", "host"])
def test_commands_predict_with_it(name):
    model = NETWORKS[name]()
    set_deterministic_weights(model)
    predictor = fastest_predictor(model)
    assert isinstance(getattr(predictor, "graph", predictor) or predictor, InferenceGraph)
    expected, found = model.predict_on_batch(IMAGES), predictor.predict_on_batch(IMAGES)
    assert_close(found, expected, 1e-3 if name == "retinanet" else 1e-5)


class Doubled(keras.Model):
    def predict_step(self, data):
        return 2 * super().predict_step(data)


def test_what_it_could_not_do_right_predicts_by_itself():
    pixels = keras.Input((8, 8, 3))
    doubled = Doubled(pixels, keras.layers.Conv2D(2, 1)(pixels))
    regions = models.FasterRCNN(ToyPyramid(), 3, head_width=8, samples=8, num_proposals=8)
    for model in (doubled, regions):
        assert fastest_predictor(model) is model
