"""Exports a trained model for another runtime, if wanted in 8-bit integers as well.

    KERAS_BACKEND=torch python -m keras_densepred export runs/mine --output detector.onnx \\
        [--int8 COCO]
    KERAS_BACKEND=tensorflow python -m keras_densepred export detector.keras --format litert \\
        --weights int8 --image-size 416 --output detector.tflite

MODEL is a run's folder, its preset, a saved `.keras` model (detector, classifier, segmenter), or a
preset of a backbone, by name or directory. A detector's file decodes its boxes and suppresses; what
goes in and comes out is said in `keras_densepred.export`. The images' size is by default the one
that the recipe wrote into `preprocessing.json` beside the model.

From TensorFlow: onnx, saved_model, litert, openvino; from PyTorch: onnx, torch, openvino; from JAX:
saved_model. `--weights` is LiteRT's, and prints what float32 weights would give beside it.

`--dynamic-batch` and `--dynamic-size` leave the number and the size of the images open, where the
model allows it (not of litert): sides are multiples of the model's divisor, from PyTorch of 32.

`--format keras` writes a folder like a run's `preset/`, for prediction alone: without the optimizer
that files of earlier versions hold, and with `--weights float16` half as large.

`--int8` (of ONNX) calibrates on images of a data set, in a layout that recipes read, prepared as
`preprocessing.json` says, and writes FILE.int8.onnx beside the file; then sizes, times and what
changes are printed, with the average precision of both on the validation images where they are few.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_densepred import backbones, command, data, export, files, metrics, models, saved
from tools.timing import litert_files, onnx_files

if TYPE_CHECKING:
    import keras
    import numpy as np

CALIBRATION_IMAGES = 100
COMPARED_IMAGES = 32
EVALUATED_IMAGES = 500  # at most; two files take 20 s for them
FORMATS = ("onnx", "saved_model", "litert", "torch", "openvino", "keras")
DESCRIBED = ("onnx", "openvino", "saved_model", "litert")  # say their classes and their input
DYNAMIC = ("onnx", "openvino", "saved_model", "torch")  # may leave open what images they take
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert", ".keras": "keras"}
WEIGHTS = {  # how kernels may be stored
    "litert": ("float32", "float16", "int8"),
    "keras": ("float32", "float16"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exports.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 after one sentence where it cannot be done.
    """
    return command.run(_export, argv)


def _export(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    if options.int8 and options.format != "onnx":
        raise ValueError("--int8 is for --format onnx; LiteRT has --weights int8.")
    if options.weights not in WEIGHTS.get(options.format, ("float32",)):
        raise ValueError(
            f"--weights {options.weights} is not for --format {options.format}: litert has float16 "
            "and int8, keras float16."
        )
    dynamic = options.dynamic_batch or options.dynamic_size
    if options.with_preprocessing and (options.format != "onnx" or options.int8 or dynamic):
        raise ValueError(
            "--with-preprocessing is for --format onnx, without --int8, --dynamic-batch and "
            "--dynamic-size: it takes one photograph, of any size."
        )
    if dynamic and options.format not in DYNAMIC:
        raise ValueError(
            f"--dynamic-batch and --dynamic-size are for --format {', '.join(DYNAMIC)}."
        )
    options.output = _output(options)
    _require_no_other_format(options.output, options.format)
    if options.format == "keras":
        saved.save_copy(saved.open_model(options.model), options.output, options.weights)
        print(f"{options.output}: {_megabytes(options.output):.2f} MB")
        return
    model = export.in_float32(load(options.model))
    side = _image_size(options)
    saved.require_size(model, side)
    if options.int8 and isinstance(model, models.rcnn.model.TwoStageDetector):
        raise ValueError(
            f"--int8 is for detectors of one stage: a {type(model).__name__} computes boxes in its "
            "midst, which 8 bits would move. Leave it out."
        )
    # Looked at before anything is written.
    splits = _pictures(options.int8) if options.int8 else ()
    more: dict[str, Any] = {"weights": options.weights} if options.format == "litert" else {}
    if options.format in DESCRIBED:
        more["description"] = _description(options, model, side)
    if options.dynamic_batch:
        more["batch_size"] = None
    size = None if options.dynamic_size else side
    getattr(export, f"export_{options.format}")(model, options.output, size, **more)
    if options.with_preprocessing:
        export.add_preprocessing(options.output)
    print(f"{options.output}: {_megabytes(options.output):.2f} MB")
    if options.int8:
        _quantize(options, side, *splits)
    if options.weights != "float32":
        for line in litert_files.compare_weights(model, options.weights, side):
            print(line)


def load(name: str) -> keras.Model:
    """A saved model, whatever a recipe writes, or the backbone of a preset.

    Raises:
        ValueError: if there is neither.
    """
    if not files.expanded(name).exists() or saved.is_backbone(name):
        return backbones.load_backbone(name)
    return saved.load_model(saved.find_model(name))


def _description(
    options: argparse.Namespace, model: keras.Model, side: int
) -> dict[str, str] | None:
    """What the file says about itself; None of a model with nothing beside it."""
    preprocessing = _preprocessing(options.model)
    if preprocessing is None:
        if options.with_preprocessing:
            raise ValueError(
                f"There is no preprocessing.json beside {options.model}, by which "
                "--with-preprocessing prepares images: copy that of the run there."
            )
        return None
    classes = _classes(options.model)
    labels = tuple(range(model.num_classes))
    resize = "stretch" if preprocessing.stretch else "fit"
    return export.describe(
        task=preprocessing.task,
        class_names=classes.class_names if classes else [f"class_{label}" for label in labels],
        category_ids=classes.category_ids if classes else labels,
        mean=preprocessing.mean,
        std=preprocessing.std,
        size=(side, side),
        has_masks=getattr(model, "with_masks", False),
        resize="crop" if preprocessing.task == "classification" else resize,
    )


def _classes(name: str) -> Any:
    """What the recipe says of the classes of a saved model; None if it does not."""
    path = saved.find_model(name)
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    return next(filter(None, map(saved.read_classes, folders)), None)


def _output(options: argparse.Namespace) -> Path:
    """The output, after everything that will be written has been looked at."""
    inputs = [options.model] if files.expanded(options.model).exists() else []
    output = files.expanded(options.output)
    if options.format in ("saved_model", "keras"):
        return files.require_new_folder(output, inputs=inputs, overwrite=options.overwrite)
    beside = {"openvino": [output.with_suffix(".bin")]}.get(options.format, [])
    if options.int8:
        beside.append(_int8_path(output))
    for path in (output, *beside):
        files.require_new_file(path, inputs=inputs, overwrite=options.overwrite)
    return output


def _require_no_other_format(output: Path, format: str) -> None:
    named = SUFFIXES.get(output.suffix, format)
    if named != format:
        folder = ", which writes a folder" if named == "keras" else ""
        raise ValueError(
            f"--output {output} is called as --format {named}{folder}, and --format is {format}: "
            "give that, or another name."
        )


def _int8_path(output: Path) -> Path:
    return output.with_suffix(".int8.onnx")


def _preprocessing(name: str) -> saved.Preprocessing | None:
    """What the recipe wrote beside a saved model."""
    path = files.expanded(name)
    if not path.exists() or saved.is_backbone(name):
        return None
    return saved.saved_preprocessing(saved.find_model(name))


def _image_size(options: argparse.Namespace) -> int:
    if options.image_size is not None:
        return options.image_size
    preprocessing = _preprocessing(options.model)
    if preprocessing is None or preprocessing.image_size is None:
        raise ValueError(f"No image size is saved with {options.model}: give --image-size.")
    return preprocessing.image_size


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path, path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in set(files) if file.is_file()) / 1e6


