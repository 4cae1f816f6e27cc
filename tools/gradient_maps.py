"""Gradient maps and important regions of two trained detectors, as in CEDNet's appendix B.

    KERAS_BACKEND=torch python tools/gradient_maps.py runs/a/preset/detector.keras \\
        runs/b/preset/detector.keras --data-dir COCO_DIR --output gradients [--names A B]

The detectors are saved `.keras` models (RetinaNet in either host, YOLOv3, the two-stage ones) of
the data set's classes. `--data-dir` is a folder in COCO's layout, whose validation images are
looked at, each prepared as `preprocessing.json` beside the model says; images without objects are
passed over. Four files are written:

    gradient_maps.png    the images whose detection quality differs most, and both detectors' maps
    important_area.png   area of the important region against the threshold
    quality.csv          each image's detection quality and its areas at thresholds 0.1, 0.2, 0.5
    important_area.csv   the lines of the second figure

What a detection quality, a gradient map and an important region are: see
`keras_densepred.analysis.gradient_maps`. Maps of all images are held in memory, 2 bytes a pixel.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from keras_densepred import data, models
from keras_densepred.analysis import gradient_maps
from keras_densepred.analysis.gradient_figures import (
    GradientRow,
    draw_gradient_maps,
    draw_important_areas,
)
from keras_densepred.data.boxes import cut_by_boxes
from keras_densepred.files import claim_folder, write_atomically
from keras_densepred.saved.opening import load_model, saved_preprocessing
from keras_densepred.saved.preprocessing import Preprocessing

MASK_SIZE = 112  # of an object's mask as a target, as in recipes/coco_mask_rcnn.py
LISTED_THRESHOLDS = (0.1, 0.2, 0.5)
Results = list[gradient_maps.ImageGradient]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both detectors and writes figures and tables.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 after one sentence where it cannot be done.
    """
    options = _parse(argv)
    names = options.names or _names(options.models)
    try:
        detectors = [load(path) for path in options.models]
        with_masks = any(getattr(model, "with_masks", False) for model in detectors)
        _, dataset = data.open_detection(options.data_dir, with_masks=with_masks)
        for path, model in zip(options.models, detectors, strict=True):
            _require_classes(path, model, dataset)
        prepared_by = [preprocessing(path, options.image_size) for path in options.models]
        with claim_folder(
            options.output,
            "gradient-maps",
            inputs=[*options.models, options.data_dir],
            overwrite=options.overwrite,
        ) as folder:
            options.output = folder.path
            results = []
            for name, prepared, model in zip(names, prepared_by, detectors, strict=True):
                print(f"{name}: gradients of {min(options.images, len(dataset)):,} images ...")
                results.append(run(model, prepared, dataset, options.images))
            results = _in_order(results)
            if not results[0]:
                raise ValueError(f"None of the images of {options.data_dir} has objects to detect.")
            _write(options, names, results, dataset)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, found in zip(names, results, strict=True):
        quality = np.mean([item.quality for item in found])
        print(f"{name}: mean detection quality {quality:.3f} on {len(found):,} images with objects")
    print(f"Figures and tables are in {options.output}.")
    return 0


def load(path: Path) -> keras.Model:
    """A saved detector, with the losses that it was trained with.

    Raises:
        ValueError: if there is none.
    """
    if path.suffix != ".keras" or not path.is_file():
        raise ValueError(f"There is no saved .keras model at {path}: give a trained detector.")
    model = load_model(path, compile=True)
    if not isinstance(model, models.Detector):
        raise ValueError(f"{path} holds a {type(model).__name__}: give a detector of this package.")
    return model


def preprocessing(path: Path, image_size: int | None) -> Preprocessing:
    """How the recipe prepared the images of a detector, at another size if one is given.

    Raises:
        ValueError: if it did not say.
    """
    saved = saved_preprocessing(path)
    if saved is None:
        raise ValueError(
            f"There is no preprocessing.json beside {path}, by which images are prepared: copy "
            "that of the run there."
        )
    return saved if image_size is None else saved.at_size(image_size)


