"""Exports a trained model for another runtime, if wanted in 8-bit integers as well.

    KERAS_BACKEND=torch python tools/export.py runs/coco_yolo/model.keras --image-size 416 \\
        --output detector.onnx [--int8 COCO_DIR]

MODEL is a saved `.keras` model (detector, classifier, segmenter), or a preset of a backbone, by
name or directory. A detector's file decodes its boxes and suppresses; what goes in and comes out is
said in `keras_densepred.export.export_onnx`. `--int8` calibrates on images of a data set in COCO's
layout and writes FILE.int8.onnx beside the file; then sizes, times and what changes are printed.
The images are prepared as the recipes do: 0..1 for YOLOv3, else ImageNet's mean and deviation.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from keras_densepred import backbones, data, models
from keras_densepred.export import export_onnx, quantize_onnx
from tools.timing import onnx_files

CALIBRATION_IMAGES = 100
COMPARED_IMAGES = 32
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}


def main(argv: Sequence[str] | None = None) -> int:
    """Exports.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 after one sentence where it cannot be done.
    """
    options = _parse(argv)
    try:
        model = load(options.model)
        export_onnx(model, options.output, options.image_size)
        print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")
        if options.int8:
            _quantize(model, options)
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
    if not Path(name).is_file():
        raise ValueError(f"There is no file {name}: give a saved .keras model or a preset.")
    return keras.models.load_model(name, compile=False)


def _quantize(model: keras.Model, options: argparse.Namespace) -> None:
    small = options.output.with_suffix(".int8.onnx")
    quantize_onnx(options.output, small, _images(model, options, "train", CALIBRATION_IMAGES))
    print(f"{small}: {small.stat().st_size / 1e6:.2f} MB")
    images = list(_images(model, options, "val", COMPARED_IMAGES))
    for line in onnx_files.compare(options.output, small, images):
        print(line)


def _images(
    model: keras.Model, options: argparse.Namespace, split: str, number: int
) -> Iterator[np.ndarray]:
    """Batches of one prepared image."""
    train, val = data.open_detection(options.int8)
    batches = data.eval_batches(
        train if split == "train" else val,
        batch_size=1,
        image_size=options.image_size,
        stretch=isinstance(model, models.YOLOv3Detector),
        **(UNIT if isinstance(model, models.YOLOv3Detector) else IMAGENET),
    )
    return (batch["images"] for batch in itertools.islice(batches, number))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=".keras file, or preset of a backbone")
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="of the file")
    parser.add_argument("--int8", metavar="DATA_DIR", help="also write 8-bit, calibrated on this")
    parser.add_argument("--image-size", type=int, required=True, help="side in pixels")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
