"""What a worker of tools/ray_train.py does; a module of its own, which workers import."""

import importlib
import os
import socket
from typing import Any


def train_on_worker(config: dict[str, Any]) -> None:
    """Runs the recipe in a worker of Ray."""
    os.chdir(config["folder"])  # to which relative paths among the flags refer
    recipe = importlib.import_module(f"recipes.{config['recipe']}").RECIPE
    flags = list(config["flags"])
    if config["joins_itself"]:
        flags += _joining_flags()
    recipe.main(flags, callbacks=[_reporter()])


def _joining_flags() -> list[str]:
    """The flags with which a recipe's processes find each other, at a port of the first one."""
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    address = None
    if context.get_world_rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            address = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    return [
        *("--processes", str(context.get_world_size())),
        *("--process-id", str(context.get_world_rank())),
        *("--coordinator", broadcast_from_rank_zero(address)),
    ]


def _reporter() -> Any:
    """A callback that reports every epoch's numbers to Ray."""
    import keras
    import ray.train

    class Reporter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            numbers = {name: float(value) for name, value in (logs or {}).items()}
            ray.train.report({"epoch": epoch + 1, **numbers})

    return Reporter()
