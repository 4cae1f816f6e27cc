"""What two-stage detectors are made of: proposals, samples, losses, heads, Dynamic R-CNN, FPN."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import BiFPN, FeaturePyramid, ResNetBackbone
from keras_densepred.models.rcnn import dynamic, losses
from keras_densepred.models.rcnn.heads import MaskHead
from keras_densepred.models.rcnn.regions import Truth, draw_rows, propose, sample_regions
from keras_densepred.ops.boxes import smooth_l1
from tests.networks import images, run, trainable_parameters
from tests.weights import compiled, set_deterministic_weights


def numpy(x):
    return ops.convert_to_numpy(x)


def tensors(*values):
    return [ops.convert_to_tensor(value) for value in values]


def test_rows_are_drawn_positive_ones_first():
    rng = np.random.default_rng(0)
    random = rng.uniform(size=(3, 40)).astype("float32")
    positive = np.zeros((3, 40), bool)
    positive[0, :10] = positive[1, 5] = True
    negative = ~positive
    negative[2, 3:] = False
    index, drawn = (numpy(x) for x in draw_rows(*tensors(random, positive, negative), 8, 4))
    assert index.shape == drawn.shape == (3, 8)
    assert drawn[0].all() and positive[0, index[0]].tolist() == [True] * 4 + [False] * 4
    assert drawn[1].all() and positive[1, index[1]].tolist() == [True] + [False] * 7
    assert drawn[2].tolist() == [True] * 3 + [False] * 5  # there are no more
    assert all(len(set(row)) == 8 for row in index.tolist())
    # The ten positive ones are equally likely.
    draws = rng.uniform(size=(2000, 40)).astype("float32")
    many = np.broadcast_to(positive[:1], draws.shape)
    index, _ = draw_rows(*tensors(draws, many, ~many), 8, 4)
    counts = np.bincount(numpy(index)[:, :4].ravel(), minlength=10)
    assert counts.sum() == 8000 and counts.min() > 700 and counts.max() < 900


def test_fewer_rows_than_are_wanted():
    positive = np.array([[True, False]])
    random = np.array([[0.1, 0.9]], "float32")
    index, drawn = draw_rows(*tensors(random, positive, ~positive), 512, 128)
    assert numpy(index).tolist() == [[0, 1]] and numpy(drawn).all()


def test_a_sample_has_its_objects():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60], [0, 0, 9, 9]]], "float32")
    valid = np.array([[True, True, True, False]])
    truth = Truth(
        *tensors(
            np.array([[[0, 0, 10, 12], [-1, -1, -1, -1]]], "float32"),
            np.array([[2, -1]], "int32"),
        )
    )
    random = np.linspace(0.9, 0.1, 6, dtype="float32")[None]
    sample, overlaps = sample_regions(*tensors(random, boxes, valid), truth, 3, 0.6, 6, 4)
    np.testing.assert_allclose(numpy(overlaps), [[10 / 12, 0.5, 0, 0]], atol=1e-6)
    drawn = numpy(sample.valid)[0]
    # The first proposal and the object itself are positive; invalid rows and padding never train.
    assert drawn.sum() == 4 and numpy(sample.positive)[0].tolist() == [True] * 2 + [False] * 4
    assert numpy(sample.labels)[0].tolist() == [2, 2, 3, 3, 3, 3]
    assert numpy(sample.is_truth)[0, :2].tolist() == [False, True]
    assert numpy(sample.boxes)[0, 1].tolist() == [0, 0, 10, 12]


def test_proposals_are_the_best_boxes_of_each_level():
    anchors = [
        np.array([[0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]], "float32"),
        np.array([[0, 0, 10, 10], [-50, 0, -40, 10]], "float32"),
    ]
    logits = [np.array([[2.0, 1.0, 0.0]], "float32"), np.array([[1.5, 9.0]], "float32")]
    deltas = [np.zeros((1, len(a), 4), "float32") for a in anchors]
    best = compiled(lambda *maps: propose(*maps, 25, 64, pre_nms_top_k=3, num_proposals=4))
    found, there = best(tensors(*logits), tensors(*deltas), tensors(*anchors))
    # The second box doubles the first of its level; the last lies outside of the image.
    assert numpy(there).tolist() == [[True, True, True, False]]
    assert numpy(found)[0, :3].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 25]]


def test_losses():
    error = np.array([[0.5, -2.0, 0.0, 0.0]], "float32")
    assert numpy(smooth_l1(*tensors(error), 0.0)).tolist() == [2.5]
    assert numpy(smooth_l1(*tensors(error), 1.0)).tolist() == [0.125 + 1.5]
    logits = np.array([[2.0, -1.0, 0.5]], "float32")
    expected = -np.log(np.exp(-1.0) / np.exp(logits).sum())
    labels = np.array([1], "int32")
    np.testing.assert_allclose(
        numpy(losses.cross_entropy(*tensors(logits, labels))), [expected], rtol=1e-5
    )
    extreme = numpy(losses.sigmoid_cross_entropy(*tensors(np.float32([-200, 200]), np.float32(1))))
    assert extreme.tolist() == [200.0, 0.0]


def test_a_mask_is_that_of_its_class():
    head = MaskHead(3, num_convs=1, width=4)
    head.build((None, 14, 14, 5))
    head.bias.assign([1.0, 2.0, 3.0])
    regions = np.random.default_rng(0).normal(size=(2, 14, 14, 5)).astype("float32")
    of_label = [numpy(head(regions, np.full(2, label, "int32"))) for label in range(3)]
    mixed = numpy(head(regions, np.array([2, 0], "int32")))
    assert mixed.shape == (2, 28, 28)
    np.testing.assert_allclose(mixed, np.stack([of_label[2][0], of_label[0][1]]), atol=1e-5)


def test_dynamic_training_becomes_stricter():
    layer = dynamic.DynamicTraining()
    overlaps = np.linspace(1, 0.3, 80, dtype="float32")[None].repeat(2, 0)
    errors = np.full((2, 12, 4), 0.25, "float32")
    positive = np.ones((2, 12), bool)
    for _ in range(dynamic.EVERY - 1):
        layer.update(*tensors(overlaps, errors, positive))
    assert float(numpy(layer.iou)) == pytest.approx(0.4) and float(numpy(layer.beta)) == 1
    layer.update(*tensors(overlaps, errors, positive))
    # 75th of 80 overlaps is below the least of 0.4; the errors' centres are 0.25 off.
    assert float(numpy(layer.iou)) == pytest.approx(0.4)
    assert float(numpy(layer.beta)) == pytest.approx(0.25)
    for _ in range(dynamic.EVERY):
        layer.update(*tensors(overlaps + 0.3, errors, np.zeros_like(positive)))
    expected = 0.3 + np.linspace(1, 0.3, 80)[74]
    assert float(numpy(layer.iou)) == pytest.approx(expected, abs=1e-4)
    assert float(numpy(layer.beta)) == pytest.approx(0.25)  # nothing was learned of it


@pytest.mark.backend_free
def test_parameters_of_the_papers_fpn():
    backbone = ResNetBackbone.from_preset("resnet50")
    pyramid = FeaturePyramid(backbone)
    added = trainable_parameters(pyramid) - trainable_parameters(backbone)
    assert added == 256 * (256 + 512 + 1024 + 2048) + 4 * 256 + 4 * (9 * 256**2 + 256)
    for_retinanet = FeaturePyramid(backbone, min_level=3, max_level=7, extra_levels="conv")
    assert list(for_retinanet.pyramid_outputs) == ["P3", "P4", "P5", "P6", "P7"]


def test_fpn_sums_from_the_top():
    backbone = ResNetBackbone((1, 1, 1, 1), width=2)
    pyramid = FeaturePyramid(backbone, width=4)
    set_deterministic_weights(pyramid)
    names = [f"fpn_p{level}_lateral" for level in (4, 5)]
    taps = {
        **pyramid.output,
        **{name: pyramid.get_layer(name).output for name in names},
        "sum": pyramid.get_layer("fpn_p4_conv").input,
    }
    outputs = {
        key: numpy(x) for key, x in run(keras.Model(pyramid.input, taps), images(40, 72)).items()
    }
    sizes = {key: x.shape[1:3] for key, x in outputs.items()}
    assert [sizes[f"P{level}"] for level in range(2, 7)] == [
        (10, 18),
        (5, 9),
        (3, 5),
        (2, 3),
        (1, 2),
    ]
    above = outputs["fpn_p5_lateral"].repeat(2, 1).repeat(2, 2)[:, :3, :5]
    np.testing.assert_allclose(outputs["sum"], outputs["fpn_p4_lateral"] + above, atol=1e-5)
    assert np.array_equal(outputs["P6"], outputs["P5"][:, ::2, ::2])


@pytest.mark.backend_free
def test_parameters_of_bifpn():
    """At 256 channels 68,608 a node, with 4 x 2 + 3 x 3 + 2 weights of the sums a round."""
    backbone = ResNetBackbone((1, 1, 1, 1), width=2)
    counts = [trainable_parameters(BiFPN(backbone, 256, repeats)) for repeats in (1, 2)]
    a_round = 8 * (9 * 256 + 256 * 256 + 256 + 2 * 256) + 19
    assert counts[1] - counts[0] == a_round == 8 * 68_608 + 19
    laterals = sum(channels * 256 + 3 * 256 for channels in (16, 32, 32, 64, 64, 64))
    assert counts[0] - trainable_parameters(backbone) == a_round + laterals


def test_bifpn_weighs_its_maps():
    backbone = ResNetBackbone((1, 1, 1, 1), width=2)
    pyramid = BiFPN(backbone, width=4, repeats=2)
    set_deterministic_weights(pyramid)
    outputs = run(pyramid, images(40, 72))
    sizes = [tuple(numpy(x).shape[1:3]) for x in outputs.values()]
    assert list(outputs) == ["P3", "P4", "P5", "P6", "P7"]
    assert sizes == [(5, 9), (3, 5), (2, 3), (1, 2), (1, 1)]
    layer = pyramid.get_layer("bifpn_2_p5_up_sum")
    layer.weight.assign([2.0, -1.0, 1.0])
    taps = {"out": layer.output, **{str(i): x for i, x in enumerate(layer.input)}}
    found = {k: numpy(x) for k, x in run(keras.Model(pyramid.input, taps), images(40, 72)).items()}
    expected = (2 * found["0"] + found["2"]) / 3.0001
    np.testing.assert_allclose(found["out"], expected, atol=1e-5)


@pytest.mark.parametrize("neck", [FeaturePyramid, BiFPN])
def test_neck_round_trip(tmp_path, neck):
    pyramid = neck(ResNetBackbone((1, 1, 1, 1), width=2), width=4, max_level=7)
    pyramid.save(tmp_path / "fpn.keras")
    copy = keras.models.load_model(tmp_path / "fpn.keras")
    assert copy.get_config() == pyramid.get_config()
    for ours, theirs in zip(pyramid.weights, copy.weights, strict=True):
        assert np.array_equal(numpy(ours), numpy(theirs))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "options,message",
    [
        ({"min_level": 1}, "`min_level` must be 2 to 5"),
        ({"max_level": 4}, "`max_level` at least 5"),
        ({"extra_levels": "max"}, "`extra_levels` must be one of"),
    ],
)
def test_bad_levels_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(ResNetBackbone((1, 1, 1, 1), width=2), **options)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "options,message",
    [
        ({"min_level": 5}, "`min_level` must be 2 to 4"),
        ({"max_level": 4}, "`max_level` at least 5"),
        ({"repeats": 0}, "`repeats` must be at least 1"),
    ],
)
def test_what_bifpn_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BiFPN(ResNetBackbone((1, 1, 1, 1), width=2), **options)
