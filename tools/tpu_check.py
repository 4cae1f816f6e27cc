"""What the TPU compiler says of a recipe's steps, on a machine without a TPU.

    python tools/tpu_check.py coco_retinanet --topology v5e:2x4 --image-size 512 --batch-size 32
    python tools/tpu_check.py imagenet_pretrain --topology v5e:2x4 v4:2x2x1 --batch-size 1024 \\
        --precision mixed_bfloat16 --table benchmarks/tpu_compiled.csv
    python tools/tpu_check.py --depthwise 32 --topology v5e:2x2 --table benchmarks/tpu_depthwise.csv

Compiles the very training step and prediction step that the recipe runs, data-parallel over the
slice, with the compiler of `pip install ".[tpu-check]"`: whether they fit, what they
compute, move and exchange, and the least time that takes by the chip's peaks. All flags but those
below are the recipe's; the data set is that of its name, none is needed. Figures are of one chip.

The compiler takes one core for ten minutes or more, with --quick for two to four. With --table each
row is written as soon as it is known, and a command that is started again leaves out the rows that
are there.

* memory: arguments, results and temporaries beside the chip's memory. A step that does not fit is
  refused by the compiler, which says what it would need.
* roofline: operations, memory traffic and exchange, each over the chip's peak of it, which
  tools/compiled/chips.py has. The longest of the three bounds the step from below; real steps take
  longer.
* --quick: the compiler looks for no fast program. It fits, computes and exchanges what the fast one
  does, but moves other amounts and takes longer, so what it says of time and traffic is left out.
* estimated: the cycles that the compiler expects of all operations, over the chip's clock.
* --depthwise: the 7x7 convolutions of CEDNet-NeXt-T's levels in each form, on one chip.
"""

import argparse
import datetime
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a script, the repository's root is not on the path: `tools` itself is.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    # The compiler asks no machine for its TPU, and JAX keeps to the CPU.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # beside a run that has the TPU, or this again
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_densepred import files, start
from keras_densepred._optional import require
from keras_densepred.faults import SettingsError, sentence
from tools.compiled.chips import Chip, parse_topology, roofline
from tools.compiled.program import collectives, estimated_cycles, memory_wanted, misfits
from tools.rows import append, commit, read

STEPS = ("train", "predict")
# Columns of which a program that was compiled in haste says nothing.
OF_A_FAST_PROGRAM = ("traffic_gb", "estimated_ms", "memory_ms", "bound", "images_per_s_at_most")
OF_A_PROGRAM = (  # columns that are empty where there is none
    *("gflop", "traffic_gb", "collectives", "exchanged_mb", "estimated_ms"),
    *("compute_ms", "memory_ms", "exchange_ms", "bound", "images_per_s_at_most"),
)


def main(argv: list[str] | None = None) -> int:
    arguments, flags = parse(argv)
    start.load()
    import keras

    try:
        if keras.config.backend() != "jax":
            raise SettingsError("The TPU compiler compiles for JAX: set KERAS_BACKEND=jax.")
        if (arguments.recipe is None) == (arguments.depthwise is None):
            raise SettingsError("Give a recipe, or --depthwise with a number of images.")
        if arguments.depthwise and flags:
            raise SettingsError(f"--depthwise takes no {flags[0]}.")
        slices = {name: parse_topology(name) for name in arguments.topology}
        require("libtpu", "tpu-check")
        table = arguments.table
        if table is not None:
            table = files.require_new_file(table, overwrite=True)
        source = {"date": datetime.date.today().isoformat(), "commit": commit()}
        if arguments.depthwise:
            rows = of_depthwise(arguments.depthwise, slices)
        else:
            missing = missing_rows(arguments, flags, read(table) if table else [])
            if not missing:
                print(f"All rows are in {table}.")
                return 0
            rows = measured(arguments.recipe, flags, missing, slices, arguments.quick)
        for row in rows:
            print("\n".join(f"{name:>16}: {value}" for name, value in row.items()), flush=True)
            if table is not None:
                append(table, [{**source, **row}])
    except (ValueError, ImportError) as error:
        print(f"tpu_check.py: {sentence(error)}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and those for the recipe."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        usage="%(prog)s recipe --topology CHIP:SIDES [flags] [flags of the recipe]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="such as coco_retinanet")
    parser.add_argument("--topology", nargs="+", required=True, help="slices, such as v5e:2x4")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=STEPS, help="these steps")
    parser.add_argument("--quick", action="store_true", help="compile in a quarter of the time")
    parser.add_argument("--depthwise", type=int, metavar="IMAGES", help="instead of a recipe")
    parser.add_argument("--table", type=Path, help="CSV file to append to")
    return parser.parse_known_args(argv)


def missing_rows(
    arguments: argparse.Namespace, flags: list[str], rows: list[dict[str, str]]
) -> list[tuple[str, str]]:
    """Slice and step of each row that is not there yet."""
    known = {
        (row["recipe"], row["flags"], row["topology"], row["step"])
        for row in rows
        if arguments.quick or row["effort"] == "full"
    }
    return [
        (topology, step)
        for topology in arguments.topology
        for step in arguments.only
        if (arguments.recipe, shlex.join(flags), topology, step) not in known
    ]


