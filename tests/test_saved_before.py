"""Files that an earlier version saved: they load as they did, and compute the same.

`tests/golden/saved/README.md` says how they were written.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_densepred
from keras_densepred import backbones, data, models, saved, training
from tests.hosts import keras_cv
from tests.networks import run

ROOT = Path(__file__).parents[1]
SAVED = ROOT / "tests" / "golden" / "saved"
IMAGES = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
VALUES = 500  # about as many of each output are stored
# XLA takes TensorFlow three times as long to compile as these few steps to run without it.
COMPILE = {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}

# Of each file the model's class and, if it was compiled, the optimizer's registered name and steps.
FILES = {
    "cascade_mask_rcnn": ("CascadeMaskRCNN", None, 0),
    "cednet_classifier": ("CEDNetImageClassifier", "keras_densepred>AdamW", 3),
    "deeplab_v3": ("DeepLabV3", "SGD", 3),
    "deeplab_v3_keras_hub": ("DeepLabV3KerasHub", "SGD", 0),
    "deeplab_v3_plus_keras_cv": ("DeepLabV3PlusKerasCV", None, 0),
    "deformable_detr": ("DeformableDETR", None, 0),
    "dense": ("TaskAlignedDetector", None, 0),
    "detection_pyramid": ("DetectionPyramid", None, 0),
    "faster_rcnn": ("FasterRCNN", "SGD", 1),
    "feature_pyramid": ("FeaturePyramid", None, 0),
    "grid_rcnn": ("GridRCNN", None, 0),
    "mask2former": ("Mask2Former", None, 0),
    "mask2former_segmenter": ("Mask2FormerSegmenter", None, 0),
    "reppoints": ("RepPoints", None, 0),
    "retinanet_bifpn": ("RetinaNet", None, 0),
    "retinanet_keras_cv": ("RetinaNetKerasCV", "SGD", 3),
    "retinanet_keras_hub": ("RetinaNetKerasHub", "keras_densepred>AdamW", 1),
    "run/preset/detector": ("RetinaNetKerasHub", "keras_densepred>AdamW", 6),
    "upernet": ("UperNet", None, 0),
    "yolov3": ("YOLOv3Detector", "Adam", 3),
    "yolov3_folded": ("FoldedDetector", None, 0),
    "yolov8_keras_cv": ("YOLOV8KerasCV", "AdamW", 3),
}
# Layers of these have other classes now, which Keras does not find in their files by itself.
BY_NAMES = ("dense",)
KERAS_CV = ("DeepLabV3PlusKerasCV", "RetinaNetKerasCV", "YOLOV8KerasCV")
BACKBONES = {
    "bicsnet_lite_preset": keras_densepred.BiCSNetLiteBackbone,
    "cednet_preset": keras_densepred.CEDNetBackbone,
    "cspnet_preset": keras_densepred.CSPNetBackbone,
    "run/preset": keras_densepred.CEDNetBackbone,
}


def outputs_of(model):
    """What is compared: final detections where all heads are needed for them, else the outputs."""
    if type(model).__name__ in ("FasterRCNN", "CascadeMaskRCNN", "FoldedDetector"):
        outputs = model.predict_on_batch(IMAGES)
    else:
        outputs = run(model, IMAGES)
    if not isinstance(outputs, dict):
        outputs = {"output": outputs}
    for name in [name for name, x in outputs.items() if isinstance(x, (dict, list, tuple))]:
        parts = keras.tree.flatten(outputs.pop(name))
        outputs |= {f"{name}_{number}": part for number, part in enumerate(parts)}
    flat = {name: keras.ops.convert_to_numpy(x).reshape(-1) for name, x in outputs.items()}
    return {name: x[:: max(1, x.size // VALUES)] for name, x in flat.items()}


def expected(name):
    with np.load(SAVED / "outputs.npz") as file:
        return {
            key.removeprefix(f"{name}/"): file[key]
            for key in file
            if key.rpartition("/")[0] == name
        }


def assert_same_outputs(model, name, tolerance=1e-4):
    found, before = outputs_of(model), expected(name)
    assert found.keys() == before.keys()
    for key, value in before.items():
        np.testing.assert_allclose(found[key], value, tolerance, tolerance, err_msg=key)


def batches_from(step):
    """Two of the built-in shapes at a time."""
    shapes = data.ShapesDataset(8, 64)
    while True:
        records = [shapes[(2 * step + row) % len(shapes)] for row in range(2)]
        boxes, labels = np.full((2, 8, 4), -1.0, "float32"), np.full((2, 8), -1, "int32")
        for row, record in enumerate(records):
            boxes[row, : len(record.labels)] = record.boxes
            labels[row, : len(record.labels)] = record.labels
        images = np.stack([record.image for record in records]).astype("float32") / 127.5 - 1
        yield images, {"boxes": boxes, "labels": labels}
        step += 1


def train(checkpoints, directory):
    """Two epochs of two steps; the files have the checkpoint after the third step."""
    model = keras.saving.load_model(SAVED / "run" / "preset" / "detector.keras", compile=False)
    rules = training.layer_decay_rules(model.backbone, 0.95)
    for path, (_, decay) in rules.items():  # as of the saved run, which counted one layer more
        depth = model.backbone.layer_depth(path)
        rules[path] = (1.0 if depth is None else 0.95 ** (5 - depth), decay)
    optimizer = training.AdamW(3e-3, rules=rules, use_ema=True, ema_momentum=0.5)
    # Likewise: its averages kept half from the start on.
    optimizer._update_model_variables_moving_average = optimizer._average
    model.compile(optimizer, classification_loss=models.SigmoidFocalLoss(gamma=1.5), **COMPILE)
    log = training.MetricsLog(directory / "metrics.csv")
    start = training.fit(
        model,
        batches_from,
        epochs=2,
        steps_per_epoch=2,
        checkpoint=training.ResumableCheckpoint(checkpoints, {"run": "saved"}, every_steps=3),
        callbacks=[log],
    )
    return model, log, start


# A first call is compiled for up to a quarter of a minute; on PyTorch every file is cheap.
@pytest.mark.parametrize(
    "name",
    [
        n if n == "yolov3" else pytest.param(n, marks=pytest.mark.slow_on("jax", "tensorflow"))
        for n in FILES
    ],
)
def test_model_files(name):
    class_name, optimizer, steps = FILES[name]
    if class_name in KERAS_CV:
        if not keras_cv:
            pytest.skip("no KerasCV here")
        getattr(models, class_name)  # imported when first asked for, and registered by that
    load = saved.load_model if name in BY_NAMES else keras.saving.load_model
    model = load(SAVED / f"{name}.keras")
    assert type(model).__name__ == class_name
    if optimizer is not None:
        assert model.compiled
        assert keras.saving.get_registered_name(type(model.optimizer)) == optimizer
        assert int(model.optimizer.iterations) == steps
    assert_same_outputs(model, name)


@pytest.mark.backend_free
def test_importing_the_package_registers_all_that_is_in_the_files():
    configs = [path.read_text() for path in SAVED.rglob("*.json")]
    for path in SAVED.rglob("*.keras"):
        with zipfile.ZipFile(path) as archive:
            configs.append(archive.read("config.json").decode())
    names = set(re.findall(r'"registered_name": "(keras_densepred>\w+)"', "".join(configs)))
    # KerasCV's are imported when first asked for; a loss in a compile config is not read.
    names -= {f"keras_densepred>{name}" for name in (*KERAS_CV, "ImageLosses")}
    assert len(names) > 20
    code = (  # without TensorFlow, whose import takes longest
        "import sys; sys.modules['tensorflow'] = None; import keras, keras_densepred\n"
        "missing = set(sys.argv[1:]) - set(keras.saving.get_custom_objects())\n"
        "sys.exit(f'not registered: {missing}' if missing else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *names], check=True, env=environment)


@pytest.mark.parametrize(
    "name",
    [
        # XLA compiles it for ten seconds; that it computes the same there, its own tests prove.
        pytest.param(n, marks=pytest.mark.slow_on("jax") if n == "bicsnet_lite_preset" else ())
        for n in BACKBONES
    ],
)
def test_backbone_presets(name):
    preset = str(SAVED / name)
    backbone = backbones.load_backbone(preset)
    assert type(backbone) is BACKBONES[name]
    assert_same_outputs(backbone, name)


def test_classifier_preset():
    name = "cspnet_classifier_preset"
    model = keras_densepred.CSPNetImageClassifier.from_preset(str(SAVED / name))
    assert_same_outputs(model, name)


@pytest.mark.backend_free
def test_a_runs_preset_says_how_to_use_its_detector():
    preset = SAVED / "run" / "preset"
    preprocessing = training.Preprocessing.read(preset)
    assert (preprocessing.task, preprocessing.image_size) == ("detection", 64)
    assert preprocessing.mean == (123.675, 116.28, 103.53)
    classes = json.loads((preset / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(data.ShapesDataset(1, 64).class_names)


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    shutil.copytree(SAVED / "run" / "checkpoints", tmp_path / "checkpoints")
    model, log, start = train(tmp_path / "checkpoints", tmp_path)
    assert start == training.Position(1, 1)
    losses = [row["loss"] for row in log.rows]
    np.testing.assert_allclose(losses, expected("run/metrics")["loss"], rtol=1e-3)
    assert_same_outputs(model, "run/checkpoints", 5e-3)
