"""Pairs of images laid out on one picture."""

from collections.abc import Sequence
from typing import Any

from keras_densepred._optional import require


def picture_sheet(rows: Sequence[tuple[Any, Any]], titles: tuple[str, str], side: int) -> Any:
    """Lays out pairs of Pillow images below two titles, two pairs beside each other."""
    image_module = require("PIL.Image", "data")
    draw_module = require("PIL.ImageDraw", "data")
    font = require("PIL.ImageFont", "data").load_default(size=18)
    gap, title_height = 6, 30
    pair_width = 2 * side + gap
    across = 1 if len(rows) < 2 else 2
    lines = [rows[start : start + across] for start in range(0, len(rows), across)]
    heights = [max(panel.height for row in line for panel in row) for line in lines]
    sheet = image_module.new(
        "RGB",
        (
            across * pair_width + (across + 1) * 3 * gap,
            title_height + sum(heights) + gap * (len(heights) + 1),
        ),
        "white",
    )
    draw = draw_module.Draw(sheet)
    top = title_height
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            left = 3 * gap + column * (pair_width + 3 * gap)
            for panel, title in zip(row, titles, strict=True):
                draw.text((left, 4), title, fill="black", font=font)
                sheet.paste(panel, (left, top))
                left += side + gap
        top += height + gap
    return sheet