def _pictures(folder: str) -> tuple[Any, Any]:
    """The splits that `--int8` calibrates and measures on."""
    try:
        return data.open_detection(folder)
    except data.DatasetError as error:
        raise ValueError(
            "--int8 needs pictures with annotations, by which it measures what 8 bits change: "
            f"{error}"
        ) from None


def _quantize(options: argparse.Namespace, side: int, train: Any, val: Any) -> None:
    preprocessing = _preprocessing(options.model)
    if preprocessing is None:
        raise ValueError(
            f"There is no preprocessing.json beside {options.model}, by which --int8 prepares "
            "images: copy that of the run there."
        )
    finds_objects = preprocessing.task == "detection"
    preprocessing = dataclasses.replace(preprocessing.at_size(side), task="detection")
    small = _int8_path(options.output)
    export.quantize_onnx(options.output, small, _images(train, preprocessing, CALIBRATION_IMAGES))
    print(f"{small}: {_megabytes(small):.2f} MB")
    images = list(_images(val, preprocessing, COMPARED_IMAGES))
    for line in onnx_files.compare(options.output, small, images):
        print(line)
    if finds_objects and len(val) <= EVALUATED_IMAGES:
        classes = _classes(options.model)
        if classes is None or tuple(classes.class_names) != tuple(val.class_names):
            print(f"No average precision: {options.int8} has other classes than the model.")
        else:
            _evaluate((options.output, small), val, preprocessing)


def _evaluate(paths: Sequence[Path], val: Any, preprocessing: saved.Preprocessing) -> None:
    """Prints the average precision of files."""
    batches = data.eval_batches(val, batch_size=1, **preprocessing.batch_options())
    for path in paths:
        results = metrics.evaluate_detector(onnx_files.Predictor(path), batches, val)
        print(
            f"{path}: AP {results['AP']:.3f}, AP50 {results['AP50']:.3f} on {len(val):,} "
            "validation images"
        )


def _images(split: Any, preprocessing: saved.Preprocessing, number: int) -> Iterator[np.ndarray]:
    """Batches of one prepared image."""
    batches = data.eval_batches(split, batch_size=1, **preprocessing.batch_options())
    return (batch["images"] for batch in itertools.islice(batches, number))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="run, its preset, .keras file, or preset of a backbone")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="of the file")
    choices = WEIGHTS["litert"]
    parser.add_argument("--weights", choices=choices, default="float32", help="litert's, keras'")
    parser.add_argument("--int8", metavar="DATA_DIR", help="also write 8-bit, calibrated on this")
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="of a detector's ONNX file: from uint8 pixels of any size to boxes in those pixels",
    )
    parser.add_argument("--image-size", type=int, help="side in pixels")
    parser.add_argument("--dynamic-batch", action="store_true", help="for any number of images")
    parser.add_argument("--dynamic-size", action="store_true", help="for images of any size")
    parser.add_argument("--output", required=True, help="file (saved_model, keras: folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--debug", action="store_true", help=command.DEBUG_HELP)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
