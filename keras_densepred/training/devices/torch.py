"""Several processes on PyTorch, one a device: `DistributedDataParallel` under Keras' `fit`.

Keras 3.15.1 has no data parallelism on PyTorch. Its `train_step` calls the model, takes the loss,
calls `backward` and hands the parameters' gradients to the optimizer, so it is enough that the call
goes through the wrapper: that sums the gradients while `backward` runs.

Keras 3.16 wraps every model itself where a process group is open, and trains the same. Ours stays:
Keras' wrapper is called by its own `train_step`, so that a model with another one would train
apart in each process; it holds a second copy of the gradients; and it is made at the first
prediction too, where a process with nothing to predict would keep the others waiting. With both
wrappers gradients would be summed twice, so Keras is kept from making its own.
"""

import contextlib
import datetime
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.training.devices.cluster import Cluster, DevicesError
from keras_densepred.training.devices.distribute import environment_number

_TIMEOUT = datetime.timedelta(minutes=30)  # the main process may evaluate or write for long


class TorchCluster(Cluster):
    """Processes of a `torch.distributed` process group."""

    metrics_are_local = True

    def _exchange(self, content: np.ndarray) -> list[np.ndarray]:
        torch = require("torch", "torch")
        distributed = require("torch.distributed", "torch")
        # NCCL takes tensors on the GPU only.
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"

        def exchange(vector: np.ndarray) -> np.ndarray:
            mine = torch.from_numpy(vector.copy()).to(device)
            parts = [torch.empty_like(mine) for _ in range(self.process_count)]
            distributed.all_gather(parts, mine)
            return torch.stack(parts).cpu().numpy()

        return self._exchange_padded(content, exchange)

    @contextlib.contextmanager
    def training(self, model: keras.Model) -> Iterator[None]:
        """See `Cluster.training`."""
        torch: Any = require("torch", "torch")
        parallel_module = require("torch.nn.parallel", "torch")
        call = model.call

        class Forward(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return call(*args, **kwargs)

        held_back = _keep_keras_from_wrapping(model)
        # Gradients live in the buckets that are summed: no second copy of them.
        parallel = parallel_module.DistributedDataParallel(Forward(), gradient_as_bucket_view=True)

        def parallel_call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("training") and torch.is_grad_enabled():
                return parallel(*args, **kwargs)
            return call(*args, **kwargs)  # predictions are each process' own affair

        model.call = parallel_call
        try:
            yield
        finally:
            del model.call
            if held_back:
                model.ddp_model = None

    def predictor(self, model: keras.Model) -> Any:
        """See `Cluster.predictor`."""
        _keep_keras_from_wrapping(model)
        return model


def _keep_keras_from_wrapping(model: Any) -> bool:
    """Sets what Keras 3.16 takes for its wrapper to one that is there and of no use.

    Returns:
        Whether it was free for one.
    """
    if getattr(model, "ddp_model", False) is not None:  # which Keras 3.15 has not
        return False
    model.ddp_model = False
    return True


def _joined_before(devices: int | None, processes: int | None) -> Cluster:
    """The cluster of a process group that someone else opened, such as Ray, and closes."""
    distributed = require("torch.distributed", "torch")
    count = distributed.get_world_size()
    if any(asked not in (None, count) for asked in (devices, processes)):
        raise DevicesError(
            f"PyTorch's process group is open with {count} processes, one device each: leave "
            "devices and processes out."
        )
    return TorchCluster(count, count, distributed.get_rank()) if count > 1 else Cluster()


@contextlib.contextmanager
def connect(
    devices: int | None, processes: int | None, process_id: int | None, coordinator: str | None
) -> Iterator[Cluster]:
    """Opens a cluster; see `distribute`."""
    torch = require("torch", "torch")
    distributed = require("torch.distributed", "torch")
    if distributed.is_available() and distributed.is_initialized():
        yield _joined_before(devices, processes)
        return
    started = environment_number("WORLD_SIZE")
    if processes is None:
        processes = started or 1
        process_id = environment_number("RANK")
    elif started is not None and started != processes:
        raise DevicesError(
            f"{processes} processes were asked for, and torchrun started {started}: leave the "
            "number of processes to torchrun."
        )
    if devices is not None and devices != processes:
        command = shlex.join(["torchrun", f"--nproc-per-node={devices}", *sys.argv])
        raise DevicesError(
            f"{devices} devices were asked for and there is {processes} process, but PyTorch "
            f"trains one device in each process: start with `{command}`."
        )
    if processes == 1:
        yield Cluster()
        return
    if coordinator is None:
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise DevicesError(
                f"The environment has WORLD_SIZE and no {', '.join(missing)}: start with torchrun."
            )
        method = "env://"
    else:
        method = f"tcp://{coordinator.split(',')[0]}"
    assert process_id is not None  # of the environment, or checked by `distribute`
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        local = environment_number("LOCAL_RANK")
        if local is None:
            local = process_id % torch.cuda.device_count()
        if local >= torch.cuda.device_count():
            raise DevicesError(
                f"Process {local} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=method,
        rank=process_id,
        world_size=processes,
        timeout=_TIMEOUT,
    )
    try:
        yield TorchCluster(processes, processes, process_id)
    finally:
        distributed.destroy_process_group()
