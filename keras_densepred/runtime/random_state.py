"""The random state that a Keras backend keeps outside of Keras' variables.

Only PyTorch has one that Keras layers draw from: `keras.layers.Dropout` without a seed calls
`torch.nn.functional.dropout` (Keras 3.15.1), which uses PyTorch's global generators. On JAX and
TensorFlow every draw comes from a `SeedGenerator`, whose state is a variable.
"""

from collections.abc import Sequence

import keras
import numpy as np


def get_backend_random_state() -> list[np.ndarray]:
    """Returns the states of the backend's global generators.

    Returns:
        One (n,) uint8 array per generator: of the CPU, then of each GPU. Empty if Keras draws from
        none of the backend's own.
    """
    if keras.backend.backend() != "torch":
        return []
    import torch

    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [state.cpu().numpy().copy() for state in (torch.get_rng_state(), *gpus)]


def set_backend_random_state(states: Sequence[np.ndarray]) -> None:
    """Puts back what `get_backend_random_state` returned.

    Args:
        states: of this backend, and of as many devices.
    """
    if keras.backend.backend() != "torch" or not states:
        return
    import torch

    torch.set_rng_state(torch.from_numpy(np.asarray(states[0]).copy()))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.from_numpy(np.asarray(s).copy()) for s in states[1:]])
