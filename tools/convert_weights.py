"""Turns the weights of other code bases into preset directories that `from_preset` loads.

    python -m keras_densepred convert-weights cednet CHECKPOINT --preset NAME [--output DIR] [--ema]
    python -m keras_densepred convert-weights timm CHECKPOINT [--output DIR]
    python -m keras_densepred convert-weights darknet FILE --preset NAME
        [--classes N] [--output DIR]
    python -m keras_densepred convert-weights darknet FILE --preset NAME --detector NECK
        [--loss LOSS] [--cfg FILE] [--names FILE] [--output DIR]

CHECKPOINT is a `.pth` file (read as weights alone, nothing in it is run) or a `.safetensors` file:
of the CEDNet authors' code, plain, with averaged weights (`--ema`), or wrapped by mmdetection or
mmsegmentation; or of timm's cspdarknet53, cspresnet50 or cspresnext50. FILE is a `.weights` file of
the CSPNet authors' csdarknet53, csresnet50 or csresnext50 with its classifier, or with --detector
of a YOLOv3 on one of these, on yolov3_tiny (--detector tiny) or yolov3_tiny_prn (--detector prn).
What a checkpoint holds decides what is saved: a classifier, a pyramid, a backbone or a detector,
which `python -m keras_densepred predict`, `evaluate` and tools/export.py take. The .cfg file of the
weights' name is compared with the network and tells anchors and classes; the .names file beside
them names the classes. The default of DIR is the file's name without its ending.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from keras_densepred import backbones, command, convert, files, models, necks, saved
from tools import darknet_detector

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
    if backbones.DarknetTinyBackbone.architecture_preset_name(arguments.preset) is not None:
        neck = "prn" if arguments.preset.endswith("prn") else "tiny"
        raise ValueError(f"{arguments.preset} is of a detector: add --detector {neck}.")
    if backbones.CSPNetBackbone.architecture_preset_name(arguments.preset) is None:
        names = ", ".join(backbones.CSPNetBackbone.architecture_presets())
        raise ValueError(
            f"There is no architecture preset {arguments.preset!r}: choose one of {names}."
        )
    backbone = backbones.CSPNetBackbone.from_preset(arguments.preset)
    model = models.CSPNetImageClassifier(backbone, num_classes=arguments.classes or 1000)
    convert.darknet.load_weights(model, arguments.checkpoint)
    return model


def convert_darknet_detector(arguments: argparse.Namespace, output: pathlib.Path) -> None:
    """Writes the detector that a file of Darknet's makes, as a recipe does."""
    options = {} if arguments.loss is None else {"loss": arguments.loss}
    found = darknet_detector.load_detector(
        arguments.checkpoint,
        arguments.preset,
        arguments.detector,
        cfg=arguments.cfg,
        names=arguments.names,
        num_classes=arguments.classes or 80,
        **options,
    )
    # Darknet stretches images to the network's square, and only divides them.
    preprocessing = saved.Preprocessing(
        "detection", (0.0,) * 3, (255.0,) * 3, image_size=found.image_size, stretch=True
    )
    with files.replacing(output, "preset") as unfinished:
        found.model.backbone.save_to_preset(str(unfinished / "backbone"))
        found.model.save(unfinished / "detector.keras")
        saved.write_classes(unfinished / "classes.json", found)
        preprocessing.write(unfinished)
    checked = "like its configuration" if found.is_checked else "no .cfg file to compare it with"
    print(
        f"Loaded {len(found.model.weights)} arrays into a {type(found.model).__name__} of "
        f"{len(found.class_names)} classes, {found.image_size} px ({checked}), and saved it: "
        f"python -m keras_densepred predict {output} PICTURES"
    )


LOADERS = {"cednet": load_cednet, "timm": load_timm, "darknet": load_darknet}


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns 0, or 1 after one sentence where it cannot be done."""
    return command.run(_convert, argv)


def _convert(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=tuple(LOADERS), help="whose weights these are")
    parser.add_argument("checkpoint", type=files.expanded)
    parser.add_argument("--preset", help="architecture, such as cednet_next_tiny; timm's is found")
    parser.add_argument("--output", help="preset directory to make")
    parser.add_argument("--ema", action="store_true", help="CEDNet: the averaged weights")
    parser.add_argument("--classes", type=int, help="Darknet: their number, where no .cfg tells it")
    parser.add_argument("--detector", metavar="NECK", help="Darknet: a whole detector's neck")
    parser.add_argument("--loss", help="Darknet: of the detector, for its training and decoding")
    parser.add_argument("--cfg", type=files.expanded, help="Darknet: the configuration")
    parser.add_argument("--names", type=files.expanded, help="Darknet: the names of the classes")
    parser.add_argument("--debug", action="store_true", help=command.DEBUG_HELP)
    arguments = parser.parse_args(argv)
    if arguments.preset is None and arguments.family != "timm":
        raise ValueError(f"Weights of {arguments.family} need --preset, the architecture.")
    output = files.require_new_folder(
        arguments.output or arguments.checkpoint.with_suffix(""), inputs=[arguments.checkpoint]
    )
    if arguments.detector is not None and arguments.family != "darknet":
        raise ValueError(f"--detector is for Darknet's files, not for those of {arguments.family}.")
    print(f"Reading {arguments.checkpoint} ...")
    if arguments.detector is not None:
        convert_darknet_detector(arguments, output)
        return
    model = LOADERS[arguments.family](arguments)
    with files.replacing(output, "preset") as unfinished:
        model.save_to_preset(str(unfinished))
    print(
        f"Loaded {len(model.weights)} arrays into a {type(model).__name__} and saved it: "
        f'{type(model).__name__}.from_preset("{output}").'
    )


if __name__ == "__main__":
    sys.exit(main())
