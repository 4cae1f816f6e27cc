"""Runs of recipes killed at random moments end as one that was left alone, bit for bit."""

import os
import subprocess
import sys
import textwrap

import keras
import pytest

from tests.recipes import kills, toy

pytestmark = pytest.mark.slow

# What is killed is the same on every backend; PyTorch starts fastest.
KILLS = 20 if keras.config.backend() == "torch" else 6


def test_detection(tmp_path):
    flags = [*toy.detection(tmp_path / "toy"), *toy.RETINANET, "--val-loss"]
    kills.assert_killed_at_random_continues_exactly(
        "coco_retinanet", flags, tmp_path, KILLS, seed=1
    )


def test_segmentation(tmp_path):
    flags = toy.segmentation(tmp_path / "toy")
    kills.assert_killed_at_random_continues_exactly(
        "voc_deeplab_v3", flags, tmp_path, KILLS, seed=2
    )


def test_classification(tmp_path):
    flags = toy.classification(tmp_path / "toy")
    kills.assert_killed_at_random_continues_exactly(
        "imagenet_pretrain", flags, tmp_path, KILLS, seed=3
    )


def test_a_killed_worker_ends_the_run_in_one_sentence(tmp_path):
    """As the kernel does where memory runs out; the same command goes on."""
    (tmp_path / "deadly.py").write_text(
        textwrap.dedent(
            """
            import multiprocessing
            import os
            import signal

            left = [9]


            def augmentation(image_size, default):
                return [*default, die]


            def die(record, *rest):
                left[0] -= 1
                if not left[0] and multiprocessing.parent_process() and os.path.exists("deadly"):
                    os.kill(os.getpid(), signal.SIGKILL)
                return record
            """
        )
    )
    recipe = str(toy.ROOT / "recipes" / "imagenet_pretrain.py")
    flags = toy.classification(tmp_path / "toy")
    flags += ["--augment", "deadly:augmentation", "--checkpoint-minutes", "1e-6"]

    def run(output, workers):
        return subprocess.run(
            [sys.executable, recipe, *flags, "--output", output, "--workers", workers],
            env={**os.environ, "PYTHONPATH": str(toy.ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    (tmp_path / "deadly").touch()
    killed = run("out", "1")
    assert killed.returncode == 1, killed.stderr
    (said,) = [line for line in killed.stderr.splitlines() if line.startswith("error:")]
    assert "was ended from outside (signal 9)" in said and "--workers" in said
    assert "Traceback" not in killed.stderr
    assert run("out", "0").returncode == run("whole", "0").returncode == 0
    metrics = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("out", "whole")]
    assert metrics[0] == metrics[1]
