"""Tiny data sets and a backbone for the tests of recipes, and a way to kill them.

`python -m tests.recipes.toy RECIPE KILL_AFTER FLAG ...` runs a recipe and SIGKILLs it after so many
batches (0: never).
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
from PIL import Image

from keras_densepred import CEDNetBackbone, training
from keras_densepred.data import ShapesDataset, ShapesSegmentation

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = (
    *("coco_dense", "coco_retinanet", "coco_reppoints", "coco_mask_rcnn", "coco_yolo"),
    "coco_detr",
    *("voc_deeplab_v3", "ade20k_upernet", "imagenet_pretrain"),
)
CLASSES = ("blue", "red")

DENSE = ["--width", "8", "--head-depth", "1"]
RETINANET = ["--width", "8", "--head-depth", "1", "--drop-path", "0.5"]
REPPOINTS = ["--width", "8", "--head-depth", "1"]
DETR = ["--width", "16", "--queries", "8", "--encoder-layers", "1", "--decoder-layers", "2"]
YOLO = ["--head", "efm", "--loss", "mse", "--mosaic"]
# As longer runs do by themselves; elsewhere one more function would be compiled.
VAL_LOSS = ["--val-loss"] if keras.config.backend() == "torch" else []


class Split:
    """A data set of which only the number of images and of objects in one is asked."""

    class_names = ("cat",)

    def __init__(self, images, max_objects=1):
        self.images = images
        self.max_objects = max_objects

    def __len__(self):
        return self.images


def undecided(recipe, settings):
    """Names of settings that complete ones must have, and that these lack."""
    of_all = ("preset", "epochs", "steps", "steps_per_epoch", "schedule", "floor", "warmup_steps")
    names = {*recipe.experiments[settings.experiment].settings, *of_all}
    names |= {"ema", "evaluate_every", "output"}
    return {name for name in names if getattr(settings, name) is None}


def save_backbone(directory):
    """Saves a small CEDNet; returns the directory."""
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    backbone.save_to_preset(str(directory))
    return str(directory)


def detection(directory):
    """Writes 12 + 5 pictures as a COCO tree and a small backbone; returns a recipe's flags."""
    root = pathlib.Path(directory)
    for count, split in ((12, "train"), (5, "val")):
        ShapesDataset(count, 64, 0, split).write_coco(root / "data")
    flags = "--image-size 64 --batch-size 4 --epochs 2 --steps-per-epoch 3 --evaluate-every 1"
    return [
        *flags.split(),
        *VAL_LOSS,
        *("--data-dir", str(root / "data"), "--weights", save_backbone(root / "backbone")),
    ]


def segmentation(directory):
    """Writes 6 + 5 pictures in VOC's layout and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    voc = root / "data"
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    for split, count in (("train", 6), ("val", 5)):
        names = [f"{split}{index}" for index in range(count)]
        for name, record in zip(names, ShapesSegmentation(count, (48, 64), 0, split), strict=True):
            Image.fromarray(record.image).save(voc / "JPEGImages" / f"{name}.png")
            Image.fromarray(record.semantic).save(voc / "SegmentationClass" / f"{name}.png")
        (lists / f"{split}.txt").write_text("\n".join(names))
    (voc / "classes.txt").write_text("\n".join(ShapesSegmentation.class_names))
    save_backbone(root / "weights" / "backbone")
    flags = "--image-size 64 --batch-size 4 --steps 6 --steps-per-epoch 3 --width 8"
    return [
        *flags.split(),
        *VAL_LOSS,
        *("--drop-path", "0.5", "--evaluate-every", "1", "--photometric"),
        *("--data-dir", str(voc), "--weights", str(root / "weights")),
    ]


def classification(directory):
    """Writes 10 + 5 pictures in class folders and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for index in range(count):
            label = index % 2
            folder = root / "data" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 120, (40, 48, 3)).astype(np.uint8)
            picture[..., 0 if label else 2] += 100
            Image.fromarray(picture).save(folder / f"{index}.png")
    flags = "--image-size 32 --batch-size 4 --epochs 2 --steps-per-epoch 3 --evaluate-every 1"
    return [
        *flags.split(),
        *("--mixup", "0.8", "--erasing", "0.25", "--rand-augment", "--drop-path", "0.5"),
        *("--data-dir", str(root / "data"), "--preset", save_backbone(root / "backbone")),
    ]


REPORTS = {"evaluation.json", "per_class.csv", "precision_recall.png", "confusion.png", "worst.png"}
"""What is written about a detector at the end of a run."""


def kill_after(batches):
    """Makes the progress of recipes kill the process after so many batches."""

    class KillingProgress(training.Progress):
        left = batches

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    importlib.import_module("keras_densepred.training.loop.in_output").Progress = KillingProgress


def run(recipe, kill_after, flags):
    """Runs a recipe in a process of its own; returns its exit status."""
    command = [sys.executable, "-m", "tests.recipes.toy", recipe, str(kill_after)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *flags], env=environment, cwd=ROOT).returncode


def assert_killed_recipe_continues_exactly(recipe, flags, directory, kill=4, files=()):
    """A run killed in its second epoch, and started again, ends as one that was left alone."""
    whole, broken = directory / "whole", directory / "broken"
    flags = [*flags, "--checkpoint-minutes", "1e-6"]  # after every step
    assert run(recipe, 0, [*flags, "--output", str(whole)]) == 0
    assert run(recipe, kill, [*flags, "--output", str(broken)]) == -signal.SIGKILL
    assert not (broken / "preset").exists()
    assert run(recipe, 0, [*flags, "--output", str(broken)]) == 0
    for name in ("metrics.csv", *files):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
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
    kill_after(int(sys.argv[2]))
    importlib.import_module(f"recipes.{sys.argv[1]}").main(sys.argv[3:])
