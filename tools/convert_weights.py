"""Turns the weights of other code bases into preset directories that `from_preset` loads.

    python tools/convert_weights.py cednet CHECKPOINT --preset NAME --output DIR [--ema]

CHECKPOINT is a `.pth` file (read as weights alone, nothing in it is run) or a `.safetensors` file
of the CEDNet authors' code: plain, with averaged weights (`--ema`), or wrapped by mmdetection or
mmsegmentation. What it holds decides what is saved: a classifier, a pyramid or a backbone.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import keras

from keras_densepred import CEDNetBackbone, CEDNetImageClassifier, DetectionPyramid
from keras_densepred.convert import cednet


def model_for(state: dict, preset: str) -> keras.Model:
    """The CEDNet model of the architecture `preset` that has the parts `state` has weights of."""
    if CEDNetBackbone.architecture_preset_name(preset) is None:
        names = ", ".join(CEDNetBackbone.architecture_presets())
        raise ValueError(f"There is no architecture preset {preset!r}: choose one of {names}.")
    stages = [int(m[1]) for key in state if (m := re.match(r"stages\.(\d+)\.", key))]
    last = max(stages, default=0)
    backbone = CEDNetBackbone.from_preset(
        preset, final_decoder=any(key.startswith(f"stages.{last}.1.") for key in state)
    )
    if "heads.0.weight" in state:
        return CEDNetImageClassifier(backbone, num_classes=len(state["heads.0.weight"]))
    if "reduce_convs.0.0.weight" in state:
        added = {key.split(".")[1] for key in state if key.startswith("add_blocks.")}
        return DetectionPyramid(
            backbone,
            width=len(state["reduce_convs.0.0.weight"]),
            min_level=2 if "reduce_c2.0.weight" in state else 3,
            max_level=5 + len(added),
        )
    return backbone


def convert_cednet(checkpoint: Path, preset: str, output: Path, ema: bool) -> None:
    if output.exists():
        raise ValueError(f"{output} already exists: choose another directory for --output.")
    print(f"Reading {checkpoint} ...")
    state = cednet.read_checkpoint(checkpoint, ema=ema)
    model = model_for(state, preset)
    report = cednet.load_state(model, state)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model.save_to_preset(str(unfinished))
        os.replace(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    print(
        f"Loaded {len(report.loaded)} arrays into a {type(model).__name__} and saved it: "
        f'{type(model).__name__}.from_preset("{output}").'
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=("cednet",), help="whose weights these are")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--preset", required=True, help="architecture, such as cednet_next_tiny")
    parser.add_argument("--output", required=True, type=Path, help="preset directory to make")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights (model_ema)")
    arguments = parser.parse_args(argv)
    try:
        convert_cednet(arguments.checkpoint, arguments.preset, arguments.output, arguments.ema)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
