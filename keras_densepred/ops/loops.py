"""Data-dependent loops and branches in compiled programs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any


def while_loop(
    cond: Callable[..., Tensor],
    body: Callable[..., tuple[Tensor, ...]],
    loop_vars: tuple[Tensor, ...],
    maximum_iterations: int,
) -> tuple[Tensor, ...]:
    """`keras.ops.while_loop`, also while `torch.export` traces.

    On PyTorch `keras.ops.while_loop` (keras 3.15.1) is Python's `while`, which asks for the value
    of `cond`; while `torch.export` traces there is none. PyTorch's own operator is used then.

    Args:
        cond: the variables to a scalar bool: whether there is another round. In an exported program
            it alone decides, so it has to become False in `maximum_iterations` rounds.
        body: the variables to the new ones, of the same shapes and dtypes.
        loop_vars: the first values.
        maximum_iterations: largest number of rounds.

    Returns:
        The last values.
    """
    if keras.config.backend() == "torch":
        import torch

        if torch.compiler.is_exporting():
            from torch._higher_order_ops.while_loop import while_loop as exported_loop

            # What its functions give back must be new, and lie in memory as what they were given.
            def fresh(value: Tensor) -> Tensor:
                return value.clone(memory_format=torch.contiguous_format)

            return exported_loop(
                lambda *values: fresh(cond(*values)),
                lambda *values: tuple(map(fresh, body(*values))),
                tuple(map(fresh, loop_vars)),
            )
    return keras.ops.while_loop(cond, body, loop_vars, maximum_iterations=maximum_iterations)


def switch(index: Tensor, branches: Sequence[Callable[[], Tensor]]) -> Tensor:
    """`keras.ops.switch` without operands, with memory for the gradient of one branch only.

    Under XLA each branch returns what any of them keeps for its gradient, zeros for the others:
    with branches of 1/8, 1/4, 1/2 and 1 of the work, nearly twice what the largest needs. On JAX
    branches therefore keep nothing and are computed again in the backward pass.

    Args:
        index: scalar int32, 0 <= index < number of branches.
        branches: functions of nothing, whose results have the same shapes and types.

    Returns:
        The result of branch number `index`.
    """
    if keras.config.backend() == "jax":
        branches = [keras.remat(branch) for branch in branches]
    return ops.switch(index, list(branches))
