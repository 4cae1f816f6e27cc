"""What a worker of tools/ray_train.py does; a module of its own, which workers import."""

import importlib
import json
import os
import pathlib
import socket
import tempfile
from typing import Any

from keras_densepred import files
from keras_densepred.training.settings import parse_flags


def train_on_worker(config: dict[str, Any]) -> None:
    """Runs the recipe in a worker of Ray."""
    os.chdir(config["folder"])  # to which relative paths among the flags refer
    recipe = importlib.import_module(f"recipes.{config['recipe']}").RECIPE
    flags = list(config["flags"])
    if config["joins_itself"]:
        flags += _joining_flags()
    said = parse_flags(recipe.settings, flags, recipe.description, recipe.experiments)
    output = pathlib.Path(said.get("output", f"runs/{recipe.name}"))
    recipe.main(flags, callbacks=[_reporter(output.expanduser().absolute())])


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


def _reporter(output: pathlib.Path) -> Any:
    """A callback that reports every epoch's numbers to Ray.

    Ray keeps numbers with checkpoints only. Its checkpoint names the folder that has the recipe's.
    """
    import keras
    import ray.train

    class Reporter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            numbers = {name: float(value) for name, value in (logs or {}).items()}
            numbers["epoch"] = epoch + 1
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = None
                if ray.train.get_context().get_world_rank() == 0:
                    path = pathlib.Path(folder, "output.json")
                    files.write_atomically(path, json.dumps({"output": str(output)}).encode())
                    checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(numbers, checkpoint=checkpoint)

    return Reporter()
