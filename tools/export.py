"""Exports a trained model for another runtime, if wanted in 8-bit integers as well.

    KERAS_BACKEND=torch python tools/export.py runs/coco_yolo/preset/detector.keras \\
        --output detector.onnx [--int8 COCO_DIR]
    KERAS_BACKEND=tensorflow python tools/export.py detector.keras --format litert \\
        --weights int8 --image-size 416 --output detector.tflite

MODEL is a saved `.keras` model (detector, classifier, segmenter), or a preset of a backbone, by
name or directory. A detector's file decodes its boxes and suppresses; what goes in and comes out is
said in `keras_densepred.export`. The images' size is by default the one that the recipe wrote into
`preprocessing.json` beside the model.

From TensorFlow: onnx, saved_model, litert, openvino; from PyTorch: onnx, torch, openvino; from JAX:
saved_model. `--weights` is LiteRT's, and prints what float32 weights would give beside it.

`--int8` (of ONNX) calibrates on images of a data set in COCO's layout, prepared as
`preprocessing.json` says, and writes FILE.int8.onnx beside the file; then sizes, times and what
changes are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from keras_densepred import backbones, data, export
from keras_densepred.saved import load as trained
from keras_densepred.training import Preprocessing
from tools.timing import litert_files, onnx_files

CALIBRATION_IMAGES = 100
COMPARED_IMAGES = 32
FORMATS = {
    "onnx": export.export_onnx,
    "saved_model": export.export_saved_model,
    "litert": export.export_litert,
    "torch": export.export_torch,
    "openvino": export.export_openvino,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exports.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 after one sentence where it cannot be done.
    """
    options = _parse(argv)
    try:
        if options.int8 and options.format != "onnx":
            raise ValueError("--int8 is for --format onnx; LiteRT has --weights int8.")
        if options.weights != "float32" and options.format != "litert":
            raise ValueError("--weights is for --format litert.")
        side = _image_size(options)
        model = load(options.model)
        more = {"weights": options.weights} if options.format == "litert" else {}
        FORMATS[options.format](model, options.output, side, **more)
        print(f"{options.output}: {_megabytes(options.output):.2f} MB")
        if options.int8:
            _quantize(options, side)
        if options.weights != "float32":
            for line in litert_files.compare_weights(model, options.weights, side):
                print(line)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def load(name: str) -> keras.Model:
    """A saved model, or the backbone of a preset.

    Raises:
        ValueError: if there is neither.
    """
    if not name.endswith(".keras"):
        return backbones.load_backbone(name)
    return trained.load_model(trained.find_model(name))


def _preprocessing(name: str) -> Preprocessing | None:
    """What the recipe wrote beside a saved model."""
    path = Path(name)
    return trained.saved_preprocessing(path) if path.exists() else None


def _image_size(options: argparse.Namespace) -> int:
    saved = _preprocessing(options.model)
    side = options.image_size or (saved.image_size if saved else None)
    if side is None:
        raise ValueError(f"No image size is saved with {options.model}: give --image-size.")
    return side


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path, path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in set(files) if file.is_file()) / 1e6


def _quantize(options: argparse.Namespace, side: int) -> None:
    saved = _preprocessing(options.model)
    if saved is None:
        raise ValueError(
            f"There is no preprocessing.json beside {options.model}, by which --int8 prepares "
            "images: copy that of the run there."
        )
    saved = dataclasses.replace(saved.at_size(side), task="detection")
    train, val = data.open_detection(options.int8)
    small = options.output.with_suffix(".int8.onnx")
    export.quantize_onnx(options.output, small, _images(train, saved, CALIBRATION_IMAGES))
    print(f"{small}: {_megabytes(small):.2f} MB")
    images = list(_images(val, saved, COMPARED_IMAGES))
    for line in onnx_files.compare(options.output, small, images):
        print(line)


def _images(split: Any, preprocessing: Preprocessing, number: int) -> Iterator[np.ndarray]:
    """Batches of one prepared image."""
    batches = data.eval_batches(split, batch_size=1, **preprocessing.batch_options())
    return (batch["images"] for batch in itertools.islice(batches, number))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=".keras file, or preset of a backbone")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="of the file")
    parser.add_argument(
        "--weights", choices=export.LITERT_WEIGHTS, default="float32", help="of LiteRT's kernels"
    )
    parser.add_argument("--int8", metavar="DATA_DIR", help="also write 8-bit, calibrated on this")
    parser.add_argument("--image-size", type=int, help="side in pixels")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
