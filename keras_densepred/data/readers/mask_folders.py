"""Semantic segmentation from plain folders of images and masks, and finding what a folder is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.readers.known_masks import (
    Ade20kSegmentation,
    find_known_splits,
    is_known_tree,
)
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    UNREAD_SUFFIXES,
    composed,
    find_class_names,
    input_path,
    list_stems,
    require_no_missing,
    require_text,
)
from keras_densepred.data.readers.mask_files import MaskFiles, load_mask
from keras_densepred.data.readers.mask_summary import count_labels
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.readers.voc import VocSegmentation, find_voc_root
from keras_densepred.data.records import IGNORE_LABEL, DatasetError

_HELD_OUT = 10  # Of a folder without splits every tenth image is for validation.


class MaskFolder(MaskFiles):
    """A folder of images and a folder of masks, whose files have the same names but the suffix.

    Args:
        images: the folder of images.
        masks: the folder of masks, as `load_mask` reads them.
        class_names: name of each label. None takes them from `classes.txt` or `classes.json`
            beside or above the folders; where there is none, all masks are read, and the labels
            up to the highest in them are called `class_0`, `class_1` and so on.
        files: names of image files to use only; None for all.
        reduce_zero_label: whether 0 in the masks stands for no class and 1 for the first, as in
            ADE20K; the names are then those of 1, 2 and so on.

    Raises:
        DatasetError: if a folder is missing or empty, or an image has no mask.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str],
        class_names: Sequence[str] | None = None,
        files: Sequence[str] | None = None,
        reduce_zero_label: bool = False,
    ) -> None:
        image_folder, mask_folder = input_path(images), input_path(masks)
        pictures = list_stems(image_folder, IMAGE_SUFFIXES, "images")
        labels = list_stems(mask_folder, MASK_SUFFIXES, "masks")
        extra = sorted(labels.keys() - pictures.keys())
        if files is not None:
            wanted = set(map(composed, files))
            pictures = {k: name for k, name in pictures.items() if composed(name) in wanted}
        missing = [f"{stem}.png" for stem in pictures if stem not in labels]
        require_no_missing(missing, mask_folder, str(image_folder))
        notes = _left_out(image_folder)
        if extra:
            what = "mask has no image and is not used" if len(extra) == 1 else "masks have no image"
            notes.append(Finding(len(extra), what, str(mask_folder / labels[extra[0]])))
        mask_files = [str(mask_folder / labels[stem]) for stem in pictures]
        if class_names is None:
            class_names = _beside(image_folder) or unnamed_classes(mask_files, reduce_zero_label)
        super().__init__(
            str(image_folder),
            [str(image_folder / name) for name in pictures.values()],
            mask_files,
            class_names,
            notes,
            first_label=int(reduce_zero_label),
        )


