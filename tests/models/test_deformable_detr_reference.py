"""Small Deformable DETRs against the authors' (`tests/golden/detr`, rule in detr_state.py).

Outputs catch every mistake of the rule's table but an epsilon of 1e-6 (below the tolerance;
`test_layer_norms` asks for it): sine offset, order and interleaving, level embeddings reversed
(0.33), padding not masked (0.34) or masked before `value_proj` (0.04), valid ratios of 1, epsilon
1e-3, offsets over (H, W) or as (y, x), corners for centres, clamped borders, nearest samples, a
softmax for each level, positions added to values, halves of the query swapped.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.convert.detr import authors_targets, without_aliases
from keras_densepred.convert.state import assign_state
from keras_densepred.models import DetectionTransformer, TopDetections
from keras_densepred.models.detr import losses
from keras_densepred.ops.boxes import centre_to_corners
from keras_densepred.runtime.input_gradient import input_gradient
from tests.convert.detr_state import keys_of, make_input, make_state

pytestmark = pytest.mark.slow_on("jax")  # a minute of compiling
GOLDEN = Path(__file__).parents[1] / "golden" / "detr"
KINDS = {
    "plain": {},
    "refine": {"box_refine": True},
    "twostage": {"box_refine": True, "query_selection": "two_stage"},
}


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.fixture(
    scope="module",
    params=[
        "plain",
        pytest.param("refine", marks=pytest.mark.slow_on("tensorflow")),
        pytest.param("twostage", marks=pytest.mark.slow_on("tensorflow")),
    ],
)
def case(request):
    """Kind, reference and what the transformer gives with the authors' weights."""
    kind = request.param
    with np.load(GOLDEN / f"ddetr_small_{kind}.npz") as file:
        reference = dict(file)
    keys = keys_of(reference)
    numbers = [int(key.split("layers.")[1].split(".")[0]) for key, _ in keys if "layers." in key]
    layers = max(numbers) + 1
    transformer = DetectionTransformer(
        5, 4, 20, encoder_layers=layers, decoder_layers=layers, name="transformer", **KINDS[kind]
    )
    transformer.build((None, None, None, 256))
    state = without_aliases(make_state(keys, kind == "plain"), len(transformer.heads))
    targets = authors_targets(transformer.weights)
    assign_state(keras.Sequential(), targets, state, is_optional=lambda key: False)
    shapes = reference["spatial_shapes"].tolist()
    maps = [
        ops.convert_to_tensor(make_input(f"ddetr_small_{kind}:P{n}", (2, *shape, 256)))
        for n, shape in enumerate(shapes, 3)
    ]
    sizes = ops.convert_to_tensor(reference["sizes"], "int32")

    def call(maps):
        canvas = tuple(reference["canvas"].tolist())
        return transformer(maps, image_sizes=sizes, canvas=canvas)

    if keras.config.backend() == "jax":
        import jax

        call = jax.jit(call)
    return kind, reference, {name: numpy(x) for name, x in call(maps).items()}


def objects_of(reference, count=6):
    boxes, labels = np.full((2, count, 4), -1, "float32"), np.full((2, count), -1, "int32")
    for image in range(2):
        rows = reference[f"gt_boxes_{image}"]
        boxes[image, : len(rows)] = rows
        labels[image, : len(rows)] = reference[f"gt_labels_{image}"]
    sizes = ops.convert_to_tensor(reference["sizes"], "float32")
    return losses.Objects.of({"boxes": boxes, "labels": ops.convert_to_tensor(labels)}, sizes)


def by_layer(outputs):
    """The authors' axes, layers before images."""
    return np.swapaxes(outputs, 0, 1)


def stored(reference):
    """The authors' outputs as tensors of our axes."""
    return [ops.convert_to_tensor(by_layer(reference[name])) for name in ("logits", "boxes")]


def test_outputs(case):
    kind, reference, outputs = case
    np.testing.assert_allclose(by_layer(outputs["logits"]), reference["logits"], atol=1e-4)
    np.testing.assert_allclose(by_layer(outputs["boxes"]), reference["boxes"], atol=1e-4)
    if kind == "twostage":
        for name in ("logits", "boxes"):
            expected = reference[f"enc_{name}"]
            np.testing.assert_allclose(outputs[f"encoder_{name}"], expected, atol=1e-4)


