"""Semantic labels drawn on an image, and a legend of their colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import class_colour, enlargement
from keras_densepred.data.records import IGNORE_LABEL

IGNORED_COLOUR = (255, 255, 255)
_BACKGROUND = "background"
_OPACITY = 0.6
_LEAST_WIDTH = 256  # of a legend above a picture, in pixels


Colour = tuple[int, int, int]


def label_colour(
    label: int, class_names: Sequence[str], colours: Sequence[Colour] | None = None
) -> Colour | None:
    """The colour of a semantic label: None for the background, which is not coloured.

    Args:
        label: label from 0, or `IGNORE_LABEL`.
        class_names: name of each label.
        colours: of each label, where the data set has its own.

    Returns:
        Red, green, blue, 0 to 255, or None.
    """
    if label == IGNORE_LABEL:
        return IGNORED_COLOUR
    if class_names[label] == _BACKGROUND:
        return None
    if colours is None:
        return class_colour(label)
    # Where the background stays gray, a class that VOC's palette has in gray would look like it.
    is_gray = len(set(colours[label])) == 1 and _BACKGROUND in class_names
    return class_colour(label) if is_gray else colours[label]


def draw_semantic(
    image: np.ndarray,
    semantic: np.ndarray,
    class_names: Sequence[str],
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Tints each pixel of a gray copy of an image in the colour of its class.

    The image's own colours would mix with those of the classes. Pixels of a class named
    "background" stay gray, ignored ones become nearly white.

    Args:
        image: `(H, W, 3)` uint8, RGB.
        semantic: `(H, W)` integers, labels or `IGNORE_LABEL`.
        class_names: name of each label.
        colours: of each label, where the data set has its own.

    Returns:
        `(H, W, 3)` uint8, RGB.
    """
    table = np.zeros((256, 3), np.float32)
    opacity = np.zeros((256, 1), np.float32)
    for label in np.unique(semantic).tolist():
        colour = label_colour(label, class_names, colours)
        if colour is not None:
            table[label], opacity[label] = colour, _OPACITY
    luminance = image @ np.array([0.299, 0.587, 0.114], np.float32)
    kept = luminance[..., None] * (1 - opacity[semantic])
    return np.round(kept + table[semantic] * opacity[semantic]).astype(np.uint8)


def with_legend(
    drawn: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Puts `draw_legend` above a picture; small pictures are enlarged first, so that it is wide.

    Args:
        drawn: `(H, W, 3)` uint8, RGB.
        labels: as of `draw_legend`.
        class_names: likewise.
        colours: likewise.

    Returns:
        `(height, s * W, 3)` uint8, RGB, `s` as of `draw_objects`; tall pictures that are narrower
        than the longest name have white beside them.
    """
    height, width = drawn.shape[:2]
    factor = enlargement(height, width)
    large = np.repeat(np.repeat(drawn, factor, axis=0), factor, axis=1)
    legend = draw_legend(labels, class_names, max(large.shape[1], _LEAST_WIDTH), colours)
    beside = legend.shape[1] - large.shape[1]
    padded = np.pad(large, ((0, 0), (0, beside), (0, 0)), constant_values=255)
    return np.concatenate([legend, padded])


def draw_legend(
    labels: Sequence[int],
    class_names: Sequence[str],
    width: int,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """A strip of coloured squares with the names of some classes. Requires Pillow, extra `data`.

    Args:
        labels: which classes, and `IGNORE_LABEL` if ignored pixels are to be explained.
        class_names: name of each label.
        width: of the strip in pixels; the entries take as many lines as they need.
        colours: of each label, where the data set has its own.

    Returns:
        `(height, width, 3)` uint8, RGB, black on white.
    """
    image_module = require("PIL.Image", "data")
    draw_module = require("PIL.ImageDraw", "data")
    font = require("PIL.ImageFont", "data").load_default(size=16)
    square, gap, line = 16, 8, 26
    entries, x, y = [], gap, 0
    for label in labels:
        name = "ignored" if label == IGNORE_LABEL else class_names[label]
        length = square + gap + round(font.getlength(name)) + 2 * gap
        if x > gap and x + length > width:
            x, y = gap, y + line
        entries.append((label, name, x, y))
        x += length
    strip = image_module.new("RGB", (width, y + line), "white")
    draw = draw_module.Draw(strip)
    for label, name, left, top in entries:
        box = [left, top + 5, left + square, top + 5 + square]
        # Tinted over gray as on the image; the background is an empty square.
        colour = label_colour(label, class_names, colours)
        if colour is not None:
            red, green, blue = (int(_OPACITY * tone + (1 - _OPACITY) * 128) for tone in colour)
            colour = red, green, blue
        draw.rectangle(box, fill=colour, outline="gray")
        draw.text((left + square + gap, top + 3), name, fill="black", font=font)
    return np.array(strip)
