"""The authors' whole Deformable DETR in ours: keys, counts and outputs (`tests/golden/detr`)."""

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, ConvNeXtBackbone, DetectionPyramid
from keras_densepred.analysis.detr_costs import count_as_mmcv, countable
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from keras_densepred.convert.cednet import load_state
from keras_densepred.models import DeformableDETR
from tests.convert.authors_state import key_list
from tests.convert.detr_state import make_input, make_state
from tests.networks import trainable_parameters


def detector(preset, image_shape=(None, None, 3), **options):
    backbone = CEDNetBackbone.from_preset(preset, image_shape=image_shape)
    return DeformableDETR(DetectionPyramid(backbone, max_level=6), num_classes=80, **options)


@pytest.fixture(scope="module")
def tiny():
    return detector("cednet_next_tiny")


def keys_of(golden, size):
    return key_list(golden / "detr" / "keys" / f"ddetr_cednet_next_{size}.json")


def empty_state(golden, size="tiny"):
    # Values do not matter here: arrays that take no memory.
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys_of(golden, size)}


@pytest.mark.backend_free
@pytest.mark.parametrize("size", ["tiny", pytest.param("small", marks=pytest.mark.slow)])
def test_every_key_is_loaded(size, golden, tiny):
    model = tiny if size == "tiny" else detector("cednet_next_small")
    state = empty_state(golden, size)
    report = load_state(model, state)
    own = [w for w in model.weights if "seed_generator" not in w.path]
    # Query, key and value are one array there; heads of all layers are repeated.
    assert len(report.loaded) == len(own) - 2 * 2 * 6
    assert len(state) == len(report.loaded) + 40 and report.skipped == ()


@pytest.mark.backend_free
def test_what_does_not_fit_is_said(golden, tiny):
    state = empty_state(golden)
    refined = {**state, "bbox_head.cls_branches.3.bias": np.ones(80, "float32")}
    with pytest.raises(ValueError, match="with `box_refine=True`"):
        load_state(tiny, refined)
    with pytest.raises(ValueError, match=r"bbox_head\.transformer\.level_embeds"):
        load_state(tiny, {k: v for k, v in state.items() if "level_embeds" not in k})
    report = load_state(tiny.backbone, state)
    assert len(report.skipped) == sum(key.startswith("bbox_head.") for key in state)


@pytest.mark.backend_free
def test_parameters(tiny):
    """DETR.md 1.8 and part 3, to the last weight."""
    assert trainable_parameters(tiny) == 42_554_326
    assert trainable_parameters(tiny.transformer) == 10_972_758
    for options, parameters in (
        ({"box_refine": True}, 11_738_618),
        ({"box_refine": True, "query_selection": "two_stage"}, 12_067_660),
    ):
        model = DeformableDETR(tiny.backbone, 80, **options)
        assert trainable_parameters(model.transformer) == parameters


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset,parameters", [("cednet_next_small", 64_902_998), ("cednet_resnet50", 43_303_638)]
)
def test_parameters_of_others(preset, parameters):
    assert trainable_parameters(detector(preset)) == parameters


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset,counted,convs_and_linears",
    [("cednet_next_tiny", 222.851, 222.485), ("cednet_next_small", 303.718, 303.313)],
)
def test_multiply_adds(preset, counted, convs_and_linears):
    """DETR.md 1.10: the paper's 223G and 304G are those of mmcv's counter."""
    model = detector(preset, (800, 1280, 3))
    assert round(count_as_mmcv(model) / 1e9, 3) == counted
    assert round(count_multiply_adds(countable(model)) / 1e9, 3) == convs_and_linears


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset,layers,parameters,counted",
    [
        ("convnext_tiny", 6, 40_909_622, 199.093),
        ("convnext_tiny", 8, 42_423_350, 231.2),
        ("convnext_small", 6, 62_544_182, 285.410),
        ("convnext_small", 8, 64_057_910, 317.5),
    ],
)
def test_baselines(preset, layers, parameters, counted):
    """As released, 6 encoder layers; the paper's numbers are those of 8 (inferred)."""
    backbone = ConvNeXtBackbone.from_preset(preset, image_shape=(800, 1280, 3))
    model = DeformableDETR(backbone, 80, encoder_layers=layers)
    p2_norm = 2 * 96  # ours has a norm on P2, which nothing reads here
    assert trainable_parameters(model) == parameters + p2_norm
    digits = 3 if layers == 6 else 1
    assert round(count_as_mmcv(model) / 1e9, digits) == counted


@pytest.mark.slow
def test_outputs_of_the_whole_model(golden, tiny):
    with np.load(golden / "detr" / "ddetr_next_tiny.npz") as file:
        expected = dict(file)
    load_state(tiny, make_state(keys_of(golden, "tiny")))
    images = make_input("ddetr_next_tiny:image", (2, 128, 160, 3))
    sizes = expected["sizes"].astype("int32")
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    levels = tiny.backbone.predict(images, verbose=0)
    np.testing.assert_allclose(levels["P3"].mean((1, 2)), expected["p3_mean"], atol=1e-3)
    np.testing.assert_allclose(levels["P6"], expected["p6"], atol=1e-3)
    inputs = {"images": images, "image_sizes": sizes}
    outputs = tiny({k: keras.ops.convert_to_tensor(v) for k, v in inputs.items()})
    outputs = {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}
    np.testing.assert_allclose(outputs["logits"][:, -1], expected["logits_last"], atol=1e-3)
    np.testing.assert_allclose(np.swapaxes(outputs["boxes"], 0, 1), expected["boxes"], atol=1e-3)
    found = tiny.predict(inputs, verbose=0)
    np.testing.assert_allclose(found["confidence"], expected["detections"][..., 4], atol=1e-3)
    # Of detections whose neighbours' scores are further away than the noise.
    scores = expected["detections"][..., 4]
    gaps = np.abs(np.diff(scores, axis=1))
    clear = np.pad(gaps, ((0, 0), (1, 0)), constant_values=1) > 1e-4
    clear &= np.pad(gaps, ((0, 0), (0, 1)), constant_values=0) > 1e-4
    assert clear.sum() > 30
    np.testing.assert_array_equal(found["labels"][clear], expected["labels"][clear])
    np.testing.assert_allclose(
        found["boxes"][clear], expected["detections"][..., :4][clear], atol=0.1
    )
