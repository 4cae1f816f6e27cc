"""Data-dependent loops and branches in compiled programs."""

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.runtime.devices import writes_onnx

Tensor = Any

_BLOCK = 16  # columns of `first_columns` that are computed at once

_in_branch = contextvars.ContextVar("in_branch", default=False)


def is_in_branch() -> bool:
    """Whether what is traced now is a branch of `switch`, where XLA compiles worse on CPU."""
    return _in_branch.get()


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


def scan_tensorflow(
    function: Callable[..., tuple], carry: Any, xs: Sequence[Tensor], num_ys: int
) -> tuple[Any, list[Tensor]]:
    """`keras.ops.scan` on TensorFlow, which holds what one round needs and no more.

    For an ONNX file it is written out: OpenVINO does not read the loop that tf2onnx makes of it.

    Args:
        function: the carry and a slice of each of `xs` to the new carry and a tuple of float32.
        carry: the first value, a tensor or a tuple of them.
        xs: tensors of one static length.
        num_ys: how many tensors the function gives beside the carry.

    Returns:
        The last carry, and those tensors of all rounds, stacked.
    """
    import tensorflow as tf

    num = xs[0].shape[0]
    if writes_onnx():
        rounds = []
        for k in range(num):
            carry, ys = function(carry, [x[k] for x in xs])
            rounds.append(ys)
        return carry, [tf.stack(parts) for parts in zip(*rounds, strict=True)]

    def step(k: Tensor, carry: Any, arrays: Sequence[Any]) -> tuple:
        carry, ys = function(carry, [x[k] for x in xs])
        return k + 1, carry, [a.write(k, y) for a, y in zip(arrays, ys, strict=True)]

    arrays = [tf.TensorArray("float32", num) for _ in range(num_ys)]
    _, carry, arrays = tf.while_loop(
        lambda k, *_: k < num,
        step,
        (0, carry, arrays),
        parallel_iterations=1,  # each of them holds rows
        maximum_iterations=num,
    )
    return carry, [array.stack() for array in arrays]


def first_columns(
    function: Callable[..., Any], number: Tensor, values: Tensor, *others: Tensor
) -> Any:
    """`function` of (B, K, ...) tensors, on JAX and PyTorch computed for their first columns alone.

    Where K is mostly padding. It cannot be cut to what is used: what XLA compiles has one shape.

    Args:
        function: of the tensors, or of some columns of each, to a tensor (B, K, ...) or a tuple of
            them and None, in which each column depends on the same column alone.
        number: scalar int32, how many columns are used.
        values: (B, K, ...); takes a gradient.
        *others: (B, K, ...); take none.

    Returns:
        The results, (B, K, ...). Behind the first `number` columns they do not matter: zeros on JAX
        and PyTorch, but for columns that were computed along.
    """
    backend, columns = keras.config.backend(), values.shape[1]
    if backend == "jax" and columns:
        return _first_columns_jax(function, number, values, others)
    if backend == "torch" and columns:
        return _first_columns_torch(function, max(1, int(number)), values, others)
    return function(values, *others)


def _first_columns_torch(
    function: Callable[..., Any], number: int, values: Tensor, others: tuple[Tensor, ...]
) -> Any:
    behind = values.shape[1] - number

    def pad(x: Tensor | None) -> Tensor | None:
        if x is None or not behind:
            return x
        return ops.pad(x, [(0, 0), (0, behind), *[(0, 0)] * (x.ndim - 2)])

    results = function(values[:, :number], *(x[:, :number] for x in others))
    return tuple(map(pad, results)) if isinstance(results, tuple) else pad(results)


def _first_columns_jax(
    function: Callable[..., Any], number: Tensor, values: Tensor, others: tuple[Tensor, ...]
) -> Any:
    import jax
    import jax.numpy as jnp

    columns = values.shape[1]
    block = min(_BLOCK, columns)

    # The last block begins early where K is no multiple, and computes some columns twice.
    def cut(k: Tensor, arrays: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, k * block, block, axis=1), arrays
        )

    def fill(number: Tensor, body: Callable[[Tensor], Any]) -> Any:
        whole = jax.tree.map(
            lambda x: jnp.zeros((x.shape[0], columns, *x.shape[2:]), x.dtype),
            jax.eval_shape(body, 0),
        )

        def step(k: Tensor, whole: Any) -> Any:
            return jax.tree.map(
                lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, k * block, axis=1),
                whole,
                body(k),
            )

        return jax.lax.fori_loop(0, -(-number // block), step, whole)

    @jax.custom_vjp
    def compute(number: Tensor, values: Tensor, others: tuple[Tensor, ...]) -> Any:
        return fill(number, lambda k: function(cut(k, values), *cut(k, others)))

    def backward(saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        number, values, others = saved

        def of_block(k: Tensor) -> Tensor:
            parts = cut(k, others)
            _, pull = jax.vjp(lambda x: function(x, *parts), cut(k, values))
            return pull(cut(k, gradient))[0]

        return None, fill(number, of_block), (None,) * len(others)

    compute.defvjp(lambda *inputs: (compute(*inputs), inputs), backward)
    return compute(number, values, others)


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
    branches = [functools.partial(_run_branch, branch) for branch in branches]
    if keras.config.backend() == "jax":
        branches = [keras.remat(branch) for branch in branches]
    return ops.switch(index, branches)


def _run_branch(branch: Callable[[], Tensor]) -> Tensor:
    token = _in_branch.set(True)
    try:
        return branch()
    finally:
        _in_branch.reset(token)
