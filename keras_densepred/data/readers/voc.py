"""Semantic segmentation in Pascal VOC's layout, with the extra annotations of SBD."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.image_files import ImageError
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    FileFinder,
    composed,
    find_class_names,
    input_path,
    is_text,
    leads_outside,
    list_stems,
    read_lines,
    require_no_missing,
)
from keras_densepred.data.readers.mask_files import MaskFiles
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError

VOC_CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 21 classes of Pascal VOC, by label."""

_LISTS = Path("ImageSets") / "Segmentation"
_AUGMENTED = "SegmentationClassAug"


class VocSegmentation(MaskFiles):
    """One split of a tree in Pascal VOC's layout.

    `JPEGImages`, masks in `SegmentationClass`, and the names of a split in
    `ImageSets/Segmentation/{split}.txt`. The split `train_aug` (also `trainaug`) is VOC's training
    set with SBD's annotations as commonly distributed: its masks are in `SegmentationClassAug`.
    Lines of a list are a name without suffix, or two paths from the root, image and mask (
    `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`).

    Labels are those of `classes.txt` or `classes.json` in the root where there is one (line n is
    label n), else VOC's 21.

    Args:
        root: the folder with `JPEGImages`, `VOC2012` for instance.
        split: name of the list: `"train"`, `"val"`, `"trainval"`, `"train_aug"`.
        class_names: name of each label, in place of the file's.
        reduce_zero_label: whether 0 in the masks stands for no class and 1 for the first.

    Raises:
        DatasetError: if the list or a file that it names is missing, or a line leads out of the
            folder; the message names it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        class_names: Sequence[str] | None = None,
        reduce_zero_label: bool = False,
    ) -> None:
        base = input_path(root)
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise DatasetError(f"{split!r} is not the name of a split: give train or val.")
        path = base / _LISTS / f"{split}.txt"
        if not path.is_file():
            raise DatasetError(
                f"{path} does not exist: give the root of a Pascal VOC tree and one of its splits"
                f"{_known_splits(base)}."
            )
        lines = [line.split() for line in read_lines(path, "the names of the split's images")]
        unique = list(dict.fromkeys(map(tuple, lines)))
        notes = _repeated(len(lines) - len(unique), path)
        if any(len(words) == 2 and "/" in words[1] for words in unique):
            images, masks = _pairs_of_paths(unique, base, path)
        else:
            folder = _AUGMENTED if split in ("train_aug", "trainaug") else "SegmentationClass"
            if not (base / folder).is_dir():
                folder = "SegmentationClass"
            names = _names(unique, path)
            images = _files_of(names, base / "JPEGImages", IMAGE_SUFFIXES, "images", path)
            masks = _files_of(names, base / folder, MASK_SUFFIXES, "masks", path)
        first = int(reduce_zero_label)
        names_of_labels = class_names or find_class_names(base) or VOC_CLASS_NAMES[first:]
        super().__init__(f"{base}, {split}", images, masks, names_of_labels, notes, first)


class SbdSegmentation(MaskFiles):
    """One split of the Semantic Boundaries Dataset in its own layout.

    `img/*.jpg`, `cls/*.mat` and the names of a split in `{split}.txt`, in `root` or in its folder
    `dataset`. The labels are VOC's 21. Note that SBD's splits are not VOC's: its training set
    holds images of VOC's validation set. Requires SciPy, extra `data`, which reads MATLAB's files
    without running anything from them.

    Args:
        root: the folder with `img` and `cls`, or with `dataset`.
        split: name of the list: `"train"`, `"val"`, `"train_noval"`.

    Raises:
        DatasetError: if the list or a file that it names is missing.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = input_path(root)
        base = base / "dataset" if (base / "dataset" / "cls").is_dir() else base
        if not (base / "cls").is_dir():
            raise DatasetError(f"{base} has no folder `cls`: give the root of the SBD data set.")
        path = base / f"{split}.txt"
        lines = [line.split() for line in read_lines(path, "the names of the split's images")]
        unique = list(dict.fromkeys(map(tuple, lines)))
        names = _names(unique, path)
        images = _files_of(names, base / "img", IMAGE_SUFFIXES, "images", path)
        masks = _files_of(names, base / "cls", (".mat",), "annotations", path)
        notes = _repeated(len(lines) - len(unique), path)
        super().__init__(f"{base}, {split}", images, masks, VOC_CLASS_NAMES, notes)

    def _load_mask(self, path: str) -> np.ndarray:
        return _load_sbd_mask(path)

    @property
    def class_colours(self) -> None:
        """None: MATLAB's files have no palette."""