def find_segmentation_splits(
    data_dir: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    reduce_zero_label: bool = False,
) -> dict[str, MaskFiles]:
    """Opens the training and the validation split of a folder.

    The layouts known are ADE20K's (`ADEChallengeData2016`), Cityscapes' and COCO-Stuff's, with
    their classes, Pascal VOC's (with `train_aug` for training where that list and
    `SegmentationClassAug` are there), `images/train` with `masks/train`, `train/images` with
    `train/masks` (`val`, or `validation`, likewise), and `images` with `masks` without splits, of
    which every tenth image by name is held out for validation.

    Args:
        data_dir: root of the tree.
        class_names: name of each label; None takes those of the tree (see `VocSegmentation` and
            `MaskFolder`), where there are none `class_0`, ... up to the highest label of both
            splits.
        reduce_zero_label: whether 0 stands for no class and 1 for the first, of trees in VOC's
            layout and folders of masks; ADE20K's tree has that habit by itself.

    Returns:
        `{"train": data set, "val": data set}`.

    Raises:
        DatasetError: if the folder is none of these; the message says what was looked for.
    """
    base = input_path(data_dir)
    if not base.is_dir():
        raise DatasetError(f"{base} is not a folder: give the root of a segmentation data set.")
    if (known := find_known_splits(base, class_names)) is not None:
        if reduce_zero_label and not isinstance(known["train"], Ade20kSegmentation):
            raise DatasetError(
                f"{base} has the known labels of its data set: leave --reduce-zero-label out."
            )
        return known
    voc = find_voc_root(base)
    if voc is not None:
        lists = voc / "ImageSets" / "Segmentation"
        augmented = [name for name in ("train_aug", "trainaug") if (lists / f"{name}.txt").exists()]
        use_sbd = augmented and (voc / "SegmentationClassAug").is_dir()
        train = augmented[0] if use_sbd else "train"
        return {
            "train": VocSegmentation(voc, train, class_names, reduce_zero_label),
            "val": VocSegmentation(voc, "val", class_names, reduce_zero_label),
        }
    folders = _find_folders(base)
    names = class_names or find_class_names(base)
    if len(folders) == 1:
        images, masks = folders["all"]
        files = list(list_stems(images, IMAGE_SUFFIXES, "images").values())
        held_out = files[_HELD_OUT // 2 :: _HELD_OUT] or files[1:2]
        if not held_out:
            raise DatasetError(f"{images} has one image, too few for training and validation.")
        names = names or unnamed_classes(
            MaskFolder(images, masks, _ANY).mask_files, reduce_zero_label
        )
        kept = [name for name in files if name not in set(held_out)]
        return {
            split: MaskFolder(images, masks, names, chosen, reduce_zero_label)
            for split, chosen in (("train", kept), ("val", held_out))
        }
    if names is None:
        opened = (MaskFolder(*folders[split], _ANY) for split in folders)
        files = [file for split in opened for file in split.mask_files]
        names = unnamed_classes(files, reduce_zero_label)
    return {
        split: MaskFolder(*folders[split], names, reduce_zero_label=reduce_zero_label)
        for split in folders
    }


def find_segmentation_test(
    data_dir: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    reduce_zero_label: bool = False,
) -> MaskFiles:
    """Opens the test split of a folder, which needs to have no other.

    The layouts known are Pascal VOC's, with masks for the names in
    `ImageSets/Segmentation/test.txt`, `images/test` with `masks/test`, and `test/images` with
    `test/masks`.

    Args:
        data_dir: as for `find_segmentation_splits`.
        class_names: likewise.
        reduce_zero_label: likewise.

    Raises:
        DatasetError: if the folder has none; the message says what was looked for.
    """
    base = input_path(data_dir)
    voc = find_voc_root(base)
    if voc is not None and (voc / "ImageSets" / "Segmentation" / "test.txt").is_file():
        return VocSegmentation(voc, "test", class_names, reduce_zero_label)
    for pair in (
        (base / "images" / "test", base / "masks" / "test"),
        (base / "test" / "images", base / "test" / "masks"),
    ):
        if all(folder.is_dir() for folder in pair):
            names = class_names or find_class_names(base)
            return MaskFolder(*pair, names, reduce_zero_label=reduce_zero_label)
    raise DatasetError(
        f"{base} has no test split with masks: looked for images/test with masks/test, for "
        "test/images with test/masks, and for Pascal VOC's ImageSets/Segmentation/test.txt."
    )


def is_segmentation_tree(data_dir: str | os.PathLike[str]) -> bool:
    """Whether `find_segmentation_splits` is for a folder, and not a reader of detection data.

    Args:
        data_dir: root of a tree.
    """
    base = input_path(data_dir)
    folders = (base / "masks", base / "train" / "masks")
    return (
        is_known_tree(base)
        or find_voc_root(base) is not None
        or any(folder.is_dir() for folder in folders)
    )


_ANY = tuple(f"class_{label}" for label in range(IGNORE_LABEL))


def unnamed_classes(masks: Sequence[str], reduce_zero_label: bool = False) -> tuple[str, ...]:
    """Names for the labels up to the highest in some masks: `class_0`, `class_1` and so on.

    Args:
        masks: paths, all of which are read.
        reduce_zero_label: whether 0 is none, and the first is called `class_1`.

    Returns:
        The names.

    Raises:
        ImageError: if a mask cannot be read.
        DatasetError: if no pixel has a label.
    """
    counts, _ = count_labels(lambda index: load_mask(masks[index]), len(masks))
    first = int(reduce_zero_label)
    used = np.flatnonzero(counts[:, first:IGNORE_LABEL].sum(axis=0))
    if not len(used):
        raise DatasetError(
            f"{masks[0]} and all other masks ({len(masks):,} in all) have no label but "
            f"{IGNORE_LABEL}, which stands for none, so there is nothing to learn."
        )
    return _ANY[first : first + int(used[-1]) + 1]


def _left_out(images: Path) -> list[Finding]:
    """Images of kinds that are not read, which would otherwise be passed over in silence."""
    names = sorted(
        n for n in os.listdir(images) if os.path.splitext(n)[1].lower() in UNREAD_SUFFIXES
    )
    if not names:
        return []
    require_text(names[0], images)
    what = "image left out" if len(names) == 1 else "images left out"
    what += ", of a kind that is not read: convert to JPEG or PNG"
    return [Finding(len(names), what, str(images / names[0]))]


def _beside(images: Path) -> tuple[str, ...] | None:
    """The class names beside the folder of images, or one folder above."""
    return find_class_names(images.parent) or find_class_names(images.parent.parent)


def _find_folders(base: Path) -> dict[str, tuple[Path, Path]]:
    """Image and mask folder of `train` and `val`, or of `all`."""
    splits = {}
    for split, spellings in (("train", ("train",)), ("val", ("val", "validation"))):
        for name in spellings:
            for pair in (
                (base / "images" / name, base / "masks" / name),
                (base / name / "images", base / name / "masks"),
            ):
                if split not in splits and all(folder.is_dir() for folder in pair):
                    splits[split] = pair
    if len(splits) == 2:
        return splits
    pair = (base / "images", base / "masks")
    if not splits and all(folder.is_dir() for folder in pair):
        return {"all": pair}
    raise DatasetError(
        f"{base} is no segmentation data set of a known layout: looked for Pascal VOC's "
        "(JPEGImages, SegmentationClass, ImageSets/Segmentation), for images/train with "
        "masks/train and images/val with masks/val, for train/images with train/masks and so on, "
        "and for images with masks."
    )
