"""Rematerialised training: the same gradients from less memory."""

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone
from keras_densepred.backbones.rematerialization import _inside_of_runs
from keras_densepred.models.pyramid import levels_on
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

    def kept_for_the_gradient(model):
        """How many numbers a training step of a model keeps."""
        import torch

        sizes = []

        def keep(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(IMAGES, training=True)
        return sum(sizes)

    @pytest.mark.parametrize("with_inner_map", [False, True])
    def test_less_is_kept_for_the_gradient(with_inner_map):
        backbone = model = tiny(p2_depth=4)
        if with_inner_map:  # as an auxiliary head reads one
            images = keras.Input(backbone.input.shape[1:])
            inner = backbone.get_layer("p2_block1_add").output
            model = keras.Model(images, levels_on(backbone, images, {"inner": inner}))
        plain = kept_for_the_gradient(model)
        backbone.rematerialize()
        assert kept_for_the_gradient(model) < 0.5 * plain
