"""What devices of JAX exchange: sums, and nothing of each other's images."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="one program for all devices is JAX's"
)
ROOT = pathlib.Path(__file__).resolve().parents[2]
# Recipes whose training steps differ, with the flags that make them differ.
STEPS = [
    ("imagenet_pretrain",),
    ("coco_retinanet",),
    ("coco_retinanet", "--assigner", "atss"),
    ("coco_dense",),
    ("coco_yolo",),
    *(("coco_mask_rcnn", "--detector", name) for name in ("faster", "cascade_mask", "grid")),
    ("coco_reppoints",),
    ("coco_detr",),
    ("coco_detr", "--detector", "mask2former"),
    ("ade20k_upernet",),
    ("voc_deeplab_v3",),
]


def exchanged(*arguments):
    """What `exchange_toy.py` finds on two simulated devices."""
    simulated = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.training.exchange_toy", *arguments]
    printed = subprocess.run(
        command, env=simulated, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(printed.stdout.splitlines()[-1])


@pytest.mark.slow_on("jax")
def test_predictions_exchange_nothing():
    """Each device chooses among its own images' boxes, as one device does for all."""
    found = exchanged("predict")
    assert found["collectives"] == []
    assert found["worst"] < 1e-5


def test_rows_of_images_stay_on_their_device():
    """Gathers, top-k, sampling, suppression and assignment, and their gradients."""
    found = exchanged("rows")
    assert found["collectives"] == ["all-reduce"]  # the loss
    assert found["worst"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("flags", STEPS, ids="-".join)
def test_training_steps_exchange_sums_alone(flags):
    """Of gradients, losses and batch norms; no device gets another one's images or maps."""
    preset = () if flags[0] in ("coco_dense", "coco_yolo") else ("--preset", "cednet_next_pico")
    small = ("--image-size", "64", "--batch-size", "4")
    assert set(exchanged("step", flags[0], *preset, *small, *flags[1:])["collectives"]) == {
        "all-reduce"
    }
