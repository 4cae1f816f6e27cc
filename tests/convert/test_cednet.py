"""The authors' weights in our models give the authors' outputs."""

import json
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, CEDNetImageClassifier, DetectionPyramid
from keras_densepred.convert.cednet import authors_keys, load_state, read_checkpoint
from tests.convert.authors_state import key_list, make_images, make_state
from tests.convert.small_states import cednet_state

PRESETS = {
    "next_tiny": "cednet_next_tiny",
    "next_small": "cednet_next_small",
    "next_base": "cednet_next_base",
    "next_tiny_fpn": "cednet_next_tiny_fpn",
    "next_tiny_unet": "cednet_next_tiny_unet",
    "next_tiny_hourglass": "cednet_next_tiny_hourglass",
    "swin_tiny": "cednet_swin_tiny",
    "cswin_tiny": "cednet_cswin_tiny",
    "res50": "cednet_resnet50",
}
TINY = dict(
    p2_width=32, p2_depth=1, widths=(32, 64, 96), depths=(1, 1, 1), num_stages=2, stem_width=8
)


def build(list_name: str):
    """The model that a list of the authors' keys belongs to, with random weights."""
    kind, _, variant = list_name.partition("_")
    if kind not in ("det", "seg"):
        kind, variant = "cls", list_name
    options = {"min_level": 3, "max_level": 7}
    for prefix, changes in {
        "twostage_": {"min_level": 2, "max_level": 6},
        "ddetr_": {"max_level": 6},
        "mask2former_": None,
        "lastdec_": {},
    }.items():
        if variant.startswith(prefix):
            options = None if changes is None else {**options, **changes}
            variant = variant.removeprefix(prefix)
    # The released configurations have no final decoder, whatever the style.
    backbone = CEDNetBackbone.from_preset(
        PRESETS[variant], final_decoder="lastdec" in list_name, drop_path_rate=0.0
    )
    if kind == "cls":
        return CEDNetImageClassifier(backbone, num_classes=1000)
    if kind == "seg" or options is None:
        return backbone
    return DetectionPyramid(backbone, **options)


def assert_close(ours, authors, name):
    ours = keras.ops.convert_to_numpy(ours)
    if ours.ndim == 4:
        ours = ours.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, authors, atol=5e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("next_tiny_unet", marks=pytest.mark.slow_on("jax")),
        "seg_next_tiny",
        pytest.param("next_tiny_large", marks=pytest.mark.slow),  # the same on larger images
        *(
            pytest.param(name, marks=pytest.mark.slow_on("jax", "tensorflow"))
            for name in (
                *("next_tiny", "next_tiny_hourglass", "res50"),
                *("det_next_tiny", "det_swin_tiny", "det_lastdec_next_tiny"),
            )
        ),
    ],
)
def test_outputs_equal_the_authors(name, golden):
    with np.load(golden / "cednet" / f"{name}.npz") as file:
        expected = dict(file)
    list_name = name.removesuffix("_large")
    model = build(list_name)
    load_state(model, make_state(key_list(golden / "cednet" / "keys" / f"{list_name}.json")))
    if "input" in expected:
        images = expected.pop("input")
    else:
        images = make_images(name, expected.pop("input_shape"))
        assert zlib.crc32(images.tobytes()) == expected.pop("input_crc32")

    if isinstance(model, DetectionPyramid):
        taps = {f"out{i}": x for i, x in enumerate(model.pyramid_outputs.values())}
    else:
        backbone = getattr(model, "backbone", model)
        taps = {
            f"stage{stage + 1}_c{level[1]}": x
            for stage, maps in enumerate(backbone.stage_outputs)
            for level, x in maps.items()
        }
        taps["stem"] = backbone.get_layer("stem_act2").output
        taps["c2"] = backbone.pyramid_outputs["P2"]
        taps["c3_in"] = backbone.get_layer("p2_downsample_norm").output
        if name.startswith("seg_"):
            # The segmentation code hands on c2..c5, then the C3 of the earlier stages.
            order = ("c2", "stage3_c3", "stage3_c4", "stage3_c5", "stage2_c3", "stage1_c3")
            taps = {f"out{i}": taps[tap] for i, tap in enumerate(order)}
        else:
            taps |= {f"logits_head{i + 1}": x for i, x in enumerate(model.outputs)}
            taps["logits"] = model.outputs[-1]
    assert set(expected) <= set(taps)
    outputs = keras.Function(model.inputs, {tap: taps[tap] for tap in expected})(
        [images.transpose(0, 2, 3, 1)]
    )
    for tap, array in expected.items():
        assert_close(outputs[tap], array, f"{name} {tap}")


QUICK_LISTS = ("next_tiny", "det_next_tiny_unet", "det_swin_tiny", "seg_cedhead_next_tiny", "res50")
EVERY_LIST = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK_LISTS else pytest.mark.slow)
    for path in sorted((Path(__file__).parents[1] / "golden" / "cednet" / "keys").glob("*.json"))
]


@pytest.mark.backend_free
def test_all_lists_of_keys_are_here():
    assert len(EVERY_LIST) == 33


