"""Semantic segmentation in the trees of well-known data sets: ADE20K, Cityscapes, COCO-Stuff."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.readers.class_lists import (
    ADE20K_CLASS_NAMES,
    CITYSCAPES_CLASS_NAMES,
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    COCO_STUFF_CLASS_NAMES,
    COCO_STUFF_IDS,
)
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    input_path,
    list_stems,
    require_no_missing,
)
from keras_densepred.data.readers.mask_files import MaskFiles, load_mask
from keras_densepred.data.records import IGNORE_LABEL, DatasetError

_ADE20K = "ADEChallengeData2016"
_ADE20K_SPLITS = {"train": "training", "val": "validation"}
_COCO_SPLITS = {"train": "train2017", "val": "val2017"}
_CITY_IMAGE, _CITY_FINE = "_leftImg8bit", "_gtFine_"
_CITY_MASKS = ("labelTrainIds", "labelIds")  # the first that is there
_LAST_CITY_ID = 33  # 34 with the license plate, which is written as -1


class Ade20kSegmentation(MaskFiles):
    """One split of `ADEChallengeData2016`, the scene parsing benchmark of ADE20K.

    `images/training` with `annotations/training`, `images/validation` likewise. In the files 0 is
    "other objects", which is ignored, and 1 to 150 are the classes, labels 0 to 149 here.

    Args:
        root: the folder, or the one that holds it.
        split: `"train"` or `"val"`.
        class_names: name of each label, in place of the benchmark's 150.

    Raises:
        DatasetError: if a folder is missing or empty, or an image has no mask.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        class_names: Sequence[str] | None = None,
    ) -> None:
        base = find_ade20k_root(root) or input_path(root)
        folder = _split_folder(split, _ADE20K_SPLITS)
        images, masks = base / "images" / folder, base / "annotations" / folder
        super().__init__(
            f"{base}, {folder}",
            *_pairs(images, masks),
            class_names or ADE20K_CLASS_NAMES,
            first_label=1,
        )


