"""A small dense detector with something to find."""

import numpy as np

from keras_densepred.models import TaskAlignedDetector
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights


def dense():
    model = TaskAlignedDetector(ToyPyramid(), 3, head_width=8, head_depth=1)
    set_deterministic_weights(model)
    rng = np.random.default_rng(1)
    for level in ("p3", "p4", "p5"):
        for part, scale in (("class", 1.0), ("box", 3.0)):
            bias = model.get_layer(f"head_{level}_{part}_logits").bias
            bias.assign(rng.normal(0, scale, bias.shape))
    return model
