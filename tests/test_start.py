"""How commands start: flags are answered without Keras, and work begins without TensorFlow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_densepred import models, start
from recipes import coco_yolo

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"keras", "keras_hub", "keras_cv", "tensorflow", "torch", "jax", "matplotlib", "grain"}
MODULE = ("-m", "keras_densepred")
SCRIPTS = [
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "recipes").glob("*.py"))),
    *("tools/export.py", "tools/convert_weights.py", "tools/check_dataset.py"),
    "tools/convert_dataset.py",
]
# Recipes and tools by the module, which runs the same files.
BY_NAME = [("train",), ("train", "coco_retinanet"), ("export",), ("convert-weights",)]


def started(*command, **environment):
    """A finished command, and the names of all modules whose import it began."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    timed = re.compile(r"^import time:[^|]*\|[^|]*\| *(\S.*)\n", re.MULTILINE)
    modules = set(timed.findall(done.stderr))
    assert "keras_densepred.start" in modules
    done.stderr = timed.sub("", done.stderr)
    return done, modules


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "command",
    [
        *((*MODULE, *sub) for sub in ((), ("predict",), ("evaluate",), ("check-data",), ("info",))),
        *((*MODULE, *sub) for sub in BY_NAME),
        *((script,) for script in SCRIPTS),
    ],
    ids=" ".join,
)
def test_help_needs_no_framework(command):
    done, modules = started(*command, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("usage:") and "--help" in done.stdout
    assert not FRAMEWORKS & modules


@pytest.mark.backend_free
@pytest.mark.parametrize("script", [*MODULE[1:], *SCRIPTS])
def test_a_mistyped_flag_is_refused_before_frameworks_are_imported(script):
    command = MODULE if script in MODULE else (script,)
    done, modules = started(*command, "--no-such-flag", "1")
    assert done.returncode == 2 and "usage:" in done.stderr
    assert not FRAMEWORKS & modules


@pytest.mark.backend_free
def test_the_installed_program_starts_as_the_module_does(tmp_path):
    program = tmp_path / "keras-densepred"  # as pip writes it
    program.write_text("import sys\nfrom keras_densepred.cli import main\nsys.exit(main())\n")
    done, modules = started(str(program), "info", "--help")
    assert done.returncode == 0 and not FRAMEWORKS & modules


@pytest.mark.backend_free
def test_a_backend_that_there_is_not_is_one_sentence_of_a_recipe():
    done, modules = started("recipes/coco_yolo.py", KERAS_BACKEND="jaxx")
    assert done.returncode == 1 and done.stderr.startswith("error: KERAS_BACKEND is 'jaxx'")
    assert done.stderr.count("\n") == 1 and not FRAMEWORKS & modules


# A command, and then what recipes do that makes Keras ask for TensorFlow.
WORK = """
import sys
sys.argv[0] = "recipes/coco_yolo.py"
from keras_densepred import backbones, cli, data
assert "keras" not in sys.modules
assert cli.main(["info", "cednet_next_pico", "--image-size", "64"]) == 0
import keras
keras.utils.set_random_seed(0)
backbone = backbones.load_backbone("cednet_next_pico", image_shape=(64, 64, 3))
backbone.save(sys.argv[1])
keras.saving.load_model(sys.argv[1])
backbone.save_to_preset(sys.argv[2])
backbones.load_backbone(sys.argv[2])
assert "keras_hub" in sys.modules and "tensorflow" not in sys.modules
assert keras.config.backend() == "jax" or "jax" not in sys.modules
assert not any(type(finder).__name__ == "_Without" for finder in sys.meta_path)
"""


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="TensorFlow is the backend")
def test_a_command_works_without_tensorflow_and_foreign_lines(tmp_path):
    backend = keras.config.backend()
    places = [str(tmp_path / name) for name in ("saved.keras", "preset")]
    done, _ = started("-c", WORK, *places, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and not done.stderr


# A recipe that asks for one thing has all that a program has.
COMPLETE = """
import sys
sys.argv[0] = "recipes/coco_yolo.py"
import keras_densepred
from keras_densepred import RetinaNet, models, training
assert models.RetinaNet is RetinaNet
for module in (keras_densepred, training):
    assert all(name in vars(module) for name in module.__all__)
import keras
print(*keras.saving.get_custom_objects())
"""


@pytest.mark.backend_free
def test_a_command_that_works_has_registered_what_a_program_has():
    done, _ = started("-c", COMPLETE)
    assert done.returncode == 0, done.stderr
    names = {name for name in done.stdout.split() if name.startswith("keras_densepred>")}
    assert len(names) > 70
    assert {
        f"keras_densepred>{name}" for name in ("AdamW", "WarmupCosine", "YOLOv3Detector")
    } <= names


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["-m", "info"], ["python", "-m", "keras_densepred", "info"], True),
        (["-m", "keras_densepred"], ["python", "-m", "mine", "keras_densepred"], False),
        (["/usr/bin/keras-densepred"], [], True),
        (["C:/Scripts/keras-densepred.exe"], [], True),
        ([str(ROOT / "recipes" / "coco_yolo.py")], [], True),
        ([str(ROOT / "tools" / "export.py")], [], True),
        ([str(ROOT / "tools" / "execute_guide.py")], [], False),
        (["/somewhere/recipes/coco_yolo.py"], [], False),
        (["train.py"], [], False),
        (["-c"], [], False),
        ([""], [], False),
        ([], [], False),
    ],
)
def test_what_a_command_is(monkeypatch, argv, original, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert start.is_command() is expected


@pytest.mark.backend_free
def test_names_that_a_recipe_writes_out_are_those_of_the_package():
    heads = {*coco_yolo.HEADS, *coco_yolo.OTHER_HEADS} - {"yolov8", "panet"}
    assert heads == set(models.YOLO_NECKS)
    losses = {field.name: field for field in coco_yolo.dataclasses.fields(coco_yolo.Settings)}[
        "loss"
    ]
    assert losses.metadata["choices"] == tuple(models.YOLO_LOSSES)
