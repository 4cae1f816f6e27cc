"""Checkpoints of any of our models, in the authors' and in timm's layout."""

import numpy as np

from keras_densepred.convert.cednet import authors_keys
from keras_densepred.convert.timm import timm_keys


def cednet_state(model):
    """A state in the authors' layout for any of our models."""
    state = {}
    for key, weight in authors_keys(model).items():
        shape = tuple(weight.shape)
        if len(shape) == 4:
            h, w, i, o = shape
            shape = (i, 1, h, w) if o == 1 else (o, i, h, w)
        elif len(shape) == 2 and weight.name == "kernel":
            shape = shape[::-1]
            if "pwconv" not in key and "heads" not in key:
                shape = (*shape, 1, 1)
        state[key] = np.full(shape, 0.5, np.float32)
    return state


def timm_state(model):
    """A state in timm's layout for a small network of timm's flavour."""
    state = {}
    for key, variables in timm_keys(model).items():
        shape = (*variables[0].shape[:-1], sum(v.shape[-1] for v in variables))
        if len(shape) == 2:
            shape = shape[::-1] if key.startswith("head") else (*shape[::-1], 1, 1)
        elif len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        state[key] = np.full(shape, 0.5, np.float32)
        state[key][: shape[0] // 2] = 0.25
    return state
