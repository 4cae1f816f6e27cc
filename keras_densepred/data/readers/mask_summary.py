"""What a semantic segmentation data set holds, to read before training starts."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.readers.summary import Finding, plain_text
from keras_densepred.data.records import IGNORE_LABEL

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SHOWN_CLASSES = 25
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class SegmentationSummary:
    """The numbers of one split of a segmentation data set; `str` or `rich.print` shows them.

    Args:
        name: what the split is called.
        images: number of images.
        pixels_per_class: class name to number of pixels, in label order.
        images_per_class: class name to number of images with a pixel of it.
        ignored: number of pixels without a class.
        height: minimum, median and maximum height of the masks in pixels.
        width: the same of the widths.
        findings: what the reader noticed.
    """

    name: str
    images: int
    pixels_per_class: Mapping[str, int]
    images_per_class: Mapping[str, int]
    ignored: int
    height: tuple[float, float, float]
    width: tuple[float, float, float]
    findings: tuple[Finding, ...] = ()

    @property
    def labelled(self) -> int:
        """Number of pixels with a class."""
        return sum(self.pixels_per_class.values())

    def __str__(self) -> str:
        return plain_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table_module = require("rich.table", "data")
        text = require("rich.text", "data").Text
        classes = len(self.pixels_per_class)
        yield text(f"{self.name}: {self.images:,} images, {classes} classes", "bold")
        table = table_module.Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
        for _ in range(2):
            table.add_column(justify="right")
        table.add_column(style="cyan")
        for name, share, seen in self._class_rows():
            bar = "█" * max(round(share * 30), 1) if share else ""
            # As text: in a string of a table, [x] would be markup.
            table.add_row(text(f"  {name}"), f"{100 * share:.1f} %", seen, bar)
        yield table
        total = max(self.labelled + self.ignored, 1)
        yield text(f"  ignored {100 * self.ignored / total:.1f} % of all pixels")
        for name, values in (("widths", self.width), ("heights", self.height)):
            low, middle, high = (f"{value:.4g}" for value in values)
            yield text(f"  {name:7s} {low} to {high} pixels, median {middle}")
        for finding in self.findings:
            yield text(f"  ! {finding}", "yellow")

    def _class_rows(self) -> list[tuple[str, float, str]]:
        """Name, share of the labelled pixels, images: in label order, then one row for the rest."""
        labelled = max(self.labelled, 1)
        rows = [
            (name, count / labelled, f"in {self.images_per_class[name]:,} images")
            for name, count in list(self.pixels_per_class.items())[:_SHOWN_CLASSES]
        ]
        rest = list(self.pixels_per_class.values())[_SHOWN_CLASSES:]
        if rest:
            rows.append((f"{len(rest)} more classes", sum(rest) / labelled, ""))
        return rows


def count_labels(read: Callable[[int], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads masks, several at a time.

    Args:
        read: number of a mask -> `(H, W)` uint8.
        count: how many masks there are.

    Returns:
        Pixels of each of the 256 values in each mask, `(count, 256)` int64, and the height and
        width of each mask, `(count, 2)` int64.
    """

    def measure(index: int) -> tuple[np.ndarray, tuple[int, ...]]:
        mask = read(index)
        return np.bincount(mask.ravel(), minlength=256), mask.shape

    workers = min(_THREADS, os.cpu_count() or 1)
    # Decoding takes most of the time and releases the GIL.
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        measured = list(pool.map(measure, range(count)))
    counts = np.array([values for values, _ in measured], np.int64).reshape(-1, 256)
    return counts, np.array([size for _, size in measured], np.int64).reshape(-1, 2)


def summarize_masks(
    dataset: Any, name: str = "data set", findings: Sequence[Finding] = ()
) -> SegmentationSummary:
    """Counts the pixels of each class of a split.

    Args:
        dataset: a segmentation data set; its `mask(index)` is used where there is one, so that
            images need not be decoded.
        name: what to call it.
        findings: what a reader noticed.

    Returns:
        The numbers.
    """

    def read_semantic(index: int) -> np.ndarray:
        return dataset[index].semantic

    counts, sizes = count_labels(getattr(dataset, "mask", read_semantic), len(dataset))
    names = dataset.class_names
    of_classes = counts[:, : len(names)]
    unlabelled = np.flatnonzero(of_classes.sum(axis=1) == 0)
    notes = list(findings)
    if len(unlabelled):
        what = "mask has no labelled pixel" if len(unlabelled) == 1 else "masks have no labels"
        files = getattr(dataset, "mask_files", None)
        first = int(unlabelled[0])
        notes.append(Finding(len(unlabelled), what, files[first] if files else f"image {first}"))
    pixels: dict[str, int] = {}
    images: dict[str, int] = {}
    for label, class_name in enumerate(names):
        # Names may repeat; their counts are added up.
        pixels[class_name] = pixels.get(class_name, 0) + int(of_classes[:, label].sum())
        images[class_name] = images.get(class_name, 0) + int((of_classes[:, label] > 0).sum())
    height, width = (
        (float(side.min()), float(np.median(side)), float(side.max())) for side in sizes.T
    )
    return SegmentationSummary(
        name=name,
        images=len(dataset),
        pixels_per_class=pixels,
        images_per_class=images,
        ignored=int(counts[:, IGNORE_LABEL].sum()),
        height=height,
        width=width,
        findings=tuple(notes),
    )
