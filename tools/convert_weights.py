"""Turns the weights of other code bases into preset directories that `from_preset` loads.

    python tools/convert_weights.py cednet CHECKPOINT --preset NAME [--output DIR] [--ema]
    python tools/convert_weights.py timm CHECKPOINT [--output DIR]
    python tools/convert_weights.py darknet FILE --preset NAME [--classes N] [--output DIR]

CHECKPOINT is a `.pth` file (read as weights alone, nothing in it is run) or a `.safetensors` file:
of the CEDNet authors' code, plain, with averaged weights (`--ema`), or wrapped by mmdetection or
mmsegmentation; or of timm's cspdarknet53, cspresnet50 or cspresnext50. FILE is a `.weights` file of
the CSPNet authors' csdarknet53, csresnet50 or csresnext50 with its classifier. What a checkpoint
holds decides what is saved: a classifier, a pyramid or a backbone. The default of DIR is the file's
name without its ending.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_densepred import backbones, command, convert, files, models, necks

if TYPE_CHECKING:
    import keras


def model_for(state: dict, preset: str) -> keras.Model:
    """The CEDNet model of the architecture `preset` that has the parts `state` has weights of."""
    if backbones.CEDNetBackbone.architecture_preset_name(preset) is None:
        names = ", ".join(backbones.CEDNetBackbone.architecture_presets())
        raise ValueError(f"There is no architecture preset {preset!r}: choose one of {names}.")
    stages = [int(m[1]) for key in state if (m := re.match(r"stages\.(\d+)\.", key))]
    last = max(stages, default=0)
    backbone = backbones.CEDNetBackbone.from_preset(
        preset, final_decoder=any(key.startswith(f"stages.{last}.1.") for key in state)
    )
    if "heads.0.weight" in state:
        return models.CEDNetImageClassifier(backbone, num_classes=len(state["heads.0.weight"]))
    if "reduce_convs.0.0.weight" in state:
        added = {key.split(".")[1] for key in state if key.startswith("add_blocks.")}
        return necks.DetectionPyramid(
            backbone,
            width=len(state["reduce_convs.0.0.weight"]),
            min_level=2 if "reduce_c2.0.weight" in state else 3,
            max_level=5 + len(added),
        )
    return backbone


def load_cednet(arguments: argparse.Namespace) -> keras.Model:
    """The model that a checkpoint of the CEDNet authors' code makes."""
    state = convert.state.read_checkpoint(arguments.checkpoint, ema=arguments.ema)
    model = model_for(state, arguments.preset)
    convert.cednet.load_state(model, state)
    return model


def load_timm(arguments: argparse.Namespace) -> keras.Model:
    """The backbone, or classifier if there is a head, that a checkpoint of timm's makes."""
    state = convert.state.read_checkpoint(arguments.checkpoint)
    model = backbones.CSPNetBackbone.from_preset(arguments.preset or convert.timm.preset_of(state))
    if "head.fc.weight" in state:
        model = models.CSPNetImageClassifier(model, num_classes=len(state["head.fc.weight"]))
    convert.timm.load_state(model, state)
    return model


def load_darknet(arguments: argparse.Namespace) -> keras.Model:
    """The classifier that a file of Darknet's makes."""
    if backbones.CSPNetBackbone.architecture_preset_name(arguments.preset) is None:
        names = ", ".join(backbones.CSPNetBackbone.architecture_presets())
        raise ValueError(
            f"There is no architecture preset {arguments.preset!r}: choose one of {names}."
        )
    backbone = backbones.CSPNetBackbone.from_preset(arguments.preset)
    model = models.CSPNetImageClassifier(backbone, num_classes=arguments.classes)
    convert.darknet.load_weights(model, arguments.checkpoint)
    return model


LOADERS = {"cednet": load_cednet, "timm": load_timm, "darknet": load_darknet}


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns 0, or 1 after one sentence where it cannot be done."""
    return command.run(_convert, argv)


def _convert(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=tuple(LOADERS), help="whose weights these are")
    parser.add_argument("checkpoint", type=files.expanded)
    parser.add_argument("--preset", help="architecture, such as cednet_next_tiny; timm's is found")
    parser.add_argument("--output", help="preset directory to make")
    parser.add_argument("--ema", action="store_true", help="CEDNet: the averaged weights")
    parser.add_argument("--classes", type=int, default=1000, help="Darknet: of the classifier")
    parser.add_argument("--debug", action="store_true", help=command.DEBUG_HELP)
    arguments = parser.parse_args(argv)
    if arguments.preset is None and arguments.family != "timm":
        raise ValueError(f"Weights of {arguments.family} need --preset, the architecture.")
    output = files.require_new_folder(
        arguments.output or arguments.checkpoint.with_suffix(""), inputs=[arguments.checkpoint]
    )
    print(f"Reading {arguments.checkpoint} ...")
    model = LOADERS[arguments.family](arguments)
    with files.replacing(output, "preset") as unfinished:
        model.save_to_preset(str(unfinished))
    print(
        f"Loaded {len(model.weights)} arrays into a {type(model).__name__} and saved it: "
        f'{type(model).__name__}.from_preset("{output}").'
    )


if __name__ == "__main__":
    sys.exit(main())
