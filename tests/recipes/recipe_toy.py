"""A tiny data set and backbone for the tests of detection recipes, and a way to kill them.

`python recipe_toy.py RECIPE KILL_AFTER FLAG ...` runs a recipe and SIGKILLs it after so many
batches (0: never).
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

from keras_densepred import CEDNetBackbone, training
from keras_densepred.data import ShapesDataset

ROOT = pathlib.Path(__file__).parents[2]


class Split:
    """A data set of which only the number of images is asked."""

    class_names = ("cat",)

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return self.images


def make(directory):
    """Writes 12 + 5 pictures as a COCO tree and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    for count, split in ((12, "train"), (5, "val")):
        ShapesDataset(count, 64, 0, split).write_coco(root / "data")
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    backbone.save_to_preset(str(root / "backbone"))
    flags = "--image-size 64 --batch-size 4 --epochs 2 --steps-per-epoch 3 --evaluate-every 1"
    return [
        *flags.split(),
        *("--data-dir", str(root / "data"), "--weights", str(root / "backbone")),
    ]


RETINANET = ["--width", "8", "--head-depth", "1", "--drop-path", "0.5"]
YOLO = ["--head", "efm", "--loss", "mse", "--mosaic"]


def kill_after(recipe, batches):
    """Makes the recipe's progress kill the process after so many batches."""

    class KillingProgress(training.Progress):
        left = batches

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    recipe.training.Progress = recipe.training.detection.Progress = KillingProgress


def run(recipe, kill_after, flags):
    """Runs a recipe in a process of its own; returns its exit status."""
    command = [sys.executable, "-m", "tests.recipes.recipe_toy", recipe, str(kill_after)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *flags], env=environment, cwd=ROOT).returncode


def assert_killed_recipe_continues_exactly(recipe, flags, directory):
    """A run killed in its second epoch, and started again, ends as one that was left alone."""
    whole, broken = directory / "whole", directory / "broken"
    flags = [*flags, "--checkpoint-minutes", "1e-6"]
    assert run(recipe, 0, [*flags, "--output", str(whole)]) == 0
    assert run(recipe, 4, [*flags, "--output", str(broken)]) == -signal.SIGKILL
    assert not (broken / "preset").exists()
    assert run(recipe, 0, [*flags, "--output", str(broken)]) == 0
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    settings = [json.loads((output / "settings.json").read_text()) for output in (whole, broken)]
    assert settings[0] == settings[1]
    states = []
    for output in (whole, broken):
        with np.load(output / "checkpoints" / "step-00000006" / "state.npz") as file:
            states.append({name: file[name] for name in file if name != "state"})
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


if __name__ == "__main__":
    recipe = importlib.import_module(f"recipes.{sys.argv[1]}")
    kill_after(recipe, int(sys.argv[2]))
    recipe.main(sys.argv[3:])
