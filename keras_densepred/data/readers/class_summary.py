"""What a classification data set holds, and whether splits have the same classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from keras_densepred._optional import require
from keras_densepred.data.readers.summary import Finding, class_table, counted, plain_text
from keras_densepred.data.records import ClassificationDataset, DatasetError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_NAMED_CLASSES = 3  # of those that a split lacks


@dataclasses.dataclass(frozen=True)
class ClassSummary:
    """The numbers of one split of a classification data set; `str` or `rich.print` shows them.

    Args:
        name: what the split is called.
        images_per_class: class name to number of images, in label order.
        findings: what the reader left out, and why.
    """

    name: str
    images_per_class: Mapping[str, int]
    findings: tuple[Finding, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.images_per_class.values())

    def __str__(self) -> str:
        return plain_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = require("rich.text", "data").Text
        counts = self.images_per_class
        classes = counted(len(counts), "class", "classes")
        yield text(f"{self.name}: {counted(self.images, 'image')}, {classes}", "bold")
        if self.images:
            low, high = min(counts.values()), max(counts.values())
            spread = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            yield text(f"  {spread} images in each class")
            yield class_table(counts, "images")
        for finding in self.findings:
            yield text(f"  ! {finding}", "yellow")


def require_same_class_names(datasets: Mapping[str, ClassificationDataset]) -> None:
    """Refuses splits whose labels mean different classes.

    Args:
        datasets: split name to data set.

    Raises:
        DatasetError: if the class names differ from those of the first split; the message names
            what is missing on either side.
    """
    (first_name, first), *others = datasets.items()
    for name, dataset in others:
        if dataset.class_names == first.class_names:
            continue
        ours, theirs = set(first.class_names), set(dataset.class_names)
        if ours == theirs:
            raise DatasetError(
                f"{first_name} and {name} have the same classes in another order: give both the "
                "same `class_names`."
            )
        raise DatasetError(
            f"{first_name} and {name} have different classes: "
            f"{_missing(name, ours - theirs)}, {_missing(first_name, theirs - ours)}; arrange the "
            "same class folders in both."
        )


def _missing(split: str, names: set[str]) -> str:
    """`val lacks 2 (cat, dog)`."""
    if not names:
        return f"{split} lacks none"
    return f"{split} lacks {len(names)} ({named(sorted(names))})"


def named(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = ", ..." if len(names) > _NAMED_CLASSES else ""
    return ", ".join(names[:_NAMED_CLASSES]) + more
