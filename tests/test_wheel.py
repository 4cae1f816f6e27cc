"""A wheel in an empty environment trains, predicts and exports: no clone beside it."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BACKEND = keras.config.backend()
# Nothing that the tests' own interpreter was told of.
BARE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
SHORT = ["--image-size", "64", "--batch-size", "2", "--epochs", "1", "--steps-per-epoch", "2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build.env")  # `build` alone is a folder here
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that has the wheel, this backend and nothing of this repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints-cpu.txt"]
    subprocess.run([*pip, f"{wheel}[{BACKEND},data]"], check=True, env=BARE)
    return python


def run(python, folder, *command):
    done = subprocess.run(
        [python, "-m", "keras_densepred", *map(str, command)],
        cwd=folder,
        env={**BARE, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_and_tools_of_the_clone_are_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for folder in ("recipes", "tools/timing"):
            for path in (ROOT / folder).glob("*.py"):
                name = f"keras_densepred/scripts/{path.relative_to(ROOT).as_posix()}"
                assert archive.read(name) == path.read_bytes()
    assert not [n for n in names if n.startswith(("recipes", "tools", "tests"))]


def test_it_trains_and_predicts(python, tmp_path):
    assert "coco_retinanet" in run(python, tmp_path, "train", "--help")
    flags = [*SHORT, "--preset", "cednet_next_pico", "--width", 8, "--head-depth", 1]
    run(python, tmp_path, "train", "coco_retinanet", *flags, "--output", "run")
    picture = next(iter((tmp_path / "run").glob("predictions.png")))
    run(python, tmp_path, "predict", "run", picture, "--output", "found")
    assert isinstance(json.loads((tmp_path / "found" / "detections.json").read_text()), list)
    for command in ("export", "convert-weights", "model-table", "benchmark"):
        assert "--output" in run(python, tmp_path, command, "--help")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is the backend")
def test_it_does_without_the_tensorflow_that_keras_hub_brings(python, tmp_path):
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-qy", "tensorflow", "tensorflow-text"], check=True
    )
    without = "import sys; sys.modules['tensorflow'] = None; import keras_densepred"
    subprocess.run([python, "-c", without], check=True, cwd=tmp_path, env=BARE)
    assert "parameters" in run(python, tmp_path, "info", "cednet_next_pico")
