"""Sums over the replicas of a data-parallel training step.

A replica is one copy of the model at work on its rows of the batch: a device on TensorFlow, a
process on PyTorch. On JAX there is only one, because a step is written, and its gradient taken, for
the whole batch, and the compiler adds the sums over devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_densepred.runtime.devices import jax_mesh

Tensor = Any


def replica_count() -> int:
    """Returns how many replicas the step that is being computed runs on."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()  # None while a model is built
        return 1 if context is None else context.num_replicas_in_sync
    if backend == "torch":
        import torch.distributed as dist

        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return 1


def devices_of_a_replica() -> int:
    """Returns how many devices share the rows of a replica: on JAX all of a data-parallel step."""
    if keras.config.backend() != "jax":
        return 1
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.device_mesh.devices.size


def on_own_rows(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, where each device of a replica computes the rows that it holds.

    XLA finds out what a device needs of a step that is written for all devices: of a gather from a
    table of all images, a top-k or a loop's condition it takes every device to need everything,
    and exchanges whole maps, or a value a round. Told so, nothing is exchanged.

    Args:
        function: of arrays to one or several, in which each row depends on the same row of the
            arguments alone. What it closes over is the same for all rows.
        *arrays: (B, ...) each; lists and dictionaries of such, or None.

    Returns:
        The result of `function`, whose arrays have B rows too.
    """
    mesh, axis = _rows_of_jax() if keras.config.backend() == "jax" else (None, "")
    if mesh is None:
        return function(*arrays)
    import jax

    leaves = jax.tree.leaves(arrays)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    # Rows that do not split are of a model that is being built, or called on an image by itself.
    if not traced or any(leaf.shape[0] % mesh.shape[axis] for leaf in leaves):
        return function(*arrays)
    by_rows = jax.P(axis)
    return jax.shard_map(
        function, mesh=mesh, in_specs=by_rows, out_specs=by_rows, axis_names={axis}, check_vma=False
    )(*arrays)


def _rows_of_jax() -> tuple[Any, str]:
    """The mesh that shares out the rows of what JAX traces, and its axis; None where none does."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.device_mesh.devices.size == 1:
        return None, ""
    import jax

    axis = distribution.batch_dim_name
    if axis in jax.sharding.get_abstract_mesh().manual_axes:  # each device has its own rows here
        return None, ""
    return jax_mesh() or distribution.device_mesh.backend_mesh, axis


def sum_over_replicas(x: Tensor) -> Tensor:
    """Sums a tensor of the same shape over all replicas; so is the gradient.

    All replicas must call it the same number of times, and get the same result.

    Args:
        x: float tensor.

    Returns:
        The sum, shaped like `x`; `x` itself where there is one replica.
    """
    if replica_count() == 1:
        return x
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)
    if x.device.type == "meta":  # shapes are being inferred
        return x
    return _torch_sum().apply(x)


@functools.cache
def _torch_sum() -> Any:
    """An autograd function; `torch.distributed.nn.functional`'s warns that it will be removed."""
    import torch
    import torch.distributed as dist

    class SumOverProcesses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            total = x.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return SumOverProcesses.forward(ctx, gradient)

    return SumOverProcesses


def moments_of_all(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of all replicas, which have the same number of rows.

    One sum of 2C numbers for each replica in the forward pass, one in the backward pass. Each
    replica's own moments are combined, not sums of x and of x squared, whose difference loses the
    digits of a variance that is small beside the mean.

    Args:
        mean: (C,) float32, of this replica's rows.
        variance: (C,) float32, of this replica's rows.

    Returns:
        Mean (C,) and variance (C,), as of one batch with the rows of all replicas.
    """
    count = replica_count()
    if count == 1:
        return mean, variance
    # A sum in which every replica fills its own slot is a gather that has a gradient everywhere.
    slot = ops.cast(ops.arange(count) == _replica_index(), mean.dtype)
    means, variances = ops.unstack(
        sum_over_replicas(slot[None, :, None] * ops.stack([mean, variance])[:, None, :]), 2
    )
    mean = ops.mean(means, axis=0)
    return mean, ops.mean(variances + ops.square(means - mean), axis=0)


def _replica_index() -> Any:
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_replica_context().replica_id_in_sync_group
    import torch.distributed as dist

    return dist.get_rank()


def own_seed(seed: Tensor) -> Tensor:
    """A different seed on every replica, which otherwise draw the same numbers for their rows.

    Args:
        seed: (2,) integers, of a `keras.random.SeedGenerator`.

    Returns:
        The same on the first replica, and wherever there is only one.
    """
    if replica_count() == 1:
        return seed
    # The second number counts the draws: the first alone tells the replicas apart.
    return seed + ops.cast(
        ops.stack([_replica_index(), 0]), keras.backend.standardize_dtype(seed.dtype)
    )


def loss_normalizer(count: Tensor, least: float = 1.0) -> Tensor:
    """Divisor of a replica's summed losses that gives the gradient of the whole batch's loss.

    That loss is the sum over all rows of the batch, divided by `max(count of all rows, least)`: a
    RetinaNet's, divided by the batch's positive anchors. TensorFlow's replicas add their gradients
    and PyTorch's average them, so that the share of a replica differs between the two.

    Args:
        count: float32 scalar, of this replica's rows.
        least: smallest divisor of the whole batch.

    Returns:
        float32 scalar, the same on all replicas.
    """
    total = ops.maximum(sum_over_replicas(count), least)
    return total / replica_count() if keras.config.backend() == "torch" else total


def loss_for_logs(loss: Tensor) -> Tensor:
    """Scales a replica's share of a loss so that the mean over replicas is the whole batch's loss.

    Args:
        loss: float32 scalar, a sum divided by `loss_normalizer`.

    Returns:
        float32 scalar, without a gradient.
    """
    loss = ops.stop_gradient(loss)
    return loss * replica_count() if keras.config.backend() == "tensorflow" else loss


def share_of_mean(count: Tensor) -> Tensor:
    """Weight that turns per-replica means into the global mean when item counts differ.

    The engines average the replicas' means. That is the mean over the whole batch only if all
    replicas hold equally many items, such as labelled pixels.

    Args:
        count: float32 scalar, items of this replica's rows.

    Returns:
        float32 scalar whose mean over the replicas is 1; 1 where there is one replica.
    """
    if replica_count() == 1:
        return ops.ones_like(count)
    return count * replica_count() / ops.maximum(sum_over_replicas(count), 1.0)
