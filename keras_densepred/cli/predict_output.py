"""What `predict` writes of pictures and of videos alike."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_densepred import saved
from keras_densepred._optional import require
from keras_densepred.data.drawing.semantic import IGNORED_COLOUR, label_colour
from keras_densepred.files import CommandFolder

_MOST_WAITING = 16  # pictures in memory


@contextlib.contextmanager
def in_background() -> Iterator[Callable[..., None]]:
    """Draws and packs pictures while the network looks at the next ones.

    Yields:
        A function that calls another with arguments, soon, in the order given. What one raises is
        raised by a later call, or at the end.
    """
    waiting: collections.deque[Future[Any]] = collections.deque()
    with ThreadPoolExecutor(1) as worker:

        def call(function: Callable[..., Any], *arguments: Any) -> None:
            waiting.append(worker.submit(function, *arguments))
            if len(waiting) > _MOST_WAITING:
                waiting.popleft().result()

        yield call
        while waiting:
            waiting.popleft().result()


@contextlib.contextmanager
def json_list(folder: CommandFolder, name: str) -> Iterator[Callable[[Iterable[Any]], None]]:
    """A file with a list that is written as it comes, which may be that of a long video.

    Yields:
        A function that takes the next items.
    """
    with folder.replacing(name) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        before = "["

        def add(items: Iterable[Any]) -> None:
            nonlocal before
            for item in items:
                file.write(before + json.dumps(item))
                before = ", "

        yield add
        file.write("[]\n" if before == "[" else "]\n")


def write_crops(folder: CommandFolder, found: saved.Objects, name: str) -> None:
    """Each object of an image by itself, in a folder of its class."""
    height, width = found.image.shape[:2]
    for number, (box, kind) in enumerate(zip(found.boxes.tolist(), found.names, strict=True), 1):
        left, top, right, bottom = box
        rows = slice(max(0, int(top)), min(height, int(np.ceil(bottom))))
        columns = slice(max(0, int(left)), min(width, int(np.ceil(right))))
        crop = found.image[rows, columns]
        if crop.size:
            place = re.sub(r"[^\w-]+", "_", kind)
            folder.write(f"crops/{place}/{name}_{number}.png", png(crop))


def mask_png(found: saved.LabelMap, for_ade20k: bool) -> bytes:
    """A PNG file of labels: with a palette, or in gray as ADE20K's server wants them."""
    labels = found.labels.astype(np.uint8)
    return png(labels + np.uint8(1)) if for_ade20k else png(labels, _palette(found))


def png(pixels: np.ndarray, palette: list[int] | None = None) -> bytes:
    """A PNG file of `(H, W, 3)` colours, or `(H, W)` labels, with a palette or in gray."""
    image = require("PIL.Image", "data").fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    # A quarter of the time of Pillow's 6, which was a third of predicting; a sixth larger.
    image.save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()


def _palette(found: saved.LabelMap) -> list[int]:
    """The colours of the labels, as Pillow takes them."""
    names = found.class_names
    colours = [
        label_colour(label, names, found.class_colours) or (0, 0, 0) for label in range(len(names))
    ]
    colours += [(0, 0, 0)] * (255 - len(colours)) + [IGNORED_COLOUR]
    return [tone for colour in colours for tone in colour]
