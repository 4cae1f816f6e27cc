"""What a detection data set holds, in twenty lines to read before training starts."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred._optional import require

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

SMALL_AREA, MEDIUM_AREA = 32.0**2, 96.0**2
"""COCO's limits in square pixels: small objects are below the first, large above the second."""

_SHOWN_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something a reader changed or left out.

    Args:
        count: how often.
        what: the change and its reason, as in "boxes without area dropped".
        example: where it happened first, as in "annotation id 7".
    """

    count: int
    what: str
    example: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.what} (first: {self.example})"


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """The numbers of one split of a detection data set; `str` or `rich.print` shows them.

    Args:
        name: what the split is called.
        images: number of images.
        empty_images: number of images without any object that trains (crowd regions do not).
        boxes_per_class: class name to number of boxes, crowd regions left out, in label order.
        crowd: number of crowd regions.
        small, medium, large: number of boxes with an area below 32 x 32 pixels, between, and
            above 96 x 96 pixels, by the `area` that COCO evaluates with; without those of images
            that cannot be read, where they are shares of these.
        width: minimum, median and maximum box width in pixels, `(0, 0, 0)` without boxes.
        height: the same of the heights.
        findings: what the reader dropped or changed, and why.
    """

    name: str
    images: int
    empty_images: int
    boxes_per_class: Mapping[str, int]
    crowd: int
    small: int
    medium: int
    large: int
    width: tuple[float, float, float]
    height: tuple[float, float, float]
    findings: tuple[Finding, ...] = ()

    @property
    def boxes(self) -> int:
        """Number of boxes, crowd regions left out."""
        return sum(self.boxes_per_class.values())

    def __str__(self) -> str:
        return plain_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = require("rich.text", "data").Text
        head = f"{counted(self.images, 'image')}, {counted(self.boxes, 'box', 'boxes')}"
        yield text(f"{self.name}: {head}", "bold")
        yield text(
            f"  {counted(self.empty_images, 'image')} without objects, "
            f"{counted(self.crowd, 'crowd region')}, "
            f"{counted(len(self.boxes_per_class), 'class', 'classes')}"
        )
        if self.boxes:
            yield class_table(self.boxes_per_class, "boxes")
        sized = self.small + self.medium + self.large
        if sized:
            parts = zip(
                ("small (< 32²)", "medium", "large (> 96²)"),
                (self.small, self.medium, self.large),
                strict=True,
            )
            shares = ", ".join(f"{name} {100 * n / sized:.0f} %" for name, n in parts)
            yield text(f"  areas   {shares}")
            for name, values in (("widths", self.width), ("heights", self.height)):
                low, middle, high = (f"{value:.4g}" for value in values)
                yield text(f"  {name:7s} {low} to {high} pixels, median {middle}")
        for finding in self.findings:
            yield text(f"  ! {finding}", "yellow")


def plain_text(summary: Any) -> str:
    """What `rich` prints of a summary, without colours."""
    console = require("rich.console", "data").Console(
        file=io.StringIO(), width=88, color_system=None, markup=False
    )
    console.print(summary)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def class_table(counts: Mapping[str, int], unit: str) -> Table:
    """A table of the most frequent classes with their share; at least one count is not 0.

    Args:
        counts: class name to count.
        unit: what is counted, in the plural.

    Returns:
        A table of `rich`.
    """
    text = require("rich.text", "data").Text
    table = require("rich.table", "data").Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="cyan")
    total = sum(counts.values())
    for label, count in _class_rows(counts, unit):
        share = count / total
        bar = "█" * max(round(share * 30), 1) if count else ""
        # As text: in a string of a table, [x] would be markup.
        table.add_row(text(f"  {label}"), f"{count:,}", f"{100 * share:.1f} %", bar)
    return table


def _class_rows(counts: Mapping[str, int], unit: str) -> list[tuple[str, int]]:
    """The most frequent classes, one row for the rest, one for those without any."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    seen = [(name, count) for name, count in ranked if count]
    unseen = [name for name, count in ranked if not count]
    rows = seen[:_SHOWN_CLASSES]
    rest = seen[_SHOWN_CLASSES:]
    if rest:
        rows.append((f"{len(rest)} more classes", sum(count for _, count in rest)))
    if unseen:
        named = unseen[0] if len(unseen) == 1 else f"{len(unseen)} classes"
        rows.append((f"{named}: no {unit}", 0))
    return rows


def counted(number: int, one: str, many: str | None = None) -> str:
    """`"1 image"`, `"1,200 images"`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def summarize(
    ground_truth: Mapping, name: str = "data set", findings: Sequence[Finding] = ()
) -> DatasetSummary:
    """Counts a COCO dictionary, such as a data set's `ground_truth()`.

    Args:
        ground_truth: dict with `images`, `categories` and `annotations`, their boxes in COCO's
            `[x, y, width, height]` pixels.
        name: what to call it.
        findings: what a reader dropped or changed.

    Returns:
        The numbers.
    """
    annotations = ground_truth["annotations"]
    labels = {category["id"]: i for i, category in enumerate(ground_truth["categories"])}
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    return summarize_arrays(
        name=name,
        class_names=[category["name"] for category in ground_truth["categories"]],
        images=len(ground_truth["images"]),
        image_of=np.array([a["image_id"] for a in annotations], np.int64),
        sizes=boxes[:, 2:],
        areas=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations]),
        labels=np.array([labels[a["category_id"]] for a in annotations], np.int64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        findings=findings,
    )


def summarize_arrays(
    *,
    name: str,
    class_names: Sequence[str],
    images: int,
    image_of: np.ndarray,
    sizes: np.ndarray,
    areas: np.ndarray,
    labels: np.ndarray,
    crowd: np.ndarray,
    measured: np.ndarray | None = None,
    findings: Sequence[Finding] = (),
) -> DatasetSummary:
    """Counts objects that are already arrays.

    Args:
        name: what to call the split.
        class_names: name of each label.
        images: number of images.
        image_of: `(N,)` integers, which image each object is in (id or position).
        sizes: `(N, 2)` float, width and height of each box in pixels.
        areas: `(N,)` float, COCO's area of each object in square pixels.
        labels: `(N,)` integers from 0.
        crowd: `(N,)` bool.
        measured: `(N,)` bool, whose sizes and areas count; None for all.
        findings: what a reader dropped or changed.

    Returns:
        The numbers.
    """
    counted = ~crowd
    counts = np.bincount(labels[counted], minlength=len(class_names))
    sized = counted if measured is None else counted & measured
    sizes, areas = sizes[sized], areas[sized]
    small, large = int((areas < SMALL_AREA).sum()), int((areas > MEDIUM_AREA).sum())
    spread = [(0.0, 0.0, 0.0)] * 2
    if len(sizes):
        spread = [
            (float(side.min()), float(np.median(side)), float(side.max())) for side in sizes.T
        ]
    per_class: dict[str, int] = {}
    for class_name, count in zip(class_names, counts, strict=True):
        per_class[class_name] = per_class.get(class_name, 0) + int(count)
    return DatasetSummary(
        name=name,
        images=images,
        empty_images=images - len(np.unique(image_of[counted])),
        boxes_per_class=per_class,
        crowd=int(crowd.sum()),
        small=small,
        medium=len(areas) - small - large,
        large=large,
        width=spread[0],
        height=spread[1],
        findings=tuple(findings),
    )
