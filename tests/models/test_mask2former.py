"""Mask2Former's own: points of cut masks and label maps, odd targets, masks at image size."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.data.boxes import cut_by_boxes, mask_boxes
from keras_densepred.metrics.mask_results import masks_on_image
from keras_densepred.models import Mask2FormerSegmenter
from keras_densepred.models.mask2former import losses
from keras_densepred.models.mask2former.decoder import MaskDecoder
from keras_densepred.models.mask2former.instances import cut_out, measure_masks
from keras_densepred.models.mask2former.losses import layer_losses, match
from keras_densepred.models.mask2former.segmenter import SemanticScores
from keras_densepred.models.mask2former.targets import ClassMasks, InstanceMasks
from tests.contracts.families import OwnBackbone
from tests.weights import compiled, normal

SMALL = dict(width=32, num_queries=6, encoder_layers=1, decoder_layers=1, num_heads=2)
QUERIES, CLASSES, POINTS = 5, 3, 24


def numpy(x):
    return ops.convert_to_numpy(x)


def uniform(shape):
    return ops.convert_to_tensor(np.random.default_rng(0).uniform(size=shape).astype("float32"))


def discs(size, *circles):
    """(N, size, size) bool."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.stack([(rows - y) ** 2 + (columns - x) ** 2 < r * r for x, y, r in circles])


def predictions(queries=QUERIES):
    """Two predictions for two images."""
    shapes = {
        "class_logits": (2, 2, queries, CLASSES + 1),
        "mask_embeddings": (2, 2, queries, 8),
        "mask_features": (2, 6, 9, 8),
    }
    return {key: ops.convert_to_tensor(normal(key, shape)) for key, shape in shapes.items()}


def instances(labels):
    """Targets of these labels (2, M) of which each is a box."""
    labels = np.array(labels, "int32")
    boxes = np.tile(np.array([0.1, 0.2, 0.7, 0.9], "float32"), (*labels.shape, 1))
    boxes[..., 0] += 0.05 * np.arange(labels.shape[1])
    masks = np.ones((*labels.shape, 4, 4), "uint8")
    return InstanceMasks(*(ops.convert_to_tensor(x) for x in (boxes, masks, labels)))


def losses_of(outputs, targets, uniform=uniform):
    """Classification, mask and dice loss of each prediction (2, 3), and who answers for what."""

    def both(outputs):
        assigned = match(outputs, targets, POINTS, uniform)
        layers = [
            layer_losses(outputs, n, assigned[:, n], targets, POINTS, uniform) for n in range(2)
        ]
        parts = [ops.stack([x.classification, x.mask, x.dice]) for x in layers]
        return ops.stack(parts), assigned

    return tuple(numpy(x) for x in compiled(both)(outputs))


# === Targets ===


def test_samples_of_cut_masks_are_those_of_whole_ones():
    """Exactly where a cell is a pixel, near the border only on larger objects."""
    whole = discs(200, (60, 70, 40), (120, 110, 75))
    boxes = mask_boxes(whole)
    points = np.random.default_rng(0).uniform(size=(1, 4000, 2)).astype("float32")
    image = np.array([0, 0, 1, 1], "float32")
    labels = np.zeros((1, 1), "int32")
    of_image = (image[None, None], whole[:1][None], labels)
    full = InstanceMasks(*map(ops.convert_to_tensor, of_image))
    exact = numpy(full.at(ops.convert_to_tensor(points))[0])
    for cells, most in ((80, 1e-5), (56, 0.03)):
        cut = cut_by_boxes(whole[:1], boxes[:1], cells)
        targets = InstanceMasks.of(
            {
                "boxes": ops.convert_to_tensor(boxes[:1][None]),
                "masks": ops.convert_to_tensor(cut[None]),
                "labels": ops.convert_to_tensor(labels),
            },
            np.zeros((1, 200, 200, 3), "float32"),
        )
        found = numpy(targets.at(ops.convert_to_tensor(points))[0])
        assert np.abs(found - exact).sum() / exact.sum() < most
        each, counts = targets.at_each(ops.convert_to_tensor(points[:, None]))
        np.testing.assert_array_equal(numpy(each), found)
        assert counts is None


