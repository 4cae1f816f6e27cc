"""Data sets of TensorFlow Datasets, at random access and without TensorFlow."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.image_files import decode_image, open_image, stored_size
from keras_densepred.data.readers.class_summary import ClassSummary
from keras_densepred.data.readers.listing import input_path
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import DatasetSummary
from keras_densepred.data.records import DatasetError, LabelledImage, Record


class TfdsDetection:
    """One split of a TFDS data set with `image`, `objects/bbox` and `objects/label`.

    A random-access sequence of `Record`s over `tfds.data_source`, for `coco/2017` and any set with
    the same features; `objects/is_crowd`, `objects/area` and `image/id` are used where there.
    TFDS stores boxes relative to the image as stored in the file, so an EXIF orientation is
    not applied. Category ids are the labels: TFDS does not keep COCO's. Reading needs no
    TensorFlow; preparing a data set the first time may. Requires tensorflow-datasets and Pillow,
    extra `data`.

    `image_ids`, `ground_truth()` and `summary()` read every example once, without decoding
    images; training alone does not.

    Args:
        name: registered name, with config and version where wanted, such as `"coco/2017"`.
        split: split in TFDS' notation, such as `"train"` or `"validation[:1000]"`.
        data_dir: TFDS' folder; None for its default, `~/tensorflow_datasets`.

    Raises:
        DatasetError: if the data set or split does not exist, cannot be downloaded, is prepared
            in a format without random access, or is not a detection set.
    """

    def __init__(
        self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.name, self.split = name, split
        self._source = open_tfds(name, split, data_dir)
        features = self._source.dataset_info.features
        self._has_image_ids = "image/id" in features and np.issubdtype(
            features["image/id"].np_dtype, np.integer
        )
        self._class_names = _class_names(features, name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """Reads example number `index`.

        Raises:
            ImageError: if the image cannot be decoded.
            DatasetError: if a box is not finite.
        """
        index = range(len(self))[operator.index(index)]
        example = self._source[index]
        image = decode_image(example["image"], self._example_name(index), upright=False)
        table = self._build_table({index: example}, {index: image.shape[:2]})
        return Record(image=image, **table.fields(0))

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        return f"TfdsDetection({self.name!r}, {self.split!r}, images={len(self)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The labels themselves."""
        return tuple(range(len(self._class_names)))

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The feature `image/id` of each record, or its position where there is none."""
        return tuple(self._table.image_ids.tolist())

    def ground_truth(self) -> dict:
        """The split as a COCO dictionary for evaluation, as `CocoDataset.ground_truth`."""
        return self._table.ground_truth()

    def summary(self) -> DatasetSummary:
        """Counts images, boxes, sizes, and what was dropped."""
        return self._table.summary(f"TFDS {self.name}, {self.split}")

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read examples only; the table of all objects stays here.
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    @functools.cached_property
    def _table(self) -> ObjectTable:
        examples, sizes = {}, {}
        for index in range(len(self)):
            example = dict(self._source[index])
            sizes[index] = stored_size(example.pop("image"), self._example_name(index))
            examples[index] = example
        return self._build_table(examples, sizes)

    def _example_name(self, index: int) -> str:
        return f"TFDS {self.name}, {self.split}, image {index}"

    def _build_table(
        self, examples: Mapping[int, Mapping], sizes: Mapping[int, tuple[int, int]]
    ) -> ObjectTable:
        """The objects of some examples, keyed by position in the split."""
        image_of, relative, labels, crowd, areas, names = [], [], [], [], [], []
        for row, (index, example) in enumerate(examples.items()):
            objects = example["objects"]
            count = len(objects["label"])
            image_of += [row] * count
            relative += list(objects["bbox"])
            labels += list(objects["label"])
            crowd += list(objects.get("is_crowd", [False] * count))
            areas += list(objects.get("area", [np.nan] * count))
            names += [f"object {number}" for number in range(count)]
            if not np.isfinite(np.asarray(objects["bbox"])).all():
                raise DatasetError(
                    f"{self._example_name(index)} has a box that is not four finite numbers: "
                    "prepare the data set again, or leave this example out of the split."
                )
        image_sizes = np.array(list(sizes.values()), np.int32).reshape(-1, 2)
        rows = np.array(image_of, np.int64)
        ymin, xmin, ymax, xmax = np.array(relative, np.float64).reshape(-1, 4).T
        boxes = np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=1)
        boxes *= image_sizes[rows][:, [1, 0, 1, 0]]
        return ObjectTable.build(
            class_names=self.class_names,
            category_ids=self.category_ids,
            image_ids=np.array(
                [
                    int(example["image/id"]) if self._has_image_ids else index
                    for index, example in examples.items()
                ],
                np.int64,
            ),
            image_sizes=image_sizes,
            file_names=[self._example_name(index) for index in examples],
            image_of=rows,
            boxes=boxes,
            labels=np.array(labels, np.int32),
            crowd=np.array(crowd, bool),
            areas=np.array(areas, np.float64),
            object_name=names.__getitem__,
        )


class TfdsClassification:
    """One split of a TFDS data set with `image` and `label`.

    A random-access sequence of `LabelledImage`s over `tfds.data_source`, for `imagenet2012`,
    `i_naturalist2018` and any set with the same features. Reading needs no TensorFlow; preparing a
    data set the first time may. Requires tensorflow-datasets, Pillow and OpenCV, extra `data`.

    Args:
        name: registered name, with config and version where wanted, such as `"imagenet2012"`.
        split: split in TFDS' notation, such as `"train"` or `"validation[:1000]"`.
        data_dir: TFDS' folder; None for its default, `~/tensorflow_datasets`.

    Raises:
        DatasetError: if the data set or split does not exist, cannot be downloaded, is prepared
            in a format without random access, or is not a classification set.
    """

    def __init__(
        self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.name, self.split = name, split
        self._source = open_tfds(name, split, data_dir)
        features = self._source.dataset_info.features
        names = getattr(features["label"], "names", None) if "label" in features else None
        if "image" not in features or not names:
            raise DatasetError(
                f"TFDS {name} is not a classification data set of the kind read here, with `image` "
                f"and named `label`: it has {', '.join(sorted(features))}."
            )
        self._class_names = tuple(names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> LabelledImage:
        """Reads example number `index`.

        Raises:
            ImageError: if the image cannot be decoded.
            DatasetError: if the example has no label, as in many test splits.
        """
        return self._read(index, decode_image)

    def encoded(self, index: int) -> LabelledImage:
        """As `[index]`, with an `EncodedImage` if the image is a JPEG."""
        return self._read(index, open_image)

    def _read(self, index: int, decode: Callable[[bytes, str], Any]) -> LabelledImage:
        index = range(len(self))[operator.index(index)]
        example = self._source[index]
        file_name = f"TFDS {self.name}, {self.split}, image {index}"
        label = int(example["label"])
        if not 0 <= label < len(self._class_names):
            raise DatasetError(
                f"{file_name} has the label {label}, and labels go from 0 to "
                f"{len(self._class_names) - 1}: take a split that is labelled."
            )
        return LabelledImage(decode(example["image"], file_name), label, index, file_name)

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        return f"TfdsClassification({self.name!r}, {self.split!r}, images={len(self)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The labels themselves."""
        return tuple(range(len(self._class_names)))

    def summary(self) -> ClassSummary:
        """Counts the images of each class; reads every example once and decodes none."""
        counts = [0] * len(self._class_names)
        for index in range(len(self)):
            counts[int(self._source[index]["label"])] += 1
        per_class = dict(zip(self._class_names, counts, strict=True))
        return ClassSummary(f"TFDS {self.name}, {self.split}", per_class)


