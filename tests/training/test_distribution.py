"""Several devices: the same losses as one; clear sentences where they are not there."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_densepred.training import distribution

TOY = pathlib.Path(__file__).with_name("distribution_toy.py")
ON_TORCH = keras.backend.backend() == "torch"


def test_two_devices_train_as_one():
    if ON_TORCH:  # Keras has no data-parallel fit there: one device, and more are refused
        with (
            pytest.raises(distribution.DevicesError, match="trains on one device with PyTorch"),
            distribution.data_parallel(2),
        ):
            pass
        return
    root = TOY.parents[2]
    done = subprocess.run(
        [sys.executable, str(TOY)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert (one[0], two[0]) == (1, 2)
    np.testing.assert_allclose(two[1:], one[1:], rtol=1e-5)


def test_one_device_by_default():
    with distribution.data_parallel() as count:
        assert count == 1
    assert keras.distribution.distribution() is None


def test_devices_that_are_not_there():
    with (
        pytest.raises(distribution.DevicesError, match=r"^99 devices were asked for"),
        distribution.data_parallel(99),
    ):
        pass


def test_fit_input_is_the_generator_on_one_device():
    def batches():
        yield (np.zeros((2, 3), "float32"),)

    assert next(distribution.fit_input(batches))[0].shape == (2, 3)