class CocoStuffSegmentation(MaskFiles):
    """One split of COCO-Stuff's pixel maps (`stuffthingmaps`), 171 classes.

    `images/train2017` with `annotations/train2017`, or `train2017` with
    `stuffthingmaps/train2017`, and `val2017` likewise. In the files are COCO's categories less one,
    and 255.

    Args:
        root: the folder.
        split: `"train"` or `"val"`.

    Raises:
        DatasetError: if a folder is missing or empty, or an image has no mask.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base, folder = input_path(root), _split_folder(split, _COCO_SPLITS)
        images, masks = _coco_stuff_folders(base, folder) or (base / folder, base / folder)
        super().__init__(f"{base}, {folder}", *_pairs(images, masks), COCO_STUFF_CLASS_NAMES)
        self._label_of_value = _label_table({c - 1: k for k, c in enumerate(COCO_STUFF_IDS)})

    def _load_mask(self, path: str) -> np.ndarray:
        what = "COCO-Stuff has its 171 categories less one, 0 to 181"
        return _mapped(load_mask(path), self._label_of_value, path, what)


class CityscapesSegmentation(MaskFiles):
    """One split of Cityscapes' fine annotations, the 19 classes that are evaluated.

    `leftImg8bit/train/CITY/*_leftImg8bit.png` with `gtFine/train/CITY/*_gtFine_labelTrainIds.png`,
    or `*_gtFine_labelIds.png` as they come, of which the ids that are not evaluated are ignored.

    Args:
        root: the folder with `leftImg8bit` and `gtFine`.
        split: `"train"` or `"val"`; those of `"test"` are not published.

    Raises:
        DatasetError: if a folder is missing or empty, or an image has no mask.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        base = input_path(root)
        folder = _split_folder(split, {"train": "train", "val": "val"})
        images, kind = _city_images(base / "leftImg8bit" / folder), ""
        names = [
            f"{path.parent.name}/{path.stem.removesuffix(_CITY_IMAGE)}{_CITY_FINE}"
            for path in images
        ]
        masks = base / "gtFine" / folder
        for kind in _CITY_MASKS:
            missing = [f"{name}{kind}.png" for name in names if not _there(masks, name, kind)]
            if not missing:
                break
        require_no_missing(missing, masks, str(base / "leftImg8bit" / folder))
        super().__init__(
            f"{base}, {folder}",
            [str(path) for path in images],
            [str(masks / f"{name}{kind}.png") for name in names],
            CITYSCAPES_CLASS_NAMES,
        )
        self._label_of_value = None
        if kind == "labelIds":
            ids = dict.fromkeys(range(_LAST_CITY_ID + 1), IGNORE_LABEL)
            ids |= {number: label for label, number in enumerate(CITYSCAPES_IDS)}
            self._label_of_value = _label_table(ids)

    def _load_mask(self, path: str) -> np.ndarray:
        mask = load_mask(path)
        if self._label_of_value is None:
            return mask
        what = f"Cityscapes has the ids 0 to {_LAST_CITY_ID}"
        return _mapped(mask, self._label_of_value, path, what)

    @property
    def class_colours(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green, blue of each label, as the data set draws them."""
        return CITYSCAPES_COLOURS


def find_ade20k_root(data_dir: str | os.PathLike[str]) -> Path | None:
    """`data_dir` itself or `ADEChallengeData2016` in it, if it is such a tree; None if neither.

    Raises:
        DatasetError: if it is the full ADE20K, which has other masks.
    """
    base = input_path(data_dir)
    _refuse_full_ade20k(base)
    for root in (base, base / _ADE20K):
        pairs = [root / kind / "training" for kind in ("images", "annotations")]
        if all(folder.is_dir() for folder in pairs):
            return root
    return None


def find_known_splits(
    data_dir: str | os.PathLike[str], class_names: Sequence[str] | None = None
) -> dict[str, MaskFiles] | None:
    """Opens both splits of a tree of one of these data sets; None if it is none.

    Args:
        data_dir: root of the tree.
        class_names: name of each label, of trees in ADE20K's layout.

    Raises:
        DatasetError: if it is one, and not in order.
    """
    base = input_path(data_dir)
    if (root := find_ade20k_root(base)) is not None:
        return {split: Ade20kSegmentation(root, split, class_names) for split in ("train", "val")}
    if all((base / name).is_dir() for name in ("leftImg8bit", "gtFine")):
        return {split: CityscapesSegmentation(base, split) for split in ("train", "val")}
    if _coco_stuff_folders(base, "train2017") is not None:
        return {split: CocoStuffSegmentation(base, split) for split in ("train", "val")}
    return None


def is_known_tree(data_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder is the tree of one of these data sets, as far as its folders tell."""
    base = input_path(data_dir)
    return (
        find_ade20k_root(base) is not None
        or (base / "gtFine").is_dir()
        or _coco_stuff_folders(base, "train2017") is not None
    )


def _refuse_full_ade20k(base: Path) -> None:
    inner = base / "ADE20K_2021_17_01"
    for root in (base, inner):
        if (root / "images" / "ADE").is_dir() or (root / "index_ade20k.pkl").is_file():
            raise DatasetError(
                f"{root} is the full ADE20K, with 3,000 classes in _seg.png files, which is not "
                "read: give the folder ADEChallengeData2016 of the scene parsing benchmark."
            )


def _split_folder(split: str, folders: dict[str, str]) -> str:
    if split not in folders:
        raise DatasetError(f"{split!r} is not the name of a split: give train or val.")
    return folders[split]


def _pairs(images: Path, masks: Path) -> tuple[list[str], list[str]]:
    """The image files of a folder and the mask of each."""
    pictures = list_stems(images, IMAGE_SUFFIXES, "images")
    labels = list_stems(masks, MASK_SUFFIXES, "masks")
    require_no_missing([f"{s}.png" for s in pictures if s not in labels], masks, str(images))
    return (
        [str(images / name) for name in pictures.values()],
        [str(masks / labels[stem]) for stem in pictures],
    )


def _coco_stuff_folders(base: Path, folder: str) -> tuple[Path, Path] | None:
    """Images and masks of a split; None if it is no such tree."""
    for pair in (
        (base / "images" / folder, base / "annotations" / folder),
        (base / "images" / folder, base / "stuffthingmaps" / folder),
        (base / folder, base / "stuffthingmaps" / folder),
    ):
        if all(path.is_dir() for path in pair):
            return pair
    return None


def _city_images(folder: Path) -> list[Path]:
    """The images of all cities, by name."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder: give the root of a Cityscapes tree.")
    return sorted(folder.glob(f"*/*{_CITY_IMAGE}.png"))


def _there(masks: Path, name: str, kind: str) -> bool:
    return (masks / f"{name}{kind}.png").is_file()


def _label_table(label_of_value: dict[int, int]) -> np.ndarray:
    """Label of each value of 8 bits, -1 where there is none."""
    table = np.full(IGNORE_LABEL + 1, -1, np.int16)
    table[list(label_of_value)] = list(label_of_value.values())
    table[IGNORE_LABEL] = IGNORE_LABEL
    return table


def _mapped(mask: np.ndarray, table: np.ndarray, path: str, what: str) -> np.ndarray:
    """The labels of the numbers in a file.

    Raises:
        DatasetError: naming the first number that has none.
    """
    labels = table[mask]
    if (labels < 0).any():
        row, column = (int(i) for i in np.argwhere(labels < 0)[0])
        raise DatasetError(
            f"{path} has the value {mask[row, column]} at row {row}, column {column}, and {what}, "
            f"and {IGNORE_LABEL} for none: correct the mask."
        )
    return labels.astype(np.uint8)