def open_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    images: Sequence[str] = ("image",),
) -> Any:
    """A split at random access, its images not decoded.

    Args:
        name: registered name, with config and version where wanted.
        split: in TFDS' notation.
        data_dir: TFDS' folder; None for its default.
        images: the features that are images.

    Raises:
        DatasetError: if it cannot be opened.
    """
    tfds = require("tensorflow_datasets", "data")
    try:
        # The bytes are decoded here, so that all readers treat odd images alike.
        return tfds.data_source(
            name,
            split=split,
            data_dir=None if data_dir is None else str(input_path(data_dir)),
            decoders={image: tfds.decode.SkipDecoding() for image in images},
        )
    except NotImplementedError as error:
        raise DatasetError(
            f"TFDS {name} is prepared in a file format without random access: prepare it "
            "again, in another folder, with `file_format='array_record'`."
        ) from error
    except ModuleNotFoundError as error:
        # TFDS 4.9.10 reads without these, but prepares a registered set only with them
        # (tensorflow; importlib_resources, which it does not declare).
        raise DatasetError(
            f"TFDS {name} is not prepared yet, and preparing it needs the package "
            f"`{error.name}`: install that, or prepare the data set elsewhere."
        ) from error
    # TFDS' own refusals (unknown name, version or split), and the download failing.
    except (ValueError, AssertionError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DatasetError(
            f"TFDS {name}, split {split!r}, cannot be opened ({reason}): check the name, the "
            "split, the folder and the network."
        ) from error


def _class_names(features: Mapping, name: str) -> tuple[str, ...]:
    """The names of `objects/label`, after the features were found to be those of detection."""
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    names = getattr(objects["label"], "names", None) if "label" in objects else None
    if "image" not in features or "bbox" not in objects or not names:
        raise DatasetError(
            f"TFDS {name} is not a detection data set of the kind read here, with `image`, "
            f"`objects/bbox` and named `objects/label`: it has {', '.join(sorted(features))}."
        )
    return tuple(names)