@pytest.mark.backend_free
@pytest.mark.parametrize("path", EVERY_LIST)
def test_every_list_of_keys_loads_or_is_refused_with_the_reason(path):
    # Values do not matter here: arrays that take no memory.
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in key_list(path)}
    if path.stem.startswith("seg_cedhead"):
        with pytest.raises(ValueError, match="CEDHead segmenter"):
            load_state(build("seg_next_tiny"), state)
        return
    model = build(path.stem)
    report = load_state(model, state)
    buffers = ("relative_position_index", "num_batches_tracked")
    assert set(report.loaded) == {key for key in state if not key.endswith(buffers)}
    assert report.skipped == ()
    trained = [w for w in model.weights if "seed_generator" not in w.path]
    assert len(report.loaded) == len(trained)


@pytest.mark.backend_free
def test_classification_weights_go_into_a_backbone_and_say_what_was_left():
    backbone = CEDNetBackbone(**TINY)
    state = cednet_state(CEDNetImageClassifier(CEDNetBackbone(**TINY), 3))
    report = load_state(backbone, state)
    assert {key.split(".")[0] for key in report.skipped} == {"final_layers", "norms", "heads"}
    assert all(np.all(w == 0.5) for w in backbone.get_weights())


@pytest.mark.backend_free
def test_missing_unexpected_and_misshapen_keys_are_named_and_nothing_is_assigned():
    backbone = CEDNetBackbone(**TINY)
    before = backbone.get_weights()
    state = cednet_state(backbone)
    renamed = {("stem.7.weight" if k == "stem.0.weight" else k): v for k, v in state.items()}
    with pytest.raises(ValueError, match=r"missing keys stem.0.weight.*keys stem.7.weight"):
        load_state(backbone, renamed)
    with pytest.raises(ValueError, match=r"'stages.2.0.encoder.2.0.gamma' has the shape \(5,\)"):
        load_state(backbone, state | {"stages.2.0.encoder.2.0.gamma": np.zeros(5, np.float32)})
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.get_weights(), strict=True))


@pytest.mark.backend_free
def test_a_square_linear_layer_is_transposed():
    backbone = CEDNetBackbone(**{**TINY, "token_mixer": "swin"})
    state = {}
    for key, weight in authors_keys(backbone).items():
        shape = tuple(weight.shape)
        value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        if weight.name == "kernel":
            value = (
                value.transpose(*range(2, len(shape)), 1, 0)
                if len(shape) == 2
                else (
                    value.transpose(2, 3, 0, 1) if shape[-1] == 1 else value.transpose(3, 2, 0, 1)
                )
            )
        state[key] = value
    load_state(backbone, state)
    for weight in authors_keys(backbone).values():
        values = keras.ops.convert_to_numpy(weight).ravel()
        assert np.array_equal(values, np.arange(values.size)), weight.path


@pytest.mark.backend_free
@pytest.mark.parametrize("wrapper", ["plain", "model", "ema", "mmdet", "ddp"])
def test_checkpoints_are_unwrapped(wrapper, tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    state = {"stem.0.weight": torch.ones(2, 3), "stem.0.bias": torch.zeros(2)}
    other = {key: value + 7 for key, value in state.items()}
    content = {
        "plain": state,
        "model": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "ema": {"model": other, "model_ema": state},
        "mmdet": {
            "meta": {"epoch": 1},
            "state_dict": {
                **{f"backbone.{key}": value for key, value in state.items()},
                "bbox_head.weight": torch.ones(1),
            },
        },
        "ddp": {"model": {f"module.{key}": value for key, value in state.items()}},
    }[wrapper]
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    read = read_checkpoint(path, ema=wrapper == "ema")
    assert set(read) == set(state)
    assert np.array_equal(read["stem.0.weight"], np.ones((2, 3)))


@pytest.mark.backend_free
def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file({"stem.0.bias": np.arange(3, dtype=np.float32)}, path)
    assert np.array_equal(read_checkpoint(path)["stem.0.bias"], [0, 1, 2])


@pytest.mark.backend_free
def test_checkpoints_that_would_run_code_or_are_none_are_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Arbitrary:
        def __reduce__(self):
            return (print, ("code of the file ran",))

    path = tmp_path / "evil.pth"
    torch.save({"model": Arbitrary()}, path)
    with pytest.raises(ValueError, match=r"evil.pth cannot be read as weights alone"):
        read_checkpoint(path)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pth cannot be read"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save({"model": {}}, tmp_path / "cut.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "cut.pth").read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut.pth cannot be read as weights alone \(\w+"):
            read_checkpoint(tmp_path / "cut.pth")
    (tmp_path / "text.safetensors").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"text.safetensors is not a readable"):
        read_checkpoint(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="no averaged weights"):
        torch.save({"model": {}}, tmp_path / "plain.pth")
        read_checkpoint(tmp_path / "plain.pth", ema=True)
    with pytest.raises(ValueError, match="There is no checkpoint file"):
        read_checkpoint(tmp_path / "none.pth")
