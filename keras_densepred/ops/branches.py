"""One of several computations, of which the data decide while a compiled program runs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any


def switch(index: Tensor, branches: Sequence[Callable[[], Tensor]]) -> Tensor:
    """`keras.ops.switch` without operands, with room for the gradient of one branch only.

    Under XLA each branch gives back what any of them keeps for its gradient, zeros for that of the
    others: of branches of 1/8, 1/4, 1/2 and 1 of the work nearly twice what the largest needs. On
    JAX a branch keeps nothing, and computes its inside again in the backward pass.

    Args:
        index: scalar int32, 0 <= index < number of branches.
        branches: functions of nothing, whose results have the same shapes and types.

    Returns:
        What the branch number `index` gives.
    """
    if keras.config.backend() == "jax":
        branches = [keras.remat(branch) for branch in branches]
    return ops.switch(index, list(branches))
