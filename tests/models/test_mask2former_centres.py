"""Mask2Former's queries from centres of objects."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import data, metrics, models
from keras_densepred.backbones import ResNetBackbone
from keras_densepred.models.mask2former.centres import (
    HEIGHT,
    RADIUS,
    CentreQueries,
    at_points,
    centre_loss,
    ellipses,
    on_map,
)
from keras_densepred.models.mask2former.decoder import MaskDecoder
from tests.contracts.families import OwnBackbone
from tests.weights import compiled, normal

FAR = 30.0  # a logit that is certain


def numpy(x):
    return ops.convert_to_numpy(x)


def queries_at(heat, num_queries):
    """Where queries stand, (Q, 2), on a map whose centre logits are these (h, w)."""
    layer = CentreQueries(num_queries)
    features = np.zeros((1, *heat.shape, 4), "float32")
    features[0, ..., 0] = heat
    layer.build(features.shape)
    layer.hidden.kernel.assign(np.eye(4))
    layer.hidden.bias.assign(np.zeros(4))
    layer.centres.kernel.assign([[1.0], [0.0], [0.0], [0.0]])
    _, content, positions, places = compiled(layer)(ops.convert_to_tensor(features))
    assert content.shape == positions.shape == (1, num_queries, 4)
    return numpy(places)[0]


def test_queries_stand_at_the_highest_of_maxima():
    heat = np.zeros((5, 8), "float32")
    heat[1, 2], heat[1, 3], heat[3, 6] = 3.0, 2.5, 2.0
    places = queries_at(heat, 2)  # not at the neighbour of the first
    np.testing.assert_allclose(places, [[2.5 / 8, 1.5 / 5], [6.5 / 8, 3.5 / 5]], rtol=1e-6)


@pytest.mark.backend_free
def test_small_maps_have_fewer_queries():
    decoder = MaskDecoder(3, 20, 1, 2, 8, query_selection="centres")
    maps = [normal(f"map{n}", (1, side, side, 8)) for n, side in enumerate((4, 2, 2, 4))]
    outputs = decoder([ops.convert_to_tensor(x) for x in maps])
    assert outputs["class_logits"].shape == (1, 2, 16, 4)
    assert outputs["mask_places"].shape == (1, 2, 16, 4)
    told = decoder.compute_output_spec([keras.KerasTensor(x.shape) for x in maps])
    assert {k: tuple(v.shape) for k, v in told.items()} == {
        k: tuple(v.shape) for k, v in outputs.items()
    }


@pytest.mark.backend_free
def test_an_ellipse_ends_where_its_logit_is_0():
    starts = np.array([[[0.5, 0.25]]], "float32")
    changes = np.array([[[1.0, 0.0, np.log(2.0), 0.0]]], "float32")
    place = numpy(ellipses(ops.convert_to_tensor(changes), ops.convert_to_tensor(starts), (10, 20)))
    unit = RADIUS / 20, RADIUS / 10
    expected = [0.5 + unit[0], 0.25, 2 * unit[0], unit[1]]
    np.testing.assert_allclose(place[0, 0], expected, rtol=1e-6)
    x, y, a, b = expected
    points = np.array([[[x, y], [x + a, y], [x, y - b], [x + 5 * a, y]]], "float32")
    found = numpy(at_points(ops.convert_to_tensor(place), ops.convert_to_tensor(points)))[0, 0]
    np.testing.assert_allclose(found, [HEIGHT, 0.0, 0.0, -HEIGHT * np.log(25)], atol=1e-5)
    cells = np.stack(np.meshgrid((np.arange(20) + 0.5) / 20, (np.arange(10) + 0.5) / 10), axis=-1)
    at_cells = ops.convert_to_tensor(cells.reshape(1, -1, 2).astype("float32"))
    each = numpy(at_points(ops.convert_to_tensor(place), at_cells)).reshape(1, 1, 10, 20)
    np.testing.assert_allclose(
        numpy(on_map(ops.convert_to_tensor(place), (10, 20))), each, atol=1e-5
    )


def test_a_query_looks_at_its_place_however_small_its_object_is():
    """Where no position of a coarse map is inside, at the likeliest one, not everywhere."""
    decoder = MaskDecoder(3, 2, 1, 2, 8, query_selection="centres")
    maps = [np.zeros((1, side, side, 8), "float32") for side in (32, 4, 8, 16)]
    maps[0][0, 9, 9, 0] = 1.0
    decoder.build([x.shape for x in maps])
    predict = compiled(decoder)

    def predicted(row, column):
        maps[1][:] = normal("map", maps[1].shape)
        maps[1][0, row, column] += 5.0
        outputs = predict([ops.convert_to_tensor(x) for x in maps])
        places = numpy(outputs["mask_places"])[0, 0, :, :2]
        cells = [(int(4 * y), int(4 * x)) for x, y in places]
        return cells, numpy(outputs["class_logits"])[0, 1]

    own, _ = predicted(0, 0)
    others = [cell for cell in np.ndindex(4, 4) if cell not in own]
    one, other = predicted(*others[0])[1], predicted(*others[-1])[1]
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(predicted(*own[0])[1] - one).max() > 1e-3


def test_losses_of_centres():
    boxes = np.array([[[0.1, 0.1, 0.3, 0.5], [0.6, 0.2, 1.0, 1.0], [0, 0, 1, 1]]], "float32")
    labels = np.array([[1, 0, -1]], "int32")
    boxes = ops.convert_to_tensor(boxes)
    loss = compiled(lambda logits: centre_loss(logits, boxes, ops.convert_to_tensor(labels)))
    right = np.full((1, 10, 20), -FAR, "float32")
    right[0, 3, 4] = right[0, 6, 16] = FAR
    assert numpy(loss(ops.convert_to_tensor(right))) < 1e-6
    missed = right.copy()
    missed[0, 6, 16] = -1.0
    p = 1 / (1 + np.exp(1.0))
    expected = -((1 - p) ** 2) * np.log(p) / 2
    np.testing.assert_allclose(numpy(loss(ops.convert_to_tensor(missed))), expected, rtol=1e-4)
    # Beside a centre it costs less than far from any.
    costs = []
    for row, column in ((6, 15), (9, 0)):
        phantom = right.copy()
        phantom[0, row, column] = 1.0
        costs.append(numpy(loss(ops.convert_to_tensor(phantom))))
    assert 0 < costs[0] < 0.7 * costs[1]
    none = ops.convert_to_tensor(np.full((1, 3), -1, "int32"))
    assert np.isfinite(numpy(centre_loss(ops.convert_to_tensor(right), boxes, none)))
    nothing = boxes[:, :0], ops.convert_to_tensor(labels[:, :0])
    costs.append(numpy(compiled(lambda logits: centre_loss(logits, *nothing))(missed)))
    assert np.isfinite(costs[-1])


@pytest.mark.backend_free
def test_other_selections_are_refused():
    with pytest.raises(ValueError, match=r"`query_selection` is 'mixed'; give one of learned, cen"):
        models.Mask2Former(OwnBackbone(), 3, query_selection="mixed")


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart():
    keras.utils.set_random_seed(0)
    shapes = data.ShapesDataset(8, 96, 0, "train", with_masks=True)
    options = dict(batch_size=8, mean=(128.0,) * 3, std=(64.0,) * 3, image_size=96)
    sizes = dict(width=64, num_queries=30, encoder_layers=1, decoder_layers=2, num_heads=2)
    sizes |= dict(encoder_hidden=256, decoder_hidden=512, num_points=1024)
    backbone = ResNetBackbone((1, 1, 1, 1), width=16)
    model = models.Mask2Former(
        backbone, len(shapes.class_names), query_selection="centres", **sizes
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 200, alpha=0.01)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0))
    with data.train_batches(shapes, seed=0, mask_size=56, **options) as stream:
        batch = next(stream)
    images = batch.pop("images")
    targets = {name: batch[name] for name in ("boxes", "labels", "masks")}
    for _ in range(200):
        model.train_on_batch(images, targets)
    found = metrics.evaluate_detector(model, data.eval_batches(shapes, **options), shapes)
    assert found["mask_AP"] >= 0.9
