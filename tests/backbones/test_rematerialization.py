"""Rematerialised training: the same gradients from less memory."""

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone
from keras_densepred.backbones.rematerialization import _inside_of_runs
from tests.weights import gradients, set_deterministic_weights

TINY = dict(p2_width=8, p2_depth=1, widths=(8, 16, 24), depths=(1, 1, 1), num_stages=1)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def tiny(**arguments):
    backbone = CEDNetBackbone(**{**TINY, "stem_width": 8, "layer_scale_init": 0.2, **arguments})
    set_deterministic_weights(backbone)
    return backbone


@pytest.mark.slow_on("jax")
def test_gradients_are_the_same():
    backbone = tiny()
    plain = gradients(backbone, IMAGES)
    backbone.rematerialize()
    again = gradients(backbone, IMAGES)
    assert all(np.any(gradient) for gradient in plain)
    for ours, reference in zip(again, plain, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6, rtol=1e-4)


def test_runs_end_before_random_draws_and_sums():
    backbone = tiny(drop_path_rate=0.5)
    inside = _inside_of_runs(backbone)
    names = {layer.name for layer in backbone.layers if id(layer) in inside}
    outside = {layer.name for layer in backbone.layers} - names
    block = {name for name in names if name.startswith("p2_block1")}
    assert len(block) == 5, block  # of six: the layer scale ends the run
    assert all("drop_path" not in name and "add" not in name for name in names)
    assert any("drop_path" in name for name in outside)


@pytest.mark.slow_on("jax")
def test_outputs_outside_of_training_are_the_same():
    backbone = tiny()
    plain = backbone.predict(IMAGES, verbose=0)
    backbone.rematerialize()
    for level, outputs in backbone(IMAGES).items():
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(outputs), plain[level], atol=1e-5, rtol=1e-4
        )


if keras.config.backend() == "torch":  # the others do not tell what they keep

    def test_less_is_kept_for_the_gradient():
        import torch

        backbone = tiny(p2_depth=4)
        kept = {True: 0, False: 0}
        for rematerialized in kept:
            backbone.rematerialize(rematerialized)

            def keep(tensor, rematerialized=rematerialized):
                kept[rematerialized] += tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                backbone(IMAGES, training=True)
        assert kept[True] < 0.5 * kept[False]