def test_detections(case):
    _, reference, outputs = case
    sizes = reference["sizes"][:, None, ::-1].astype("float32")
    scale = np.concatenate([sizes, sizes], axis=-1)
    boxes = np.clip(numpy(centre_to_corners(outputs["boxes"][:, -1])) * scale, 0, scale)
    found = TopDetections(30)(boxes, ops.sigmoid(outputs["logits"][:, -1]))
    np.testing.assert_array_equal(numpy(found["labels"]), reference["labels"])
    expected = reference["detections"]
    np.testing.assert_allclose(numpy(found["boxes"]), expected[..., :4], atol=2e-2)
    np.testing.assert_allclose(numpy(found["confidence"]), expected[..., 4], atol=1e-5)
    assert (numpy(found["num_detections"]) == 30).all()


def test_matching(case):
    _, reference, _ = case
    objects = objects_of(reference)
    logits, boxes = stored(reference)
    costs = numpy(losses.matching_costs(logits, boxes, objects))
    assigned = numpy(losses.match(logits, boxes, objects))
    for layer in range(logits.shape[1]):
        cost = reference[f"cost_0_{layer}"]
        np.testing.assert_allclose(costs[0, layer, :, : cost.shape[1]], cost, atol=1e-4, rtol=1e-4)
        for image in range(2):
            expected = reference[f"assigned_{image}_{layer}"]
            found = np.full(expected.shape, -1)
            for target, query in enumerate(assigned[image, layer]):
                if query >= 0:
                    found[query] = target
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow_on("jax")
def test_losses(case):
    kind, reference, _ = case
    objects = objects_of(reference)
    logits, boxes = stored(reference)
    assigned = losses.match(logits, boxes, objects)
    found = losses.layer_losses(logits, boxes, objects, assigned, ops.convert_to_tensor(5.0))
    prefixes = ("loss_d0_", "loss_")
    for layer, prefix in enumerate(prefixes):
        for ours, theirs in (("classification", "cls"), ("l1", "bbox"), ("giou", "iou")):
            value = float(numpy(getattr(found, ours))[layer])
            assert value == pytest.approx(float(reference[f"{prefix}loss_{theirs}"]), rel=1e-5)
    if kind == "twostage":
        one = objects.of_one_class()
        logits, boxes = (
            ops.convert_to_tensor(reference[f"enc_{name}"][:, None]) for name in ("logits", "boxes")
        )
        assigned = losses.match(logits, boxes, one)
        found = losses.layer_losses(logits, boxes, one, assigned, ops.convert_to_tensor(5.0))
        for ours, theirs in (("classification", "cls"), ("l1", "bbox"), ("giou", "iou")):
            value = float(numpy(getattr(found, ours))[0])
            assert value == pytest.approx(float(reference[f"loss_enc_loss_{theirs}"]), rel=1e-5)


def test_gradients_of_losses(case):
    _, reference, _ = case
    objects = objects_of(reference)
    logits, boxes = stored(reference)
    assigned = losses.match(logits, boxes, objects)

    def total(x, _):
        found = losses.layer_losses(x[..., 4:], x[..., :4], objects, assigned, 5.0)
        return ops.sum(found.total)

    both = np.concatenate([numpy(boxes), numpy(logits)], axis=-1)
    gradient = by_layer(input_gradient(total)(both, {}))
    for found, name in ((gradient[..., 4:], "logits"), (gradient[..., :4], "boxes")):
        expected = reference[f"loss_d_{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_layer_norms():
    transformer = DetectionTransformer(2, 1, 3, 2, 1, 1, 1, 4, query_selection="two_stage")
    transformer.build((None, None, None, 8))
    norms = [
        layer
        for layer in transformer._flatten_layers()
        if isinstance(layer, keras.layers.LayerNormalization)
    ]
    assert len(norms) == 2 + 3 + 2 and {norm.epsilon for norm in norms} == {1e-5}