def find_voc_root(data_dir: str | os.PathLike[str]) -> Path | None:
    """The folder of a Pascal VOC tree: `data_dir` itself or `VOC2012` in it; None if neither."""
    base = input_path(data_dir)
    for root in (base, base / "VOC2012", base / "VOCdevkit" / "VOC2012"):
        if (root / _LISTS).is_dir():
            return root
    return None


def _known_splits(base: Path) -> str:
    known = sorted(path.stem for path in (base / _LISTS).glob("*.txt") if is_text(path.name))
    return f" ({', '.join(known)})" if known else ""


def _repeated(count: int, path: Path) -> tuple[Finding, ...]:
    if not count:
        return ()
    subject = "line repeats another" if count == 1 else "lines repeat others"
    return (Finding(count, f"{subject} and is read once", str(path)),)


def _names(lines: Sequence[Sequence[str]], path: Path) -> list[str]:
    """The names without suffix that the lines of a list are."""
    for words in lines:
        name = words[0]
        if len(words) > 1 or leads_outside(name) or re.search(r"[/\\\0]", name):
            raise DatasetError(
                f"{path} has the line {' '.join(words)!r}: write one name of an image in a line, "
                "without folder and suffix."
            )
    return [composed(words[0]) for words in lines]


def _files_of(
    names: Sequence[str], folder: Path, suffixes: Sequence[str], what: str, source: Path
) -> list[str]:
    """The path of each name's file."""
    files = list_stems(folder, suffixes, what)
    require_no_missing((name for name in names if name not in files), folder, str(source))
    return [str(folder / files[name]) for name in names]


def _pairs_of_paths(
    lines: Sequence[Sequence[str]], base: Path, source: Path
) -> tuple[list[str], list[str]]:
    """Images and masks of a list of two paths a line, from the root of the tree."""
    columns: tuple[list[str], list[str]] = ([], [])
    for words in lines:
        # In the lists in use, paths begin with a slash that means the root of the tree.
        paths = [word.removeprefix("/") for word in words]
        if len(paths) != 2 or any(leads_outside(part) or "\0" in part for part in paths):
            raise DatasetError(
                f"{source} has the line {' '.join(words)!r}: write the path of an image and of "
                "its mask, both inside of the data set's folder."
            )
        for column, part in zip(columns, paths, strict=True):
            column.append(part)
    finder = FileFinder()
    images, masks = ([(part, finder.find(str(base), part)) for part in parts] for parts in columns)
    for found in (images, masks):
        require_no_missing((part for part, file in found if file is None), base, str(source))
    return [str(base / file) for _, file in images if file], [
        str(base / file) for _, file in masks if file
    ]


def _load_sbd_mask(path: str) -> np.ndarray:
    """`GTcls.Segmentation` of a MATLAB file: `(H, W)` uint8."""
    scipy_io = require("scipy.io", "data")
    try:
        content = scipy_io.loadmat(path, variable_names=["GTcls"])
        mask = content["GTcls"][0, 0]["Segmentation"]
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist.") from error
    # What SciPy raises on other or damaged files, MATLAB's newer format (NotImplementedError) and
    # a file without these fields (KeyError, IndexError, ValueError) included.
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        NotImplementedError,
        EOFError,
        struct.error,
        zlib.error,
        scipy_io.matlab.MatReadError,
    ) as error:
        raise ImageError(
            f"{path} is not an annotation of SBD, with `GTcls.Segmentation` ({error}): copy it "
            "again from the data set."
        ) from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ImageError(
            f"{path}: `GTcls.Segmentation` is {mask.dtype} of shape {mask.shape}, and must be "
            "(height, width) of 8 bits: copy it again from the data set."
        )
    return mask
