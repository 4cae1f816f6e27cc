"""Drawn predictions of a segmenter beside the truth."""

import io
import os
from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.draw_masks import draw_legend, draw_semantic
from keras_densepred.training.report import picture_sheet, write_atomically


def draw_segmentations(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    side: int = 400,
) -> None:
    """Draws truth (left) and predictions (right) of some images as one PNG with a legend.

    Args:
        images: (H, W, 3) uint8 RGB each.
        truth: (H, W) integers each, labels or 255 for ignored pixels.
        predictions: (H, W) integers each.
        class_names: by label; those that are to be seen are in the legend.
        path: of the PNG.
        side: longer side of each image on the sheet, in pixels.

    Raises:
        ImportError: if Pillow is not installed.
    """
    image_module = require("PIL.Image", "data")
    rows = []
    for image, *labels in zip(images, truth, predictions, strict=True):
        scale = side / max(image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
        rows.append(
            tuple(
                image_module.fromarray(draw_semantic(image, label, class_names)).resize(
                    size, image_module.Resampling.BILINEAR
                )
                for label in labels
            )
        )
    sheet = picture_sheet(rows, ("ground truth", "prediction"), side)
    seen = {int(label) for part in (*truth, *predictions) for label in np.unique(part)}
    legend = image_module.fromarray(draw_legend(sorted(seen), class_names, sheet.width))
    whole = image_module.new("RGB", (sheet.width, sheet.height + legend.height), "white")
    whole.paste(legend, (0, 0))
    whole.paste(sheet, (0, legend.height))
    buffer = io.BytesIO()
    whole.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
