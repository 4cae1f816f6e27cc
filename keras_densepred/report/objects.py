"""Drawn predictions of a detector."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.readers.readable import readable_items
from keras_densepred.files import write_atomically
from keras_densepred.metrics import Found
from keras_densepred.report.sheet import picture_sheet, sheet_png


def draw_predictions(
    images: Sequence[np.ndarray],
    truth: Sequence[Mapping[str, np.ndarray]],
    predictions: Sequence[Mapping[str, np.ndarray]],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    min_confidence: float = 0.3,
    chosen: str = "",
    side: int = 512,
) -> None:
    """Draws ground truth (left) and predictions (right) of some images as one PNG sheet.

    Args:
        images: (H, W, 3) uint8 RGB each.
        truth: `{"boxes": (N, 4) xyxy in pixels of the image, "labels": (N,)}` each, and of
            instances `"masks": (N, H, W)` bool.
        predictions: the same with `"confidence": (N,)`.
        class_names: by label.
        path: of the PNG.
        min_confidence: predictions below it are not drawn.
        chosen: how that was chosen, written behind it.
        side: longer side of each image on the sheet, in pixels; at least 512, for legible names.

    Raises:
        ImportError: if Pillow is not installed.
    """
    image_module = require("PIL.Image", "data")
    rows = []
    for image, real, found in zip(images, truth, predictions, strict=True):
        scale = side / max(image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
        bilinear = image_module.Resampling.BILINEAR
        small = np.asarray(image_module.fromarray(image).resize(size, bilinear))
        sure = np.asarray(found["confidence"]) >= min_confidence
        left = draw_objects(
            small,
            real["boxes"] * scale,
            real["labels"],
            class_names,
            masks=_resized_masks(real.get("masks"), small),
            note="no object",
        )
        right = draw_objects(
            small,
            found["boxes"][sure] * scale,
            found["labels"][sure],
            class_names,
            scores=found["confidence"][sure],
            masks=_resized_masks(found["masks"][sure] if "masks" in found else None, small),
            note="nothing found",
        )
        rows.append((image_module.fromarray(left), image_module.fromarray(right)))
    least = f"{min_confidence:g} {chosen and f'({chosen})'}".rstrip()
    titles = ("ground truth", f"predictions, confidence from {least}")
    write_atomically(path, sheet_png(picture_sheet(rows, titles, side)))


def samples_of(
    found: Found, dataset: Any, count: int
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Takes images from all over a split: neighbours are often of one scene.

    Args:
        found: of `metrics.find_objects`.
        dataset: the split.
        count: of images.

    Returns:
        Images that can be read, objects and what is found, as `draw_predictions` takes them.
    """
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    records = list(readable_items(dataset, chosen))
    truth = []
    for record in records:
        objects = {"boxes": record.boxes, "labels": record.labels}
        truth.append(objects if record.masks is None else {**objects, "masks": record.masks})
    predictions = [found.on_image(record.image_id, dataset.category_ids) for record in records]
    return [record.image for record in records], truth, predictions


def _resized_masks(masks: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    """`(N, H, W)` masks at the size of an image, by nearest neighbours."""
    if masks is None:
        return None
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(image.shape[:2], masks.shape[1:], strict=True)
    )
    return masks[:, rows].take(columns, axis=2)