def measured(
    recipe: str,
    flags: list[str],
    wanted: list[tuple[str, str]],
    slices: dict[str, tuple[Chip, int]],
    quick: bool,
) -> Iterator[dict[str, Any]]:
    """Compiles a recipe's steps and yields a row of each."""
    import keras

    from tools.compiled.recipe_steps import recipe_steps
    from tools.compiled.steps import lower_predict_step, lower_train_step

    steps = recipe_steps(recipe, flags)
    for name in dict(wanted):
        chips = slices[name][1]
        if steps.settings.step_size % chips:
            raise SettingsError(
                f"{steps.settings.step_size} images a step do not split over the {chips} chips of "
                f"{name}: give another --batch-size."
            )
    for name, step in wanted:
        chip, chips = slices[name]
        devices = devices_of(name)
        if step == "train":
            images = steps.batch[0]
            lowered = lower_train_step(
                steps.model, steps.batch, devices, steps.settings.shard_weights
            )
        else:
            images = steps.x
            lowered = lower_predict_step(steps.model, steps.x, devices)
        shape = max((leaf.shape for leaf in keras.tree.flatten(images)), key=len)  # (B, H, W, 3)
        yield {
            "versions": versions(),
            "recipe": recipe,
            "flags": shlex.join(flags),
            "preset": steps.settings.preset,
            "precision": steps.settings.precision,
            "topology": name,
            "chips": chips,
            "step": step,
            "images": shape[0],
            "image_size": "x".join(str(side) for side in shape[1:3]),
            "misfits": ", ".join(misfits(lowered.as_text())),
            **compiled(lowered, chip, chips, shape[0], quick),
        }


def of_depthwise(images: int, slices: dict[str, tuple[Chip, int]]) -> Iterator[dict[str, Any]]:
    """A row of each form of the depthwise convolutions, on one chip of each slice."""
    from tools.compiled.depthwise import compile_depthwise

    for name, (chip, _) in slices.items():
        for row in compile_depthwise(devices_of(name)[0], chip, images):
            yield {"versions": versions(), "chip": name.partition(":")[0], **row}


def devices_of(topology: str) -> Any:
    """The devices of a slice, which need not be there.

    Raises:
        SettingsError: if they are not its chips, of which the table has the peaks.
    """
    chip, chips = parse_topology(topology)
    topologies = require("jax.experimental.topologies", "jax")
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chip_config_name=chip.config
    ).devices
    if len(devices) != chips:
        raise SettingsError(
            f"{topology} has {chips} chips, and the installed compiler sees {len(devices)} devices "
            "in it: its figures would be compared with the peaks of something else."
        )
    return devices


def compiled(
    lowered: Any, chip: Chip, chips: int, images: int, quick: bool = False
) -> dict[str, Any]:
    """Compiles a step; what its program says of itself."""
    start = time.monotonic()
    wanted: float | None
    fault, program = "", None
    try:
        program = lowered.compile({"exec_time_optimization_effort": -1.0} if quick else None)
    except Exception as error:  # whatever the compiler says is the finding
        wanted = memory_wanted(str(error))
        fault = "" if wanted is not None else sentence(error)
    else:
        sizes = program.memory_analysis()
        wanted = (
            sizes.argument_size_in_bytes
            + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes
            + sizes.temp_size_in_bytes
            + sizes.generated_code_size_in_bytes
        )
    row: dict[str, Any] = {
        "fits": "no" if program is None else "yes",
        "gib": "" if wanted is None else f"{wanted / 2**30:.2f}",
        "chip_gib": f"{chip.memory / 2**30:.1f}",
    }
    row |= dict.fromkeys(OF_A_PROGRAM, "")
    if program is not None:
        costs, text = program.cost_analysis(), program.as_text()
        found, cycles = collectives(text), estimated_cycles(text)
        least = roofline(chip, chips, costs["flops"], costs["bytes accessed"], found)
        row |= {
            "gflop": f"{costs['flops'] / 1e9:.1f}",
            "traffic_gb": f"{costs['bytes accessed'] / 1e9:.2f}",
            "collectives": len(found),
            "exchanged_mb": f"{sum(size for _, size in found) / 1e6:.2f}",
            "estimated_ms": f"{cycles / chip.clock * 1e3:.2f}" if chip.clock else "",
            "compute_ms": f"{least.compute * 1e3:.2f}",
            "memory_ms": f"{least.memory * 1e3:.2f}",
            "exchange_ms": f"{least.exchange * 1e3:.2f}",
            "bound": least.bound,
            "images_per_s_at_most": f"{images / least.seconds:.0f}",
        }
    if quick:
        row |= dict.fromkeys(OF_A_FAST_PROGRAM, "")
    row["effort"] = "quick" if quick else "full"
    return {**row, "compile_s": f"{time.monotonic() - start:.0f}", "fault": fault}


def versions() -> str:
    """Of what compiled."""
    names = ("keras", "jax", "libtpu")
    metadata = require("importlib.metadata", "jax")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
