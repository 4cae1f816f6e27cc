"""UperNet: its auxiliary head, its loss, its initial values, and what it refuses."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetBackbone, ConvNeXtBackbone, models
from keras_densepred.models.segmenter import IgnoreCrossentropy
from tests.contracts.families import OwnBackbone

TINY = dict(
    p2_width=8, p2_depth=1, widths=(8, 12, 16), depths=(1, 1, 1), num_stages=3, stem_width=8
)
HEAD = dict(width=8, pool_sizes=(2, 3), auxiliary_width=8)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("float32")
MASKS = np.random.default_rng(1).integers(0, 3, (2, 32, 64)).astype("int32")
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}


def cednet(**changes):
    # A layer scale of 1: one step changes every weight.
    return CEDNetBackbone(**{**TINY, "layer_scale_init": 1.0, **changes})


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "backbone, options, source",
    [
        (cednet, {}, "stage2"),
        (lambda: cednet(num_stages=4), {}, "stage3"),
        (lambda: cednet(num_stages=1), {}, "P4"),
        (lambda: ConvNeXtBackbone((1, 1, 1, 1), (8, 8, 8, 8)), {}, "P4"),
        (lambda: cednet(final_decoder=True), {"head": "ced"}, "P3"),
        (cednet, {"auxiliary": "stage1"}, "stage1"),
        (cednet, {"auxiliary": "P5"}, "P5"),
        (cednet, {"auxiliary": None}, None),
    ],
)
def test_what_the_auxiliary_head_reads(backbone, options, source):
    model = models.UperNet(backbone(), 3, **HEAD, **options)
    assert model.auxiliary == source and model.get_config()["auxiliary"] == source
    outputs = model.compute_output_spec(keras.KerasTensor((2, 32, 64, 3)), training=True)
    assert [x.shape for x in keras.tree.flatten(outputs)] == [(2, 32, 64, 3)] * (
        1 if source is None else 2
    )
    in_graph = [layer.name for layer in model.layers]
    assert not any(name.startswith("auxiliary") for name in in_graph), "training only"


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("head", models.UPERNET_HEADS)
def test_trains_both_heads_of_a_cascade_and_comes_back(head, tmp_path):
    model = models.UperNet(cednet(final_decoder=head == "ced"), 3, head=head, **HEAD)
    model.compile(keras.optimizers.SGD(0.05), **COMPILE)
    before = model.get_weights()
    model.train_on_batch(IMAGES, MASKS)
    unchanged = [
        weight.path
        for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True)
        if not np.any(old != new)
    ]
    assert not unchanged
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-5
    )
    losses = [m.test_on_batch(IMAGES, MASKS) for m in (model, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for ours, theirs in zip(
        model.auxiliary_head.weights, loaded.auxiliary_head.weights, strict=True
    ):
        np.testing.assert_array_equal(*(ops.convert_to_numpy(w) for w in (ours, theirs)))


def test_metrics_are_of_the_logits_that_predict():
    model = models.UperNet(OwnBackbone(), 3, **HEAD)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(keras.optimizers.SGD(0.0), metrics=[accuracy], **COMPILE)
    # Keras passes masks to the metric, whose `ignore_class` is not ours: all pixels have a class.
    results = model.train_on_batch(IMAGES, MASKS, return_dict=True)
    assert 0 < results["accuracy"] < 1


def test_the_auxiliary_loss_counts_as_much_as_it_is_told():
    model = models.UperNet(OwnBackbone(), 3, auxiliary_weight=0.25, **HEAD)
    model.compile()
    random = np.random.default_rng(2)
    both = tuple(
        ops.convert_to_tensor(random.normal(size=(2, 32, 64, 3)).astype("float32"))
        for _ in range(2)
    )
    main, beside, total = (
        float(ops.convert_to_numpy(model.compute_loss(IMAGES, MASKS, x))) for x in (*both, both)
    )
    assert total == pytest.approx(main + 0.25 * beside, rel=1e-5)


def test_ignored_pixels_count_in_the_mean_where_all_do():
    logits = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype("float32")
    masks = np.zeros((1, 4, 5), "int32")
    masks[:, :1] = 255
    of_all = IgnoreCrossentropy(average="all")
    value = float(ops.convert_to_numpy(of_all(masks, logits)))
    logarithms = np.log(np.exp(logits).sum(-1)) - logits[..., 0]
    assert value == pytest.approx(logarithms[:, 1:].sum() / 20, rel=1e-5)
    labelled = float(ops.convert_to_numpy(IgnoreCrossentropy()(masks, logits)))
    assert labelled == pytest.approx(value * 20 / 15, rel=1e-5)
    copy = IgnoreCrossentropy.from_config(of_all.get_config())
    assert copy.average == "all"
    with pytest.raises(ValueError, match="`average` must be"):
        IgnoreCrossentropy(average="some")


@pytest.mark.backend_free
def test_defaults_of_compile_are_the_papers():
    model = models.UperNet(OwnBackbone(), 3, **HEAD)
    model.compile()
    assert isinstance(model.optimizer, keras.optimizers.AdamW)
    assert model.loss.average == "all"


@pytest.mark.backend_free
def test_layers_start_as_the_authors():
    model = models.UperNet(OwnBackbone(), 150, width=64, pool_sizes=(1, 2))
    kernel = ops.convert_to_numpy(model.get_layer("fpn_p2_conv").kernel)
    assert kernel.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    logits = ops.convert_to_numpy(model.get_layer("logits").kernel)
    assert logits.std() == pytest.approx(0.01, rel=0.05)
    norm = model.get_layer("fpn_p2_norm")
    assert norm.momentum == 0.9 and norm.epsilon == 1e-5


@pytest.mark.backend_free
def test_batch_norms_are_synchronised_as_told():
    from keras_densepred.layers.norm import BatchNorm

    for options, expected in (
        ({}, False),
        ({"sync_batch_norm": True}, True),
    ):
        model = models.UperNet(OwnBackbone(), 3, **HEAD, **options)
        for owner, name in ((model, "merge_norm"), (model.auxiliary_head, "auxiliary_norm")):
            assert isinstance(owner.get_layer(name), BatchNorm) is expected
    model = models.UperNet(cednet(token_mixer="resnet", sync_batch_norm=True), 3, **HEAD)
    assert isinstance(model.get_layer("merge_norm"), BatchNorm)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "`width` is 0"),
        ({"auxiliary_width": 0}, "`auxiliary_width` is 0"),
        ({"pool_sizes": ()}, r"`pool_sizes` are \(\)"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"head": "psp"}, "`head` must be one of"),
        ({"head": "ced"}, "`final_decoder=True`"),
        ({"auxiliary": "stage3"}, "has P2, P3, P4, P5: give one of these"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.UperNet(OwnBackbone(), 3, **{**HEAD, **options})
