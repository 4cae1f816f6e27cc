"""Which path JAX takes follows the platform that is compiled for."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_densepred.ops.depthwise import depthwise_conv
from keras_densepred.ops.pooling import max_pool2d
from keras_densepred.runtime.devices import jax_compiles_for, jax_runs_on_cpu

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="about JAX")

MAPS = np.zeros((1, 8, 8, 4), "float32")
KERNEL = np.zeros((7, 7, 4, 1), "float32")


def operations(function, *arguments):
    return function.lower(*arguments).as_text()


def test_what_is_traced_for_another_platform_is_traced_anew():
    import jax

    depthwise = jax.jit(
        lambda maps, kernel: depthwise_conv(
            maps, kernel, padding="same", data_format="channels_last"
        )
    )
    assert "stablehlo.convolution" not in operations(depthwise, MAPS, KERNEL)
    with jax_compiles_for("tpu"):
        assert not jax_runs_on_cpu()
        assert "stablehlo.convolution" in operations(depthwise, MAPS, KERNEL)
    assert jax_runs_on_cpu()
    assert "stablehlo.convolution" not in operations(depthwise, MAPS, KERNEL)


def test_pooling_follows_too():
    import jax

    pool = jax.jit(lambda maps: max_pool2d(maps, pool_size=2, strides=2))
    assert "reduce_window" not in operations(pool, MAPS)
    with jax_compiles_for("gpu"):
        assert "reduce_window" in operations(pool, MAPS)


def test_a_device_that_was_chosen_counts(monkeypatch):
    """A machine with a GPU that computes on its CPU takes the CPU's paths."""
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not jax_runs_on_cpu()
    with keras.device("cpu:0"):
        assert jax_runs_on_cpu()
    with jax.default_device("cpu"):
        assert jax_runs_on_cpu()


def test_asking_changes_no_key_of_the_caches():
    """It did in a process that asked for the first time: each training step was compiled twice."""
    # As a recipe, which imports no networks for this.
    script = """
import sys
import jax
sys.argv[0] = "recipes/coco_yolo.py"
from keras_densepred.runtime.devices import jax_runs_on_cpu

def traced(x):
    print("traced")
    return x + jax_runs_on_cpu()

step = jax.jit(traced)
step(1.0)
step(1.0)
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["traced"]
