"""Pairs of images laid out on one picture."""

import io
from collections.abc import Sequence
from typing import Any

from keras_densepred._optional import require

_GAP, _TITLE, _CAPTION = 6, 30, 24  # pixels


def picture_sheet(
    rows: Sequence[tuple[Any, Any]],
    titles: tuple[str, str],
    side: int,
    captions: Sequence[str] | None = None,
) -> Any:
    """Lays out pairs of Pillow images below two titles, two pairs beside each other.

    Args:
        rows: the pairs.
        titles: above the first and the second images.
        side: the longest that an image is, in pixels.
        captions: a line above each pair.
    """
    image_module = require("PIL.Image", "data")
    draw_module = require("PIL.ImageDraw", "data")
    font_module = require("PIL.ImageFont", "data")
    font, small_font = font_module.load_default(size=18), font_module.load_default(size=14)
    widths = [max((pair[place].width for pair in rows), default=side) for place in (0, 1)]
    widths = [
        max(width, round(font.getlength(title)) + _GAP)  # of narrow pictures too
        for width, title in zip(widths, titles, strict=True)
    ]
    above = _CAPTION if captions else 0
    pair_width = sum(widths) + _GAP
    across = 1 if len(rows) < 2 else 2
    lines = [range(start, min(start + across, len(rows))) for start in range(0, len(rows), across)]
    heights = [above + max(panel.height for i in line for panel in rows[i]) for line in lines]
    sheet = image_module.new(
        "RGB",
        (
            across * pair_width + (across + 1) * 3 * _GAP,
            _TITLE + sum(heights) + _GAP * (len(heights) + 1),
        ),
        "white",
    )
    draw = draw_module.Draw(sheet)
    top = _TITLE
    for line, height in zip(lines, heights, strict=True):
        for column, number in enumerate(line):
            left = 3 * _GAP + column * (pair_width + 3 * _GAP)
            if captions:
                caption = _cut(captions[number], small_font, pair_width)
                draw.text((left, top), caption, fill="dimgray", font=small_font)
            for panel, title, width in zip(rows[number], titles, widths, strict=True):
                draw.text((left, 4), title, fill="black", font=font)
                sheet.paste(panel, (left, top + above))
                left += width + _GAP
        top += height + _GAP
    return sheet


def _cut(text: str, font: Any, width: int) -> str:
    """The text, or as much of its end as fits: names of files differ there."""
    start = 0
    while font.getlength(shown := ("…" if start else "") + text[start:]) > width:
        start += 1
    return shown


def sheet_png(sheet: Any) -> bytes:
    """A Pillow image as a PNG."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
