"""Semantic segmentation data sets of TensorFlow Datasets, without TensorFlow."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.image_files import decode_image
from keras_densepred.data.readers.listing import unique_names
from keras_densepred.data.readers.mask_files import (
    check_labels,
    check_size,
    decode_mask,
    from_label,
)
from keras_densepred.data.readers.mask_summary import SegmentationSummary, summarize_masks
from keras_densepred.data.readers.tfds import open_tfds
from keras_densepred.data.records import DatasetError, Record, semantic_record

# What TFDS does not record: the value of the first class in the masks, and the class names.
_KNOWN: dict[str, tuple[int, Sequence[str]]] = {
    "oxford_iiit_pet": (1, ("pet", "background", "border"))
}


class TfdsSegmentation:
    """One split of a TFDS data set with `image` and a mask, an image feature of one channel.

    A random-access sequence of `Record`s over `tfds.data_source`, for `oxford_iiit_pet` and
    `cityscapes` among others. TFDS' `voc/2012` has boxes and no masks: `VocSegmentation` reads
    VOC's own files. Masks belong to the image as stored in the file, so an EXIF orientation is not
    applied. Requires tensorflow-datasets and Pillow, extra `data`.

    Args:
        name: registered name, with config and version where wanted, such as `"oxford_iiit_pet"`.
        split: split in TFDS' notation, such as `"train"` or `"test[:1000]"`.
        class_names: name of each label; None where TFDS knows them, or for `oxford_iiit_pet`.
        first_label: value of the first class in the masks; values below it are ignored. None
            means 0, or 1 for `oxford_iiit_pet`.
        data_dir: TFDS' folder; None for its default, `~/tensorflow_datasets`.

    Raises:
        DatasetError: if the data set or split cannot be opened, has no masks, or no names of
            classes are known.
    """

    def __init__(
        self,
        name: str,
        split: str,
        class_names: Sequence[str] | None = None,
        first_label: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name, self.split = name, split
        _refuse_scene_parsing(name)
        features = open_tfds(name, split, data_dir).dataset_info.features
        self._mask_feature = _mask_feature(features, name)
        first, known = _KNOWN.get(name.split("/")[0].split(":")[0], (0, ()))
        self._first_label = first if first_label is None else first_label
        names = class_names or getattr(features[self._mask_feature], "names", None) or known
        if not names:
            raise DatasetError(
                f"TFDS {name} does not say what the labels in `{self._mask_feature}` are: give "
                "`class_names`, one for each label."
            )
        self._class_names = unique_names(names, f"The list of classes of TFDS {name}")
        self._source = open_tfds(name, split, data_dir, ("image", self._mask_feature))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """Reads example number `index`.

        Raises:
            ImageError: if the image or the mask cannot be decoded.
            DatasetError: if they differ in size, or the mask has a label without a class.
        """
        index = range(len(self))[operator.index(index)]
        example, name = self._source[index], self._example_name(index)
        image = decode_image(example["image"], name, upright=False)
        semantic = self._decode(example[self._mask_feature], name)
        check_size(semantic, image, f"the mask of {name}", name)
        return semantic_record(image, semantic, index, name)

    def mask(self, index: int) -> np.ndarray:
        """Reads mask number `index` alone, `(H, W)` uint8, its labels checked."""
        mask = self._source[index][self._mask_feature]
        return self._decode(mask, self._example_name(index))

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        return f"TfdsSegmentation({self.name!r}, {self.split!r}, images={len(self)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self._class_names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The labels themselves."""
        return tuple(range(self.num_classes))

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The position of each record."""
        return tuple(range(len(self)))

    def summary(self) -> SegmentationSummary:
        """Counts pixels of each class; reads every mask once."""
        return summarize_masks(self, f"TFDS {self.name}, {self.split}")

    def _decode(self, content: bytes, name: str) -> np.ndarray:
        mask = decode_mask(content, f"the mask of {name}")
        check_labels(mask, self.num_classes, f"the mask of {name}", self._first_label)
        return from_label(mask, self._first_label)

    def _example_name(self, index: int) -> str:
        return f"TFDS {self.name}, {self.split}, image {index}"


def find_tfds_segmentation(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, TfdsSegmentation]:
    """Opens the split to train on and the one to evaluate on.

    Args:
        name: as of `TfdsSegmentation`.
        data_dir: as of `TfdsSegmentation`.

    Returns:
        `{"train": data set, "val": data set}`: TFDS' `train`, and `validation`, or `test` where
        there is none, or the last tenth of `train` where there is neither.

    Raises:
        DatasetError: as of `TfdsSegmentation`.
    """
    _refuse_scene_parsing(name)
    known = open_tfds(name, "train", data_dir).dataset_info.splits
    held_out = next((split for split in ("validation", "test") if split in known), None)
    splits = ("train", held_out) if held_out else ("train[:90%]", "train[90%:]")
    train, val = (TfdsSegmentation(name, split, data_dir=data_dir) for split in splits)
    return {"train": train, "val": val}


def _refuse_scene_parsing(name: str) -> None:
    """Refuses TFDS' set of that name, whose masks are others than one expects."""
    if name.split("/")[0].split(":")[0] == "scene_parse150":
        raise DatasetError(
            "TFDS scene_parse150 has ADE20K's images with instances of 100 things, not the masks "
            "of 150 classes: give the folder ADEChallengeData2016 of the scene parsing benchmark."
        )


def _mask_feature(features: Mapping, name: str) -> str:
    """The image feature of one channel beside `image`."""
    image_feature = require("tensorflow_datasets", "data").features.Image
    masks = [
        key
        for key, feature in features.items()
        if key != "image" and isinstance(feature, image_feature) and feature.shape[-1] == 1
    ]
    if "image" in features and len(masks) == 1:
        return masks[0]
    hint = ""
    if name.split("/")[0].split(":")[0] == "voc":
        hint = "; VOC's masks are in its own files, which `VocSegmentation` reads"
    raise DatasetError(
        f"TFDS {name} has no masks of classes, that is one image of one channel beside `image`: it "
        f"has {', '.join(sorted(features))}{hint}."
    )