@pytest.mark.backend_free
def test_classes_of_a_label_map_are_targets():
    semantic = np.zeros((2, 4, 4), "uint8")
    semantic[0, :, 2:] = 2
    semantic[0, 0] = 255
    semantic[1] = 255
    targets = ClassMasks(ops.convert_to_tensor(semantic), CLASSES, 255)
    np.testing.assert_array_equal(numpy(targets.labels), [[0, -1, 2], [-1, -1, -1]])
    np.testing.assert_array_equal(numpy(targets.counted), [1, 0])
    points = np.array([[[0.1, 0.9], [0.9, 0.9], [0.9, 0.1]]] * 2, "float32")
    values, counts = targets.at(ops.convert_to_tensor(points))
    np.testing.assert_array_equal(numpy(values)[0], [[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(numpy(counts), [[1, 1, 0], [0, 0, 0]])
    every = ops.convert_to_tensor(np.tile(points[:, None], (1, 3, 1, 1)))
    values_each, counts_each = targets.at_each(every)
    np.testing.assert_array_equal(numpy(values_each), numpy(values))
    expected = np.broadcast_to(numpy(counts)[:, None], (2, 3, 3))
    np.testing.assert_array_equal(numpy(counts_each), expected)


def test_ignored_pixels_change_no_loss():
    """What masks say on ignored pixels, and what a label map hides there, is of no consequence."""
    semantic = np.zeros((2, 6, 9), "uint8")
    semantic[:, :, 4:] = 1
    semantic[:, :2] = 255
    outputs = predictions()
    # Each position has a feature of its own, so that a mask can change in the ignored rows alone.
    outputs["mask_features"] = ops.convert_to_tensor(
        np.tile(np.eye(54, dtype="float32").reshape(1, 6, 9, 54), (2, 1, 1, 1))
    )
    masks = normal("masks", (2, 2, QUERIES, 6, 9))
    losses = []
    for inside in (0.0, 30.0):
        masks[..., :1, :] += inside  # the second row's samples reach into the third
        outputs["mask_embeddings"] = ops.convert_to_tensor(masks.reshape(2, 2, QUERIES, 54))
        targets = ClassMasks(ops.convert_to_tensor(semantic), CLASSES, 255)
        losses.append(losses_of(outputs, targets)[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


# === Matching and losses ===


def test_no_targets_cost_only_the_classes_of_queries():
    values, assigned = losses_of(predictions(), instances([[-1, -1], [-1, -1]]))
    assert (assigned == -1).all() and (values[:, 1:] == 0).all() and (values[:, 0] > 0).all()
    logits = numpy(predictions()["class_logits"]).astype(np.float64)
    none = np.log(np.exp(logits).sum(-1)) - logits[..., -1]
    np.testing.assert_allclose(values[:, 0], 2 * none.mean(axis=(0, 2)), rtol=1e-5)


def test_more_targets_than_queries():
    """Each query answers for one; the others are left over and cost nothing."""
    labels = [[0, 1, 2, 0, 1, 2, 0], [1, -1, -1, -1, -1, -1, -1]]
    values, assigned = losses_of(predictions(), instances(labels))
    assert np.isfinite(values).all() and (values > 0).all()
    for layer in range(2):
        used = assigned[0, layer][assigned[0, layer] >= 0]
        assert sorted(used) == list(range(QUERIES))
        assert (assigned[1, layer] >= 0).sum() == 1


def test_only_targets_with_a_query_are_looked_at(monkeypatch):
    looked_at = []

    def same_for_all(shape):
        looked_at.append(shape[:-2])
        points = uniform((1,) * (len(shape) - 2) + shape[-2:])
        return ops.broadcast_to(points, shape)

    targets = instances([[0, 1, -1, 2, 0, 1, 2, 0], [-1, -1, -1, -1, -1, -1, -1, 1]])
    few, _ = losses_of(predictions(), targets, same_for_all)
    assert {shape[1] for shape in looked_at if len(shape) == 2} == {QUERIES}
    everyone = ops.convert_to_tensor(np.tile(np.arange(8, dtype="int32"), (2, 1)))
    monkeypatch.setattr(losses, "_matched_first", lambda *_: (everyone, 8))
    every, _ = losses_of(predictions(), targets, same_for_all)
    np.testing.assert_allclose(few, every, rtol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="has graphs with open shapes")
def test_a_graph_takes_any_number_of_targets():
    import tensorflow as tf

    outputs = predictions()
    targets = instances([[0, 1], [2, -1]])

    @tf.function(input_signature=[tf.TensorSpec([2, None], "int32")])
    def total(assigned):
        parts = layer_losses(outputs, 0, assigned, targets, POINTS, uniform_of_any)
        return parts.mask + parts.dice

    def uniform_of_any(shape):
        return tf.random.stateless_uniform(tf.stack(list(shape)), seed=[0, 0])

    assert np.isfinite(total(np.array([[0, 3], [1, -1]], "int32")))


@pytest.mark.slow_on("jax")
def test_padding_changes_nothing():
    outputs = predictions()
    short, by_two = losses_of(outputs, instances([[0, 2], [1, -1]]))
    # Random numbers are drawn for each target: as many as there are, so that they are the same.
    numbers = uniform((2, 2, 3 * POINTS, 2)), uniform((2, 2, POINTS // 4, 2))

    def with_padding(shape):
        if len(shape) == 3:
            return uniform(shape)
        drawn = next(x for x in numbers if x.shape[2] == shape[2])
        return ops.concatenate([drawn, uniform((2, shape[1] - 2, *shape[2:]))], axis=1)

    targets = instances([[0, 2, -1, -1], [1, -1, -1, -1]])
    long, by_four = losses_of(outputs, targets, with_padding)
    np.testing.assert_array_equal(by_four[:, :, :2], by_two)
    assert (by_four[:, :, 2:] == -1).all()
    np.testing.assert_allclose(long, short, rtol=1e-5)


def test_a_perfect_prediction_is_matched_and_costs_nothing():
    outputs = predictions()
    features = np.tile(np.eye(54, dtype="float32").reshape(1, 6, 9, 54), (2, 1, 1, 1))
    wanted = np.zeros((2, 6, 9), "uint8")
    wanted[0, 1:4, 2:6] = 1
    wanted[1, 2:, 5:] = 1
    masks = np.full((2, 2, QUERIES, 54), -20, "float32")
    classes = np.zeros((2, 2, QUERIES, CLASSES + 1), "float32")
    classes[..., -1] = 30
    for image, query in ((0, 3), (1, 1)):
        masks[image, :, query] = np.where(wanted[image].reshape(-1), 400, -400)
        classes[image, :, query] = [0, 30, 0, 0]
    outputs = {
        "class_logits": ops.convert_to_tensor(classes),
        "mask_embeddings": ops.convert_to_tensor(masks),
        "mask_features": ops.convert_to_tensor(features),
    }
    # By pixels: a bilinear border of the prediction would lie half a cell off.
    targets = ClassMasks(ops.convert_to_tensor(np.where(wanted, 1, 255)), CLASSES, 255)
    values, assigned = losses_of(outputs, targets)
    np.testing.assert_array_equal(assigned[:, 0], [[-1, 3, -1], [-1, 1, -1]])
    assert values[:, 0].max() < 1e-4


# === Masked attention ===


def test_a_query_with_an_empty_mask_looks_everywhere():
    """Else it would look at nothing: a softmax of nothing but blocked positions."""
    decoder = MaskDecoder(CLASSES, 4, 1, 2, 8)
    decoder.build([(None, None, None, 8)] * 4)
    maps = [normal(f"map{n}", (1, side, side, 8)) for n, side in enumerate((8, 2, 4, 8))]
    decoder.mask_3.kernel.assign(np.zeros((8, 8)))
    decoder.mask_3.bias.assign([1.0, *[0.0] * 7])

    predict = compiled(decoder)

    def predicted(feature):
        maps[0][...] = 0.0
        maps[0][..., 0] = feature
        return numpy(predict(list(map(ops.convert_to_tensor, maps)))["class_logits"][0, 1])

    everywhere, nowhere = predicted(1.0), predicted(-1.0)
    np.testing.assert_allclose(nowhere, everywhere, atol=1e-5)
    feature = np.ones((8, 8))
    feature[:, 4:] = -1.0
    left = predicted(feature)
    assert np.abs(left - everywhere).max() > 1e-3
    maps[1][:, :, 1] = 7.0  # where they may not look
    np.testing.assert_allclose(predicted(feature), left, atol=1e-5)
    assert np.abs(predicted(1.0) - everywhere).max() > 1e-3


# === Masks at the size of the image ===


@pytest.mark.parametrize("stride,size", [(4, (24, 20)), (4, (22, 17)), (8, (41, 48))])
@pytest.mark.slow_on("jax")
def test_masks_are_measured_as_if_scaled_up(stride, size):
    shape = tuple(-(-side // stride) for side in size)
    maps = normal("maps", (2, 3, *shape)) - 0.5
    maps[0, 1] = -1.0  # an empty one
    measure = compiled(lambda x: measure_masks(x, size, stride))
    boxes, sureness, areas = (numpy(x) for x in measure(ops.convert_to_tensor(maps)))
    scaled = ops.image.resize(
        np.moveaxis(maps, 1, -1),
        tuple(stride * side for side in shape),
        "bilinear",
        antialias=False,
        data_format="channels_last",
    )
    scaled = np.moveaxis(numpy(scaled), -1, 1)[:, :, : size[0], : size[1]]
    inside = scaled > 0
    np.testing.assert_array_equal(areas, inside.sum((2, 3)))
    assert areas[0, 1] == 0 and sureness[0, 1] == 0
    for image, mask in np.ndindex(2, 3):
        if areas[image, mask]:
            mean = 1 / (1 + np.exp(-scaled[image, mask][inside[image, mask]]))
            assert sureness[image, mask] == pytest.approx(mean.mean(), rel=1e-4)
            tight = mask_boxes(inside[image, mask][None])[0]
            np.testing.assert_array_equal(boxes[image, mask], tight)


@pytest.mark.backend_free
def test_cut_masks_are_pasted_where_they_were():
    """As evaluation and drawings lay them onto the image."""
    masks = discs(128, (50, 40, 30), (90, 100, 12))
    logits = np.array([m.reshape(32, 4, 32, 4).mean((1, 3)) for m in masks], "float32")
    logits = ops.convert_to_tensor(20 * (logits - 0.5)[None])
    boxes, *_ = measure_masks(logits, (128, 128), 4)
    cut = numpy(cut_out(logits, boxes, 4, 160))[0]
    assert cut.shape == (2, 160, 160) and cut.min() >= 0 and cut.max() <= 1
    pasted = masks_on_image(cut, numpy(boxes)[0], 128, 128)
    for mask, own in zip(masks, pasted, strict=True):
        assert (mask & own).sum() / (mask | own).sum() > 0.95


# === Semantic ===


def test_scores_sum_over_queries():
    outputs = predictions()
    found = numpy(SemanticScores(dtype="float32")(outputs))
    classes, masks, features = (numpy(value).astype(np.float64) for value in outputs.values())
    share = np.exp(classes[:, -1])
    share /= share.sum(-1, keepdims=True)
    sure = 1 / (1 + np.exp(-np.einsum("bqc,bhwc->bqhw", masks[:, -1], features)))
    expected = np.einsum("bqc,bqhw->bhwc", share[..., :-1], sure)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.backend_free
def test_a_segmenter_has_losses_of_its_own():
    model = Mask2FormerSegmenter(OwnBackbone(), CLASSES, **SMALL)
    with pytest.raises(ValueError, match=r"^Mask2FormerSegmenter trains with losses of its own"):
        model.compile(loss="mse")
    model.compile()
    assert model.optimizer.global_clipnorm == 0.01 and model.optimizer.weight_decay == 0.05
    with pytest.raises(ValueError, match="fit without `sample_weight`"):
        model.compute_loss(y=None, y_pred={}, sample_weight=np.ones(2))
    with pytest.raises(ValueError, match="`width` is 30"):
        Mask2FormerSegmenter(OwnBackbone(), CLASSES, **{**SMALL, "width": 30})
