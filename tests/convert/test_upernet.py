"""The authors' segmenters in ours: every key, the heads' outputs and losses, the whole T model."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred import CEDNetBackbone, models
from keras_densepred.convert import cednet, upernet
from keras_densepred.convert.state import read_checkpoint
from tests.convert.authors_state import key_list, make_images, make_state

BODY = "backbone."
T_WIDTHS = dict(p2_width=96, widths=(192, 352, 512))
PARAMETERS = {
    "upernet_cednet_next_tiny": 60_976_812,
    "upernet_cednet_next_small": 83_325_484,
    "upernet_cednet_next_base": 122_896_684,
    "cedhead_next_tiny": 60_339_468,
}


def state_of(keys):
    """Bodies have the values of bodies alone, whose keys have no prefix."""
    state = make_state([(key.removeprefix(BODY), shape) for key, shape in keys])
    return {key: state[key.removeprefix(BODY)] for key, _ in keys}


def build(list_name, **options):
    head = "ced" if list_name.startswith("cedhead") else "uper"
    preset = f"cednet_next_{list_name.rsplit('_', 1)[1]}"
    backbone = CEDNetBackbone.from_preset(preset, final_decoder=head == "ced")
    return models.UperNet(backbone, 150, head=head, **options)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("tiny") else pytest.mark.slow)
        for name in PARAMETERS
    ],
)
def test_every_list_of_keys_loads_and_the_parameters_are_counted(name, golden):
    keys = key_list(golden / "upernet" / "keys" / f"{name}.json")
    # Values do not matter here: arrays that take no memory.
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys}
    model = build(name)
    count = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert count == PARAMETERS[name]
    report = cednet.load_state(model, state)
    wanted = {key for key, _ in keys if not key.endswith("num_batches_tracked")}
    assert set(report.loaded) == wanted and not report.skipped
    assert all(not np.any(ops.convert_to_numpy(w)) for w in model.trainable_weights)


def small(**options):
    """Heads of T's widths on a body of few blocks."""
    backbone = CEDNetBackbone(**T_WIDTHS, p2_depth=1, depths=(1, 1, 1), num_stages=2)
    return models.UperNet(backbone, 150, dropout=0.0, **options)


@pytest.mark.slow_on("jax")
def test_heads_equal_the_authors(golden):
    with np.load(golden / "upernet" / "upernet_heads.npz") as file:
        expected = dict(file)
    model = small()
    keys = upernet.authors_keys_of_heads(model)
    state = make_state([(key, tuple(shape)) for key, shape in json.loads(str(expected["keys"]))])
    for key, weight in keys.items():
        value = state[key]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        weight.assign(value.reshape(weight.shape))

    first = ("lateral_p2_conv", "lateral_p3_conv", "lateral_p4_conv", "pool1")
    levels = [model.get_layer(name).input for name in first]
    maps = [
        make_images(f"upernet_heads:{name}", (2, *shape, channels))
        for name, shape, channels in zip(
            ("c2", "c3", "c4", "c5", "aux"),
            expected["shapes"].tolist(),
            (96, 192, 352, 512, 192),
            strict=True,
        )
    ]
    head = keras.Model(
        levels, [model.get_layer(name).output for name in ("logits", "pool6_resize")]
    )
    # As arrays: what is computed of them needs no gradient.
    logits, pooled = (ops.convert_to_numpy(x) for x in head(maps[:4]))
    beside = ops.convert_to_numpy(model.auxiliary_head(maps[4]))
    for ours, name in ((logits, "logits"), (beside, "aux_logits")):
        np.testing.assert_allclose(ours[..., ::3], expected[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(pooled[..., :16], expected["pooled_s6_first16"], atol=1e-4)

    trained = ops.convert_to_numpy(head(maps[:4], training=True)[0])[:1, ..., ::5]
    np.testing.assert_allclose(trained, expected["logits_batch_statistics_image0"], atol=2e-4)

    labels = expected["labels"].astype("int32")
    model.compile()
    large = [
        ops.image.resize(
            x, labels.shape[1:], "bilinear", antialias=False, data_format="channels_last"
        )
        for x in (logits, beside)
    ]
    loss, beside_loss = (float(model.compute_loss(None, labels, x)) for x in large)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(0.4 * beside_loss, expected["aux_loss"], rtol=1e-5)
    both = float(model.compute_loss(None, labels, tuple(large)))
    np.testing.assert_allclose(both, expected["loss"] + expected["aux_loss"], rtol=1e-5)
    correct = ops.convert_to_numpy(large[0]).argmax(-1) == labels
    accuracy = 100 * correct.sum() / (labels != 255).sum()
    np.testing.assert_allclose(accuracy, expected["accuracy"][0], rtol=1e-5)


@pytest.mark.slow_on("jax", "tensorflow")
def test_the_whole_model_equals_the_authors(golden):
    with np.load(golden / "upernet" / "upernet_next_tiny.npz") as file:
        expected = dict(file)
    model = build("upernet_cednet_next_tiny", dropout=0.0)
    keys = key_list(golden / "upernet" / "keys" / "upernet_cednet_next_tiny.json")
    cednet.load_state(model, state_of(keys))
    images = make_images("upernet_next_tiny:image", (1, 64, 96, 3))
    taps = keras.Function(model.input, [model.get_layer("logits").output, model.output])
    logits, at_image = (ops.convert_to_numpy(x) for x in taps(images))
    inner = keras.Function(model.backbone.inputs, model.backbone.stage_outputs[-2]["P3"])([images])
    beside = ops.convert_to_numpy(model.auxiliary_head(inner))
    np.testing.assert_allclose(logits[..., ::3], expected["logits"], atol=1e-3)
    np.testing.assert_allclose(beside[..., ::3], expected["aux_logits"], atol=1e-3)
    sure = expected["label_margin"] > 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(at_image.argmax(-1)[sure], expected["labels"][sure])


def test_a_checkpoint_is_read_whole(tmp_path):
    import safetensors.numpy

    state = {
        "backbone.stem.0.weight": np.ones((2, 2), np.float32),
        "decode_head.conv_seg.bias": np.zeros(3, np.float32),
    }
    path = tmp_path / "upernet.safetensors"
    safetensors.numpy.save_file(state, path)
    assert list(read_checkpoint(path)) == ["stem.0.weight"]
    assert sorted(read_checkpoint(path, heads=True)) == sorted(state)


@pytest.mark.backend_free
def test_what_does_not_fit_is_named():
    model = models.UperNet(
        CEDNetBackbone(p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1),
        3,
        width=8,
        auxiliary=None,
    )
    keys = upernet.authors_keys_of_heads(model)
    body = {BODY + key: weight for key, weight in cednet.authors_keys(model.backbone).items()}
    with pytest.raises(ValueError, match=r"missing keys backbone\.stem\.0\.weight"):
        cednet.load_state(model, {key: np.zeros(1) for key in keys})
    state = {key: np.zeros(1) for key in keys | body} | {"neck.conv.weight": np.zeros(1)}
    with pytest.raises(ValueError, match=r"unexpected keys neck\.conv\.weight"):
        cednet.load_state(model, state)
    with pytest.raises(ValueError, match=r'CEDHead segmenter.*head="ced"'):
        cednet.load_state(model.backbone, {"last_encoder.encoder.0.0.gamma": np.zeros(1)})
