"""Loops whose length the data decide, in programs of `torch.export` too."""

from collections.abc import Callable
from typing import Any

import keras

Tensor = Any


def while_loop(
    cond: Callable[..., Tensor],
    body: Callable[..., tuple[Tensor, ...]],
    loop_vars: tuple[Tensor, ...],
    maximum_iterations: int,
) -> tuple[Tensor, ...]:
    """`keras.ops.while_loop`, also where PyTorch writes down what is computed.

    On PyTorch `keras.ops.while_loop` (keras 3.15.1) is Python's `while`, which asks for the value
    of `cond`; while `torch.export` traces there is none. PyTorch's own operator is used then.

    Args:
        cond: the variables to a scalar bool: whether there is another round. In an exported program
            it alone decides, so it has to become False in `maximum_iterations` rounds.
        body: the variables to the new ones, of the same shapes and dtypes.
        loop_vars: the first values.
        maximum_iterations: rounds after which the loop ends in any case.

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
