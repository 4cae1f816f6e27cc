"""Boxes, labels and masks drawn on an image, for a person to look at."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.tags import place_tags

_LEGIBLE_SIDE = 512  # Pixels; an image with a shorter long side is enlarged so that text fits.
_MASK_OPACITY = 0.4


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour for a label, the same in every image; neighbouring labels differ most.

    Args:
        label: label from 0.

    Returns:
        Red, green, blue, 0 to 255.
    """
    # Golden-ratio steps around the colour circle never repeat; three brightnesses tell apart
    # the hues that come close after a dozen classes.
    hue = (0.02 + label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.8, 0.92)[label % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    scores: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    note: str = "",
    remarks: Sequence[str] | None = None,
    enlarge: bool = True,
) -> np.ndarray:
    """Draws objects on a copy of an image. Requires Pillow, extra `data`.

    A name stands where it covers neither another one nor a small object; where there is no such
    place, the colour alone tells the class.

    Args:
        image: `(H, W, 3)` uint8, RGB.
        boxes: `(N, 4)` xyxy in pixels of `image`.
        labels: `(N,)` integers from 0.
        class_names: name of each label; a single one is not written.
        scores: `(N,)` confidences between 0 and 1, written behind the names.
        crowd: `(N,)` bool; names of crowd regions are followed by "crowd".
        masks: `(N, H, W)` bool, tinted.
        remarks: of each object, written behind its name and score.
        note: written in the upper left corner of a picture without any object.
        enlarge: whether a small image is enlarged, so that names can be read.

    Returns:
        `(s * H, s * W, 3)` uint8, RGB; the whole number `s` is 1 for images whose long side has
        at least 512 pixels, and enough to come near that for smaller ones; 1 without `enlarge`.
    """
    pil = require("PIL.Image", "data")
    pil_draw = require("PIL.ImageDraw", "data")
    pil_font = require("PIL.ImageFont", "data")
    # Large objects first, so that small ones and their names stay visible.
    extent = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-extent, kind="stable")
    if masks is not None:
        image = image.copy()
        for i in order:
            colour = np.array(class_colour(int(labels[i])), np.float32)
            tinted = image[masks[i]] * (1 - _MASK_OPACITY) + _MASK_OPACITY * colour
            image[masks[i]] = tinted.astype(np.uint8)
            image[_outline(masks[i])] = colour.astype(np.uint8)  # tells neighbours apart

    height, width = image.shape[:2]
    factor = enlargement(height, width) if enlarge else 1
    canvas = pil.fromarray(image).resize((width * factor, height * factor), pil.BILINEAR)
    draw = pil_draw.Draw(canvas)
    long_side = max(canvas.size)
    line = max(2, round(long_side / 400))
    # Smaller names where there are many, which would cover the image.
    font = pil_font.load_default(size=max(10, round(long_side / (45 if len(boxes) < 40 else 60))))
    if note and not len(boxes):
        draw.rectangle(draw.textbbox((2 * line, 2 * line), note, font=font), fill="black")
        draw.text((2 * line, 2 * line), note, fill="white", font=font)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    named, extents = [], []
    for i in order:
        outline = class_colour(int(labels[i]))
        draw.rectangle(corners[i].tolist(), outline=outline, width=line if masks is None else 1)
        # A single class is not named on every object.
        text = class_names[int(labels[i])] if len(class_names) > 1 else ""
        if scores is not None:
            text = f"{text} {scores[i]:.2f}".strip()
        if crowd is not None and crowd[i]:
            text = f"{text} (crowd)".strip()
        if remarks is not None:
            text = f"{text} {remarks[i]}".strip()
        if text:
            named.append((i, text))
            extents.append(draw.textbbox((0, 0), text, font=font))
    pad = line
    sizes = [(x2 - x1 + 2 * pad, y2 - y1 + 2 * pad) for x1, y1, x2, y2 in extents]
    places = place_tags(corners[[i for i, _ in named]], sizes, canvas.size)
    for (i, text), (left, top, _, _), size, place in zip(
        named, extents, sizes, places, strict=True
    ):
        if place is None:
            continue
        x, y = place
        fill = class_colour(int(labels[i]))
        draw.rectangle([x, y, x + size[0] - 1, y + size[1] - 1], fill=fill)
        luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
        ink = "black" if luminance > 140 else "white"
        draw.text((x + pad - left, y + pad - top), text, fill=ink, font=font)
    return np.array(canvas)


def enlargement(height: int, width: int) -> int:
    """The whole number by which a picture is enlarged so that names can be read on it."""
    return max(1, round(_LEGIBLE_SIDE / max(height, width)))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside one that is not in it; beyond the image it goes on."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
