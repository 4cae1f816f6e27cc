"""Whether there is anything to learn in a data set whose files are all in order."""

from __future__ import annotations

from collections.abc import Mapping

from keras_densepred.data.readers.class_summary import ClassSummary
from keras_densepred.data.readers.mask_summary import SegmentationSummary
from keras_densepred.data.readers.summary import DatasetSummary, Finding
from keras_densepred.data.records import IGNORE_LABEL, DatasetError

Summary = DatasetSummary | SegmentationSummary | ClassSummary


def require_trainable_data(train: Summary, val: Summary | None = None) -> tuple[Finding, ...]:
    """Refuses splits that a model can learn nothing from, or cannot be evaluated on.

    Args:
        train: what `summary()` of the training split gives, of any task.
        val: that of the validation split, or None if there is none.

    Returns:
        What is suspicious about them, beside the findings in the summaries themselves.

    Raises:
        DatasetError: saying what probably happened and what to do.
    """
    if isinstance(train, SegmentationSummary):
        _require_labels(train)
        findings = _gaps(train)
    elif isinstance(train, ClassSummary):
        _require_classes(train)
        findings = ()
    else:
        _require_objects(train)
        findings = ()
    if val is None:
        return findings
    require_evaluable_data(val)
    if isinstance(val, SegmentationSummary):
        findings += _single_label(val)
    return findings + _compare(train, val)


def require_evaluable_data(split: Summary) -> None:
    """Refuses a split without anything that evaluation counts.

    Args:
        split: what its `summary()` gives.

    Raises:
        DatasetError: saying what probably happened and what to do.
    """
    if isinstance(split, SegmentationSummary):
        _require_pixels(split)
    elif isinstance(split, ClassSummary):
        _require_images(split)
    else:
        _require_objects(split)


def _require_objects(split: DatasetSummary) -> None:
    if split.boxes:
        return
    if split.crowd:
        raise DatasetError(
            f"{split.name}: all {split.crowd:,} objects are crowd regions (iscrowd 1), which "
            "neither training nor evaluation counts: write iscrowd 0 for every single object, "
            "also where its mask is an RLE."
        )
    raise DatasetError(
        f"{split.name} has no objects, so there is nothing to train or evaluate on: annotate some."
    )


def _require_pixels(split: SegmentationSummary) -> None:
    if not split.labelled:
        raise DatasetError(
            f"{split.name} has no labelled pixel: every mask is {IGNORE_LABEL} everywhere, which "
            "stands for no class."
        )


def _require_labels(split: SegmentationSummary) -> None:
    _require_pixels(split)
    used = [name for name, count in split.pixels_per_class.items() if count]
    if len(used) > 1:
        return
    label = list(split.pixels_per_class).index(used[0])
    if split.ignored:
        raise DatasetError(
            f"{split.name}: the masks hold {label} and {IGNORE_LABEL} alone, and {IGNORE_LABEL} "
            f"means no class, so there is nothing to tell apart: if objects have {IGNORE_LABEL}, "
            "write 1 in its place."
        )
    raise DatasetError(
        f"{split.name}: every pixel of the masks has label {label} ({used[0]}), so there is "
        "nothing to tell apart: write another number for each class."
    )


def _require_images(split: ClassSummary) -> None:
    if not split.images:
        raise DatasetError(f"{split.name} has no images: give a split with some.")


def _require_classes(split: ClassSummary) -> None:
    _require_images(split)
    used = [name for name, count in split.images_per_class.items() if count]
    if len(used) == 1:
        raise DatasetError(
            f"{split.name}: all images are of one class ({used[0]}), so there is nothing to tell "
            "apart: arrange them in at least two class folders, directly in the folder of the "
            "split."
        )


def _gaps(split: SegmentationSummary) -> tuple[Finding, ...]:
    """Labels that never occur below one that does, where nobody has named them."""
    counts = list(split.pixels_per_class.items())
    used = [label for label, (_, count) in enumerate(counts) if count]
    unused = [name for name, count in counts[: used[-1]] if not count]
    unnamed = all(name == f"class_{label}" for label, (name, _) in enumerate(counts))
    if not unused or not unnamed:
        return ()
    shown = ", ".join(map(str, used[:4])) + (", ..." if len(used) > 4 else "")
    what = (
        f"of {len(counts)} labels never occur, the masks hold {shown}: if these are gray levels, "
        f"write 0, 1, 2 and so on ({IGNORE_LABEL} means no class)"
    )
    return (Finding(len(unused), what, unused[0]),)


def _single_label(split: SegmentationSummary) -> tuple[Finding, ...]:
    used = [name for name, count in split.pixels_per_class.items() if count]
    if len(used) > 1:
        return ()
    return (Finding(1, f"label alone occurs in {split.name}, so its IoU tells little", used[0]),)


def _counts(split: Summary) -> Mapping[str, int]:
    if isinstance(split, SegmentationSummary):
        return split.pixels_per_class
    return split.images_per_class if isinstance(split, ClassSummary) else split.boxes_per_class


def _compare(train: Summary, val: Summary) -> tuple[Finding, ...]:
    """Classes to be evaluated that are never trained."""
    trained, evaluated = _counts(train), _counts(val)
    never = [name for name, count in evaluated.items() if count and not trained.get(name)]
    if not never:
        return ()
    what = f"of the classes in {val.name} never trained: {train.name} has none of them"
    return (Finding(len(never), what, never[0]),)
