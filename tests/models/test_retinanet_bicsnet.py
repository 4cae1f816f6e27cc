"""RetinaNet on BiCSNet as its paper has it: no FPN, heads with a batch norm of each level."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_densepred import BiCSNetBackbone, BiCSNetLiteBackbone
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from keras_densepred.models import PredictionHead, RetinaNetKerasHub
from tests.networks import images, mini_bicsnet, trainable_parameters

# expected.json: ret.
COUNTS = {
    ("bicsnet_48s", 640): (13_594_983, 33_498_172_800, 81_654_400),
    ("bicsnet_lite0", 256): (1_104_107, 170_347_332, 6_450_232),
    ("bicsnet_lite1", 384): (1_296_625, 507_905_376, 16_449_048),
    ("bicsnet_lite2", 384): (2_985_496, 1_010_607_312, 25_575_120),
    ("bicsnet_lite3", 512): (3_680_898, 2_499_293_752, 50_498_528),
}
LARGE_COUNTS = {
    ("bicsnet_48", 640): (28_924_220, 84_585_892_675, 115_251_400),
    ("bicsnet_48l", 896): (28_924_220, 165_788_349_643, 225_892_744),
    ("bicsnet_94", 1024): (47_721_628, 281_317_227_776, 428_648_448),
    ("bicsnet_140", 1280): (63_956_759, 507_687_603_200, 831_718_400),
}
TARGETS = {
    "boxes": np.array([[[2, 2, 40, 50]], [[14, 6, 61, 40]]], "float32"),
    "labels": np.array([[0], [1]], "int32"),
}
MAPS = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "preset,size",
    [*COUNTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE_COUNTS)],
)
def test_exact_counts(preset, size):
    lite = "lite" in preset
    cls = BiCSNetLiteBackbone if lite else BiCSNetBackbone
    backbone = cls.from_preset(preset, image_shape=(size, size, 3))
    model = RetinaNetKerasHub(backbone, 91, head_norm=True, head_separable=lite)
    parameters, multiply_adds, normalised = {**COUNTS, **LARGE_COUNTS}[preset, size]
    assert trainable_parameters(model) == parameters
    assert count_multiply_adds(model) == multiply_adds
    assert count_multiply_adds(model, norms=True) == multiply_adds + normalised


def detector(member):
    return RetinaNetKerasHub(
        mini_bicsnet(member),
        num_classes=2,
        head_depth=1,
        head_norm=True,
        head_activation="swish",
        head_separable=member == "lite",
        anchor_scale=3.0,
    )


@pytest.mark.slow
def test_round_trip_keeps_the_heads_form_and_weights(tmp_path):
    model = detector("lite")
    model.compile()
    for norm in model.box_head.norms:
        norm.moving_mean.assign(np.random.default_rng(1).normal(size=norm.moving_mean.shape))
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for copy in (
        keras.models.load_model(tmp_path / "model.keras"),
        RetinaNetKerasHub.from_preset(str(tmp_path / "preset")),
    ):
        assert copy.get_config() == model.get_config()
        assert len(copy.weights) == len(model.weights)
        for ours, theirs in zip(model.get_weights(), copy.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow_on("tensorflow")
# JAX compiles such a step for half a minute; `make test-slow` runs it there, and the stock host.
@pytest.mark.parametrize(
    "host",
    [
        pytest.param("ours", marks=[pytest.mark.slow] if keras.config.backend() == "jax" else []),
        pytest.param("keras_hub", marks=pytest.mark.slow),
    ],
)
def test_trains_and_predicts_images_of_an_odd_size(host):
    if host == "ours":
        model = detector("full")
    else:
        model = keras_hub.models.RetinaNetObjectDetector(
            mini_bicsnet("lite", output_width=256),  # the host's heads want it
            num_classes=2,
            bounding_box_format="xyxy",
            pre_logits_num_conv_layers=0,
        )
    model.compile(keras.optimizers.SGD(1e-4), jit_compile=False)
    batch = images(64, 96, batch=2) if host == "keras_hub" else images(67, 93, batch=2)
    history = model.fit(batch, TARGETS, batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.predict(batch, batch_size=2, verbose=0)["boxes"].shape == (2, 100, 4)


def test_head_normalises_each_level_by_its_own_statistics():
    head = PredictionHead(6, width=4, depth=2, norm_levels=("P3", "P4"), activation="swish")
    head.build(MAPS.shape)
    assert len(head.norms) == 4
    before = ops.convert_to_numpy(head(MAPS, level="P4"))
    head.norms[0].beta.assign(np.ones(4))  # the first convolution's at P3
    np.testing.assert_array_equal(ops.convert_to_numpy(head(MAPS, level="P4")), before)
    assert np.abs(ops.convert_to_numpy(head(MAPS, level="P3")) - before).max() > 1e-4


@pytest.mark.parametrize("separable", [False, True])
def test_head_counts_itself(separable):
    head = PredictionHead(6, width=4, depth=1, norm_levels=("P3",), separable=separable)
    head.build((None, 3, 4, 5))
    per_position = (9 * 5 + 5 * 4 + 9 * 4 + 4 * 6) if separable else (9 * 5 * 4 + 9 * 4 * 6)
    assert head.multiply_adds((3, 4, 6)) == 12 * per_position
    assert head.multiply_adds((3, 4, 6), norms=True) == 12 * (per_position + 4)
    copy = PredictionHead.from_config(head.get_config())
    assert copy.get_config() == head.get_config()
