"""Training on several devices and in several processes, by each backend's own means.

JAX: `keras.distribution.DataParallel`, several processes through `keras.distribution.initialize`.
TensorFlow: `tf.distribute` strategies. PyTorch: `DistributedDataParallel`, one process a device,
because Keras 3.15 has no data parallelism of its own there. Only the modules beside this one,
`runtime/` and `ops/` call a backend directly.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator

import keras

from keras_densepred.training.devices.cluster import Cluster, DevicesError, entered


@contextlib.contextmanager
def distribute(
    devices: int | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    coordinator: str | None = None,
    shard_weights: bool = False,
) -> Iterator[Cluster]:
    """Joins devices and processes for models that are built and trained in the `with` block.

    Open it before anything is computed: a backend that has started takes no more processes. All
    processes do the same things with a model, in the same order; only the main one prints and
    writes.

    The batch size is that over all devices. Training gives the same as one device on the same
    batches, up to rounding: losses that are means over the batch by themselves, detectors' through
    `runtime.replicas.loss_normalizer`, batch statistics with `layers.BatchNorm`. Random draws
    (dropout, drop path) are of the whole batch on JAX; on TensorFlow and PyTorch every replica
    draws the same for its rows, except in `layers.drop_path`.

    Where processes are not given they are taken from the environment: `torchrun`'s variables on
    PyTorch, `TF_CONFIG` (or `TPU_NAME`) on TensorFlow, and on JAX `KERAS_DISTRIBUTION_*` or that
    of `srun`, Open MPI or a TPU pod on Kubernetes.

    Args:
        devices: in all processes together; None for all GPUs or TPUs, and one CPU a process where
            there are none. With several processes all their devices are used.
        processes: how many processes take part, this one included; each is started with the same
            command, on one machine or on several.
        process_id: the number of this process, from 0.
        coordinator: `host:port` of process 0, reachable from all; TensorFlow needs the addresses
            of all processes, separated by commas. "auto" on JAX: JAX asks the cluster's manager
            (Cloud TPU, SLURM, Open MPI, Kubernetes).
        shard_weights: JAX: every device keeps a share of each large weight, of its
            moments and its average, and not all of them.

    Yields:
        The cluster.

    Raises:
        DevicesError: if devices or processes are not there, or the arguments do not fit together.
    """
    _check_arguments(devices, processes, process_id, coordinator)
    name = keras.backend.backend()
    more = {}
    if shard_weights:
        check_sharding(name)
        more = {"shard_weights": True}
    if name not in ("jax", "tensorflow", "torch"):
        raise DevicesError(f"Keras' backend {name} does not train: set KERAS_BACKEND=jax.")
    engine = importlib.import_module(f"keras_densepred.training.devices.{name}")
    with (
        engine.connect(devices, processes, process_id, coordinator, **more) as cluster,
        entered(cluster),
    ):
        yield cluster


def _check_arguments(
    devices: int | None, processes: int | None, process_id: int | None, coordinator: str | None
) -> None:
    if devices is not None and devices < 1:
        raise DevicesError(f"{devices} devices were asked for: use 1 or more.")
    if processes is None:
        if process_id is not None or (coordinator is not None and coordinator != "auto"):
            raise DevicesError(
                "A process id or a coordinator was given without the number of processes: give "
                "all three, or none of them."
            )
        return
    if processes < 1:
        raise DevicesError(f"{processes} processes were asked for: use 1 or more.")
    if processes == 1:
        if process_id not in (None, 0):
            raise DevicesError(f"The process id is {process_id}, and there is only one process: 0.")
        return
    if process_id is None or coordinator is None:
        raise DevicesError(
            f"{processes} processes were asked for: give each its process id, 0 to "
            f"{processes - 1}, and all the coordinator, host:port of process 0."
        )
    if not 0 <= process_id < processes:
        raise DevicesError(
            f"The process id is {process_id}, and {processes} processes have the ids 0 to "
            f"{processes - 1}."
        )
    if coordinator != "auto":
        for address in coordinator.split(","):
            port = address.rpartition(":")[2]
            if ":" not in address or not port.isdigit():
                raise DevicesError(
                    f"The coordinator is {address!r}, which is no host:port such as localhost:8476."
                )


def check_sharding(backend: str, devices: int | None = None) -> None:
    """Refuses to split weights where that cannot be, as soon as it can be seen.

    Raises:
        DevicesError: on another backend than JAX, on one device.
    """
    if backend != "jax":
        raise DevicesError(
            f"Weights are split over devices on JAX alone, and KERAS_BACKEND is {backend}: leave "
            "shard_weights (--shard-weights) out."
        )
    if devices == 1:
        raise DevicesError(
            "shard_weights (--shard-weights) splits weights over devices, and there is one: leave "
            "it out."
        )


def environment_number(name: str) -> int | None:
    """Returns a whole number from the environment, or None if the variable is not set.

    Raises:
        DevicesError: if it is something else.
    """
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise DevicesError(f"The environment's {name} is {text!r}, which is no whole number.")
    return int(text)