def run(model: keras.Model, prepared: Preprocessing, dataset: Any, number: int) -> Results:
    """Quality and gradient map of the first images."""
    batches = data.eval_batches(dataset, batch_size=1, **prepared.batch_options())
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}

    def masks(image_id: int) -> dict[str, np.ndarray]:
        record = dataset[index_of[image_id]]
        wanted = ~record.crowd
        cut = cut_by_boxes(record.masks[wanted], record.boxes[wanted], MASK_SIZE)
        target = np.zeros((1, batches.max_boxes, MASK_SIZE, MASK_SIZE), np.uint8)
        target[0, : len(cut)] = cut
        return {"masks": target}

    add_targets = masks if getattr(model, "with_masks", False) else None
    try:
        return list(
            gradient_maps.image_gradients(
                model, itertools.islice(batches, number), dataset, add_targets
            )
        )
    finally:
        batches.close()


def _require_classes(path: Path, model: keras.Model, dataset: Any) -> None:
    if model.num_classes != len(dataset.class_names):
        raise ValueError(
            f"{path} detects {model.num_classes} classes and the data set has "
            f"{len(dataset.class_names)}: give the data that it was trained for."
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """What tells the files apart: their names, else their folders'."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    folders = [path.resolve().parent.name for path in paths]
    return folders if len(set(folders)) == len(folders) else [str(path) for path in paths]


def _in_order(results: list[Results]) -> list[Results]:
    """The same images for both, which only differ if a detector's input passes some over."""
    common = set.intersection(*({item.image_id for item in found} for found in results))
    return [
        sorted((item for item in found if item.image_id in common), key=lambda item: item.image_id)
        for found in results
    ]


def _write(
    options: argparse.Namespace, names: Sequence[str], results: list[Results], dataset: Any
) -> None:
    areas = {
        name: np.array([gradient_maps.important_area(item.gradient_map) for item in found])
        for name, found in zip(names, results, strict=True)
    }
    thresholds = gradient_maps.THRESHOLDS
    draw_important_areas(thresholds, areas, options.output / "important_area.png")
    means = [shares.mean(axis=0) for shares in areas.values()]
    table = zip(thresholds, *means, strict=True)
    _write_csv(
        options.output / "important_area.csv",
        ["threshold", *names],
        [[f"{t:.2f}", *(f"{x:.6g}" for x in line)] for t, *line in table],
    )

    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    images = {item["id"]: item for item in dataset.ground_truth()["images"]}
    heading = ["image_id", "file_name"]
    for name in names:
        heading += [f"{name} quality", *(f"{name} area {t}" for t in LISTED_THRESHOLDS)]
    lines = []
    for pair in zip(*results, strict=True):
        line = [pair[0].image_id, images[pair[0].image_id].get("file_name", "")]
        for item in pair:
            shares = gradient_maps.important_area(item.gradient_map, LISTED_THRESHOLDS)
            line += [f"{item.quality:.4f}", *(f"{share:.6g}" for share in shares)]
        lines.append(line)
    _write_csv(options.output / "quality.csv", heading, lines)

    rows = []
    for pair in sorted(zip(*results, strict=True), key=_difference)[: options.rows]:
        record = dataset[index_of[pair[0].image_id]]
        maps, qualities = zip(*((item.gradient_map, item.quality) for item in pair), strict=True)
        rows.append(GradientRow(record.image, record.boxes, record.labels, maps, qualities))
    draw_gradient_maps(rows, names, dataset.class_names, options.output / "gradient_maps.png")


def _difference(pair: tuple[gradient_maps.ImageGradient, ...]) -> float:
    """Orders images by how much the detectors' quality differs, most first."""
    return -abs(pair[0].quality - pair[1].quality)


def _write_csv(path: Path, heading: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(lines)
    write_atomically(path, text.getvalue().encode())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs=2, help="two .keras files of detectors")
    parser.add_argument("--data-dir", required=True, help="root of a COCO tree with train and val")
    parser.add_argument(
        "--image-size", type=int, help="side of the input in pixels, if not as in training"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="even if others' files are there")
    parser.add_argument("--names", nargs=2, help="of the detectors; by default of their files")
    parser.add_argument("--images", type=int, default=100, help="validation images to look at")
    parser.add_argument("--rows", type=int, default=4, help="images in the first figure")
    options = parser.parse_args(argv)
    if min(options.image_size or 1, options.images, options.rows) < 1:
        parser.error("--image-size, --images and --rows must be positive")
    if options.names and options.names[0] == options.names[1]:
        parser.error("--names must differ")
    return options


if __name__ == "__main__":
    sys.exit(main())
