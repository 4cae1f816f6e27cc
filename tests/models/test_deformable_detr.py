"""Deformable DETR's own: padding, queries of the encoder, batches at the edge, starting values."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.models import DeformableDETR, DetectionTransformer, TopDetections
from keras_densepred.models.detr import losses
from keras_densepred.necks import ProjectedLevels
from keras_densepred.runtime.input_gradient import input_gradient
from tests.convert.detr_state import make_input
from tests.models.conftest import ToyPyramid

COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}
SMALL = dict(num_queries=6, num_heads=2, num_points=2, feed_forward_width=16, dropout=0.0)
SMALL |= dict(encoder_layers=1, decoder_layers=2)
KINDS = {
    "learned": {},
    "refine": {"box_refine": True},
    "two_stage": {"query_selection": "two_stage"},
    "mixed": {"query_selection": "mixed"},
}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
SIZES = np.array([[64, 96], [40, 50]], "int32")
every_kind = pytest.mark.parametrize("kind", KINDS)


def numpy(x):
    return ops.convert_to_numpy(x)


def small(**options):
    return DeformableDETR(ToyPyramid(), 3, **{**SMALL, **options})


def transformer(kind, width=8, **options):
    layer = DetectionTransformer(3, 2, name="transformer", **{**SMALL, **KINDS[kind], **options})
    layer.build((None, None, None, width))
    rng = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        weight.assign(numpy(weight) + 0.3 * rng.normal(size=weight.shape))
    return layer


def targets(count, padding=0):
    """`count` objects in the first image, half of them in the second."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 30, (2, count + padding, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 20, corner.shape)], axis=-1)
    labels = rng.integers(0, 3, (2, count + padding))
    labels[0, count:], labels[1, count // 2 :] = -1, -1
    boxes = np.where(labels[..., None] < 0, -1.0, boxes)
    return {"boxes": boxes.astype("float32"), "labels": labels.astype("int32")}


@every_kind
@pytest.mark.slow_on("jax")
def test_what_is_padding_changes_nothing(kind):
    """A batch with padding gives each image what it gets alone, whatever the padding holds."""
    layer = transformer(kind)
    whole = [make_input(f"p{n}", (1, 6 // n, 8 // n, 8)) for n in (1, 2)]
    padded = []
    for n, x in zip((1, 2), whole, strict=True):
        big = 9.0 * make_input(f"noise{n}", (1, 10 // n, 12 // n, 8))
        big[:, : 6 // n, : 8 // n] = x
        padded.append(big)
    alone, batch = ([ops.convert_to_tensor(x) for x in maps] for maps in (whole, padded))
    expected = layer(alone)
    found = layer(batch, image_sizes=ops.convert_to_tensor([[48, 64]]), canvas=(80, 96))
    for name in ("logits", "boxes"):
        np.testing.assert_allclose(numpy(found[name]), numpy(expected[name]), atol=1e-5)
    said = layer(alone, image_sizes=ops.convert_to_tensor([[48, 64]]), canvas=(48, 64))
    np.testing.assert_allclose(numpy(said["boxes"]), numpy(expected["boxes"]), atol=1e-6)


@pytest.mark.slow_on("jax")
def test_refined_boxes_are_measured_from_what_takes_no_gradient():
    """Each layer's boxes teach that layer alone; in DINO ("mixed") the one before it, too."""
    maps = [ops.convert_to_tensor(make_input(f"p{n}", (1, 4 // n, 4 // n, 8))) for n in (1, 2)]

    def gradient(layer, head):
        def second(bias, _):
            with keras.StatelessScope(state_mapping=[(head.box_3.bias, bias)]):
                return ops.sum(layer(maps)["boxes"][:, 1])

        return input_gradient(second, layer.variables)(numpy(head.box_3.bias), {})

    refine, mixed = transformer("refine"), transformer("mixed")
    assert not gradient(refine, refine.heads[0]).any()
    assert np.abs(gradient(refine, refine.heads[1])).min() > 0
    # With a kernel of zeros both layers move each box by the bias: once, twice.
    head = mixed.heads[0]
    head.box_3.kernel.assign(np.zeros(head.box_3.kernel.shape))
    box = numpy(mixed(maps)["boxes"])[:, 1]
    slope = (box * (1 - box)).sum((0, 1))
    np.testing.assert_allclose(gradient(mixed, head), 2 * slope, rtol=1e-4)


@every_kind
@pytest.mark.slow_on("jax", "tensorflow")
def test_batches_at_the_edge_train(kind):
    """More objects than queries, none, no row, one query, and images that are all padding."""
    model = small(**KINDS[kind])
    model.compile(keras.optimizers.SGD(1e-4), **COMPILE)
    one = small(**{**KINDS[kind], "num_queries": 1})
    one.compile(keras.optimizers.SGD(1e-4), **COMPILE)
    for trained, y, sizes in (
        (model, targets(9), SIZES),
        (model, targets(0, padding=3), SIZES),
        (model, targets(0), SIZES),
        (model, targets(9), np.zeros((2, 2), "int32")),
        (one, targets(4), SIZES),
    ):
        inputs = {"images": IMAGES, "image_sizes": sizes}
        logs = trained.train_on_batch(inputs, y, return_dict=True)
        assert np.isfinite(list(logs.values())).all(), logs
        assert logs["classification_loss"] > 0
        assert (logs["box_l1_loss"] > 0) == (y["labels"] >= 0).any()
        assert all(np.isfinite(numpy(w)).all() for w in trained.weights)
    assert np.isfinite(one.predict_on_batch(inputs)["boxes"]).all()


@pytest.mark.slow_on("jax", "tensorflow")
def test_with_more_objects_than_queries_losses_count_the_matched():
    """The authors' normaliser, DETR.md 1.12: matched targets, not all."""
    model = small()
    y = {key: ops.convert_to_tensor(value) for key, value in targets(9).items()}
    outputs = {
        "logits": ops.zeros((2, 2, 6, 3)),
        "boxes": ops.full((2, 2, 6, 4), 0.25),
        "image_sizes": ops.convert_to_tensor(SIZES.astype("float32")),
    }
    parts = model.compute_losses(ops.convert_to_tensor(IMAGES), y, outputs)
    matched = 6 + 4
    # At logits of 0 a query costs alpha_t * 0.25 * ln 2 for each class.
    quarter = 0.25 * np.log(2) / matched
    expected = 2.0 * quarter * (0.25 * matched + 0.75 * (2 * 6 * 3 - matched))
    assert float(parts["classification_loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="has graphs with open shapes")
def test_a_graph_takes_batches_of_any_size():
    """As a recipe's batches come; those of arrays have one size."""
    import tensorflow as tf

    objects = losses.Objects.of(targets(2), SIZES.astype("float32"))

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 5, n], "float32") for n in (3, 4)])
    def assigned(logits, boxes):
        return losses.match(logits, boxes, objects)

    rng = np.random.default_rng(2)
    logits, boxes = (rng.uniform(0.2, 0.4, (2, 2, 5, n)).astype("float32") for n in (3, 4))
    eagerly = losses.match(logits, boxes, objects)
    np.testing.assert_array_equal(assigned(logits, boxes), eagerly)


@pytest.mark.slow_on("jax", "tensorflow")
def test_sizes_go_through_fit_and_predict_and_files(tmp_path):
    model = small(query_selection="mixed", dropout=0.1)
    model.compile(**COMPILE)
    inputs = {"images": np.tile(IMAGES, (2, 1, 1, 1)), "image_sizes": np.tile(SIZES, (2, 1))}
    y = {key: np.tile(value, (2,) + (1,) * (value.ndim - 1)) for key, value in targets(2).items()}
    history = model.fit(inputs, y, batch_size=2, verbose=0).history
    assert np.isfinite([history[name][0] for name in history]).all()
    found = model.predict(inputs, batch_size=2, verbose=0)
    assert found["boxes"].shape == (4, 100, 4) and (found["num_detections"] == 18).all()
    used = found["labels"][1] >= 0
    assert (found["boxes"][1][used] <= [50, 40, 50, 40]).all()  # inside of what is image
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    again = copy.predict(inputs, batch_size=2, verbose=0)
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value, atol=1e-4)
    without = model.predict(inputs["images"], batch_size=2, verbose=0)
    np.testing.assert_allclose(without["boxes"][0], found["boxes"][0], atol=1e-3)
    assert np.abs(without["boxes"][1] - found["boxes"][1]).max() > 1


@pytest.mark.slow_on("jax", "tensorflow")
def test_losses_are_float32_in_half_precision():
    model = DeformableDETR(ToyPyramid(dtype="mixed_bfloat16"), 3, **SMALL)
    outputs = model(ops.convert_to_tensor(IMAGES))
    kinds = {keras.backend.standardize_dtype(value.dtype) for value in outputs.values()}
    assert kinds == {"float32"} and model.transformer.compute_dtype == "bfloat16"
    y = {key: ops.convert_to_tensor(value) for key, value in targets(2).items()}
    parts = model.compute_losses(ops.convert_to_tensor(IMAGES), y, outputs)
    assert {keras.backend.standardize_dtype(x.dtype) for x in parts.values()} == {"float32"}


@pytest.mark.backend_free
def test_heads_start_as_the_authors():
    """DETR.md 1.7 and part 3: a prior of 0.01; boxes of 0.119 of the image, or as proposed."""
    for kind, narrow in (
        ("learned", [True]),
        ("refine", [True, False]),
        ("two_stage", [False]),
        ("mixed", [False, False]),
    ):
        heads = small(**KINDS[kind]).transformer.heads
        for head, is_narrow in zip(heads, narrow, strict=True):
            np.testing.assert_allclose(numpy(head.classes.bias), -4.59512, atol=1e-5)
            np.testing.assert_array_equal(
                numpy(head.box_3.bias), [0, 0, -2, -2] if is_narrow else [0, 0, 0, 0]
            )
            assert not numpy(head.box_3.kernel).any()
    both = small(box_refine=True, query_selection="two_stage").transformer
    assert len(both.heads) == 3 and not any(head.narrow for head in both.heads)
    embedding = numpy(small(num_queries=500).transformer.query_embedding)
    assert embedding.std() == pytest.approx(1.0, abs=0.02)


@pytest.mark.backend_free
def test_optimizer_and_neck_are_the_papers():
    optimizer = small().default_optimizer()
    assert type(optimizer).__name__ == "AdamW" and optimizer.global_clipnorm == 0.1
    assert float(optimizer.learning_rate) == pytest.approx(2e-4)
    assert optimizer.weight_decay == 1e-4
    model = DeformableDETR(ToyPyramid(ready=False), 3, **{**SMALL, "width": 16})
    assert isinstance(model.backbone, ProjectedLevels)
    assert model.pyramid_levels == (3, 4, 5, 6) and model.width == 16
    assert model.backbone.get_layer("levels_p6_conv").input.shape[-1] == 16  # C5, not P5
    paths = {w.path for w in model.weights}
    assert len(paths) == len(model.weights)


@pytest.mark.backend_free
def test_bad_arguments_are_named():
    for name in ("num_queries", "decoder_layers", "num_points", "feed_forward_width"):
        with pytest.raises(ValueError, match=f"`{name}` is 0; give 1 at least"):
            small(**{name: 0})
    with pytest.raises(ValueError, match="`query_selection` must be one of"):
        small(query_selection="all")
    with pytest.raises(ValueError, match="8 channels do not divide into `num_heads` 3"):
        small(num_heads=3)
    with pytest.raises(ValueError, match="channels wide; positions need a multiple of 4"):
        DeformableDETR(ToyPyramid(filters=6), 3, **SMALL)
    for arguments in ({"max_detections": 0}, {"confidence_threshold": 1.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` is"):
            TopDetections(**arguments)


def test_top_detections():
    """One query may stand for two classes; nothing is suppressed."""
    boxes = np.array([[[0, 0, 2, 2], [1, 1, 3, 3]]], "float32")
    scores = np.array([[[0.9, 0.8], [0.1, 0.7]]], "float32")
    found = TopDetections(3)(ops.convert_to_tensor(boxes), ops.convert_to_tensor(scores))
    np.testing.assert_array_equal(numpy(found["labels"]), [[0, 1, 1]])
    np.testing.assert_array_equal(numpy(found["boxes"])[0, :, 0], [0, 0, 1])
    decoder = TopDetections.from_config(TopDetections(6, 0.75).get_config())
    found = decoder(ops.convert_to_tensor(boxes), ops.convert_to_tensor(scores))
    np.testing.assert_array_equal(numpy(found["labels"]), [[0, 1, -1, -1, -1, -1]])
    assert (numpy(found["boxes"])[0, 2:] == -1).all() and numpy(found["num_detections"]) == [2]
