"""Runs a recipe on Ray Train: on one machine or a cluster, and again from where it was if one dies.

    python tools/ray_train.py coco_retinanet --workers 2 -- --data-dir COCO --output /shared/coco
    python tools/ray_train.py coco_retinanet --workers 8 --gpu -- --data-dir COCO ...
    python tools/ray_train.py imagenet_pretrain --workers 4 --tpu TPU-V6E:4x4 -- --data-dir ...

What follows `--` are the recipe's flags. KERAS_BACKEND chooses Ray's trainer: TorchTrainer,
JaxTrainer or TensorflowTrainer. Every epoch's numbers are reported to Ray. Checkpoints are the
recipe's own, in its --output, which all machines must see, like the data and this clone. When a
worker dies, Ray starts all of them again, up to --failures times, and the recipe continues exactly;
so does the same command later. Needs `pip install ".[ray]"`.
"""

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import command
from keras_densepred._optional import require
from keras_densepred.faults import SettingsError
from tools.ray_worker import train_on_worker

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAINERS = {
    "jax": ("ray.train.v2.jax", "JaxTrainer"),
    "tensorflow": ("ray.train.tensorflow", "TensorflowTrainer"),
    "torch": ("ray.train.torch", "TorchTrainer"),
}
OF_RAY = ("--devices", "--processes", "--process-id", "--coordinator")
CARRIED = ("KERAS_HOME", "OMP_NUM_THREADS", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; prints the last epoch's numbers."""
    arguments, flags = parse(sys.argv[1:] if argv is None else argv)
    given = [flag for flag in OF_RAY if any(f.partition("=")[0] == flag for f in flags)]
    if given:
        raise SettingsError(f"Ray decides on processes and devices: leave {given[0]} out.")
    ray = require("ray", "ray")
    require("ray.train", "ray")
    check_flags(arguments.recipe, flags)
    backend = os.environ.get("KERAS_BACKEND", "torch")
    variables = {name: os.environ[name] for name in CARRIED if name in os.environ}
    variables |= {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    own = {} if arguments.address else {"include_dashboard": False}
    ray.init(address=arguments.address, runtime_env={"env_vars": variables}, **own)
    try:
        result = make_trainer(arguments, flags, backend).fit()
    finally:
        ray.shutdown()
    print(", ".join(f"{name} {value:.4g}" for name, value in (result.metrics or {}).items()))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those behind `--`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        usage="%(prog)s recipe [flags] -- [flags of the recipe]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="such as coco_retinanet")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker (default: 1)")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument("--tpu", metavar="TYPE:SIDES", help="a slice, such as TPU-V6E:4x4 (JAX)")
    parser.add_argument("--failures", type=int, default=3, help="restarts; -1: no end")
    parser.add_argument("--address", help="of a Ray cluster (default: a new one, here)")
    parser.add_argument("--storage", help="folder or address for what Ray itself writes")
    parser.add_argument("--name", help="of the run, for Ray")
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


def check_flags(recipe: str, flags: Sequence[str]) -> None:
    """Refuses here what every worker would refuse."""
    from keras_densepred.cli.scripts import find_recipe
    from keras_densepred.training.settings import check_numbers, parse_flags

    name = find_recipe(recipe).stem
    of = importlib.import_module(f"recipes.{name}").RECIPE
    check_numbers(of.settings(**parse_flags(of.settings, flags, of.description, of.experiments)))


def make_trainer(arguments: argparse.Namespace, flags: Sequence[str], backend: str) -> Any:
    """Ray's trainer of a backend."""
    if backend not in TRAINERS:
        raise SettingsError(f"Keras' backend {backend} does not train: set KERAS_BACKEND=jax.")
    train = require("ray.train", "ray")
    module, name = TRAINERS[backend]
    scaling: dict[str, Any] = {
        "num_workers": arguments.workers,
        "resources_per_worker": {"CPU": arguments.cpus},
    }
    if arguments.gpu:
        scaling["use_gpu"] = True
        scaling["resources_per_worker"]["GPU"] = 1
    if arguments.tpu:
        kind, _, sides = arguments.tpu.partition(":")
        if backend != "jax" or not sides:
            raise SettingsError(
                f"--tpu {arguments.tpu} takes a type and sides, such as TPU-V6E:4x4, and JAX: set "
                "KERAS_BACKEND=jax."
            )
        scaling |= {"use_tpu": True, "accelerator_type": kind, "topology": sides}
        del scaling["resources_per_worker"]
    on_cpu = not (arguments.gpu or arguments.tpu)
    return getattr(importlib.import_module(module), name)(
        train_on_worker,
        train_loop_config={
            "recipe": arguments.recipe,
            "flags": list(flags),
            "folder": os.getcwd(),
            # Ray joins JAX's processes on accelerators only.
            "joins_itself": backend == "jax" and on_cpu and arguments.workers > 1,
        },
        scaling_config=train.ScalingConfig(**scaling),
        run_config=train.RunConfig(
            name=arguments.name,
            storage_path=arguments.storage,
            failure_config=train.FailureConfig(max_failures=arguments.failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
        ),
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
