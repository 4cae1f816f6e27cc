"""Checkpoints as dictionaries of arrays."""

import numpy as np
import pytest

from keras_densepred.convert import state

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "model._orig_mod.", "_orig_mod.module.", "ema_model."],
)
def test_wrappers_around_a_model_are_recognised(prefix):
    keys = ("stem.0.weight", "stages.0.weight", "head.bias")
    wrapped = {prefix + key: np.zeros(1) for key in keys}
    assert tuple(state.unwrapped(wrapped)) == keys


def test_a_compiled_part_inside_is_recognised():
    assert set(state.unwrapped({"stem._orig_mod.weight": 0, "head.bias": 1})) == {
        "stem.weight",
        "head.bias",
    }


def test_what_lies_beside_the_model_is_left_out():
    wrapped = {"model.stem.weight": 0, "model.head.bias": 1, "criterion.weight": 2}
    assert set(state.unwrapped(wrapped)) == {"stem.weight", "head.bias"}
