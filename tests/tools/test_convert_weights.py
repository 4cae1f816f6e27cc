"""`tools/convert_weights.py`: a checkpoint file becomes a preset directory."""

import numpy as np
import pytest
from keras import ops

import keras_densepred
from keras_densepred import (
    CEDNetBackbone,
    CEDNetImageClassifier,
    CSPNetBackbone,
    CSPNetImageClassifier,
    DetectionPyramid,
)
from keras_densepred.convert import darknet, timm
from tests.convert.darknet_file import CLASSES, NETWORK, convolutions, write
from tests.convert.small_states import cednet_state, timm_state
from tools import convert_weights

pytestmark = pytest.mark.backend_free


def pico_state(kind: str):
    backbone = CEDNetBackbone.from_preset("cednet_next_pico", final_decoder=kind == "decoder")
    model = {
        "classifier": lambda: CEDNetImageClassifier(backbone, 4),
        "pyramid": lambda: DetectionPyramid(backbone, 24, 3, 7),
        "two_stage": lambda: DetectionPyramid(backbone, 24, 2, 6),
    }.get(kind, lambda: backbone)()
    return model, {k: v * np.float32(0.02) for k, v in cednet_state(model).items()}


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("kind", ["backbone", "decoder", "classifier", "pyramid", "two_stage"])
def test_checkpoint_to_preset(kind, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    expected, state = pico_state(kind)
    keras_densepred.convert.cednet.load_state(expected, state)
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    arguments = [
        "cednet",
        str(tmp_path / "weights.safetensors"),
        *("--preset", "cednet_next_pico", "--output", str(tmp_path / "preset")),
    ]
    assert convert_weights.main(arguments) == 0
    loaded = type(expected).from_preset(str(tmp_path / "preset"))
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    for ours, reference in zip(_flat(loaded(images)), _flat(expected(images)), strict=True):
        np.testing.assert_array_equal(ours, reference)


def _flat(outputs):
    outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
    return [ops.convert_to_numpy(x) for x in outputs]


def test_faults_are_one_sentence_and_leave_nothing(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    _, state = pico_state("backbone")
    weights = tmp_path / "weights.safetensors"
    safetensors.save_file(state, weights)
    output = ["--output", str(tmp_path / "preset")]
    cases = [
        (["cednet", str(weights), "--preset", "cednet_next_nano"], "Choose the preset"),
        (["cednet", str(weights), "--preset", "nonsense"], "choose one of cednet_next_pico"),
        (["cednet", str(tmp_path / "no.pth"), "--preset", "cednet_next_pico"], "no checkpoint"),
    ]
    for arguments, message in cases:
        assert convert_weights.main([*arguments, *output]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_timms_and_darknets_files_to_presets(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    tiny = NETWORK
    monkeypatch.setattr(
        CSPNetBackbone,
        "from_preset",
        lambda preset, **_: CSPNetBackbone(**tiny, **FLAVOURS[preset]),
    )
    monkeypatch.setattr(timm, "preset_of", lambda state: "csp_resnext_50_timm")
    timms = CSPNetImageClassifier(CSPNetBackbone(**tiny, flavour="timm"), num_classes=CLASSES)
    safetensors.save_file(timm_state(timms), tmp_path / "timms.safetensors")
    timm.load_state(timms, timm_state(timms))
    assert convert_weights.main(["timm", str(tmp_path / "timms.safetensors")]) == 0
    write(tmp_path / "own.weights", convolutions())
    darknets = CSPNetImageClassifier(CSPNetBackbone(**tiny), num_classes=CLASSES)
    darknet.load_weights(darknets, tmp_path / "own.weights")
    arguments = ["darknet", str(tmp_path / "own.weights"), "--preset", "csp_resnext_50"]
    assert convert_weights.main([*arguments, "--classes", str(CLASSES)]) == 0
    monkeypatch.undo()
    for expected, folder in ((timms, "timms"), (darknets, "own")):
        loaded = CSPNetImageClassifier.from_preset(str(tmp_path / folder))
        assert loaded.backbone.flavour == expected.backbone.flavour
        for ours, theirs in zip(loaded.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


FLAVOURS = {"csp_resnext_50_timm": {"flavour": "timm"}, "csp_resnext_50": {}}


def test_darknets_files_need_a_preset(tmp_path, capsys):
    write(tmp_path / "own.weights", convolutions())
    for arguments, message in (
        ([], "need --preset"),
        (["--preset", "yolov3"], "no architecture preset 'yolov3'"),
        (["--preset", "csp_resnet_10"], "bytes after its header"),
    ):
        assert convert_weights.main(["darknet", str(tmp_path / "own.weights"), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["own.weights"]
