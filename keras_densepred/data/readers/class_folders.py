"""Images sorted into one folder per class, like ImageNet and most people's own data."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.image_files import (
    EncodedImage,
    ImageError,
    OnBadImage,
    check_header,
    check_on_bad_image,
    load_image,
    open_image,
    read_content,
)
from keras_densepred.data.readers.class_summary import ClassSummary, named
from keras_densepred.data.readers.listing import IMAGE_SUFFIXES, composed, input_path, require_text
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError, LabelledImage

_LEFT_BY_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})
# The beginning of so many files is read when a folder is opened, which takes about a second from
# a disk; of more files, as ImageNet's 1.28 million, every n-th.
_MOST_OPENED = 20_000
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}


class ImageFolder:
    """The images of one split, `directory/<class>/<image>`.

    A random-access sequence of `LabelledImage`s (a Grain data source). Labels are the positions of
    the class folders in the order of their names. The folder is listed when the data set is made:
    1.28 million names take some seconds and 50 MB. The first bytes of up to 20,000 files, evenly
    chosen, are read then too, so that most files that are no images show before training; an image
    is decoded when it is asked for.

    Hidden files and folders (`.DS_Store`), `Thumbs.db`, and files beside the class folders that
    are no images are ignored. Requires Pillow and OpenCV, extra `data`.

    Args:
        directory: the folder that the class folders are in.
        class_names: the classes in the order of their labels, such as those of the training
            split; None takes the folders found, sorted.
        on_bad_image: `"raise"` refuses a file that is no image and names it; `"skip"` leaves it
            out, and `summary()` counts it.

    Raises:
        DatasetError: if there is no such folder, it has no class folders, one of them has no
            image or a folder inside, they are not those of `class_names`, images lie beside them,
            or a name is not readable text or a link that leads out of `directory`.
        ImageError: if a file is not an image.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        class_names: Sequence[str] | None = None,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        check_on_bad_image(on_bad_image)
        self.directory = str(input_path(directory))
        found = _class_folders(self.directory)
        wanted = sorted(found) if class_names is None else class_names
        self.class_names = tuple(map(composed, wanted))
        _require_classes(self.directory, list(found), self.class_names)
        self._folders = tuple(found[name] for name in self.class_names)
        skipped: list[str] = []
        root = os.path.realpath(self.directory)
        names: list[str] = []
        counts: list[int] = []
        for name in self._folders:
            folder = os.path.join(self.directory, name)
            names += sorted(_image_names(folder, root, on_bad_image, skipped))
            counts.append(len(names) - sum(counts))
        self._keep(names, np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._require_images()
        bad = self._find_bad_files(on_bad_image, skipped)
        if bad:
            is_kept = np.ones(len(self), bool)
            is_kept[bad] = False
            self._keep([names[index] for index in np.flatnonzero(is_kept)], self._labels[is_kept])
            self._require_images()
        subject = "file" if len(skipped) == 1 else "files"
        what = f"{subject} skipped for not being an image"
        self._findings = (Finding(len(skipped), what, skipped[0]),) if skipped else ()

    def _keep(self, names: Sequence[str], labels: np.ndarray) -> None:
        """Keeps names as bytes: a list of a million strings takes long to send to a worker."""
        encoded = [os.fsencode(name) for name in names]
        self._names = b"".join(encoded)
        self._starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(name) for name in encoded], out=self._starts[1:])
        self._labels = labels

    def _require_images(self) -> None:
        counts = np.bincount(self._labels, minlength=len(self.class_names))
        if not counts.all():
            folder = os.path.join(self.directory, self._folders[int(counts.argmin())])
            raise DatasetError(
                f"{folder} has no images: put some there, or remove the class folder."
            )

    def _find_bad_files(self, on_bad_image: OnBadImage, skipped: list[str]) -> list[int]:
        """Opens up to `_MOST_OPENED` files; the indices of those that are no images."""
        bad = []
        for index in range(0, len(self), -(-len(self) // _MOST_OPENED)):
            try:
                check_header(self.image_path(index))
            except ImageError as error:
                if on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                bad.append(index)
        return bad

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> LabelledImage:
        """Reads image number `index`.

        Raises:
            ImageError: if the file cannot be decoded.
        """
        index = self._position(index)
        return self._labelled(index, load_image(self.image_path(index)))

    def encoded(self, index: int) -> LabelledImage:
        """As `[index]`, with an `EncodedImage` if the file is a JPEG."""
        index = self._position(index)
        path = self.image_path(index)
        return self._labelled(index, open_image(read_content(path), path))

    def image_path(self, index: int) -> str:
        """The file of image number `index`."""
        name = os.fsdecode(self._names[self._starts[index] : self._starts[index + 1]])
        return os.path.join(self.directory, self._folders[self._labels[index]], name)

    def __repr__(self) -> str:
        # Grain compares this when a position is restored, so it names what the data depend on.
        return f"ImageFolder({self.directory!r}, classes={self.num_classes}, images={len(self)})"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The labels themselves."""
        return tuple(range(len(self.class_names)))

    @property
    def labels(self) -> np.ndarray:
        """`(len(self),)` int32, the label of each image."""
        return self._labels.copy()

    def summary(self) -> ClassSummary:
        """Counts the images of each class; opens none."""
        counts = np.bincount(self._labels, minlength=len(self.class_names)).tolist()
        per_class = dict(zip(self.class_names, counts, strict=True))
        return ClassSummary(self.directory, per_class, self._findings)

    def _position(self, index: int) -> int:
        return range(len(self))[operator.index(index)]

    def _labelled(self, index: int, image: np.ndarray | EncodedImage) -> LabelledImage:
        return LabelledImage(
            image=image,  # type: ignore[arg-type]
            label=int(self._labels[index]),
            image_id=index,
            file_name=self.image_path(index),
        )


def find_class_folders(data_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Finds the two splits of a tree of class folders.

    Args:
        data_dir: root of the tree, with `train` (or `training`) and `val` (or `validation`,
            `valid`, `test`, the first of these that is there).

    Returns:
        `{"train": folder, "val": folder}`, for `ImageFolder`.

    Raises:
        DatasetError: if either split is not there; the message says what was looked for.
    """
    root = input_path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder: give the root of a tree of class folders.")
    splits = {}
    for split, names in _SPLITS.items():
        existing = [root / name for name in names if (root / name).is_dir()]
        if not existing:
            raise DatasetError(
                f"{root} has no {split} split, looked for {', '.join(names)}: arrange the images "
                f"as {split}/<class>/<image>."
            )
        splits[split] = existing[0]
    return splits


def find_class_test(data_dir: str | os.PathLike[str]) -> Path:
    """The folder `test` of a tree of class folders, for `ImageFolder`.

    Raises:
        DatasetError: if it is not there.
    """
    folder = input_path(data_dir) / "test"
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not there: arrange the images as test/<class>/<image>.")
    return folder


def is_class_tree(data_dir: str | os.PathLike[str]) -> bool:
    """Whether `find_class_folders` is for a folder, and not a reader of data with annotations.

    Args:
        data_dir: root of a tree.
    """
    root = input_path(data_dir)
    splits = [root / name for names in _SPLITS.values() for name in names]
    folders = [entry.name for split in splits if split.is_dir() for entry in split.iterdir()]
    others = {"images", "masks", "labels", "annotations"}
    return bool(folders) and not (root / "annotations").exists() and not others & set(folders)


def _class_folders(directory: str) -> dict[str, str]:
    """The class folders: names of the classes, `composed`, and of their folders."""
    if not os.path.isdir(directory):
        raise DatasetError(f"{directory} is not a folder: give one with a folder for each class.")
    root = os.path.realpath(directory)
    folders: dict[str, str] = {}
    images = []
    for entry in _entries(directory, root):
        if entry.is_dir():
            if composed(entry.name) in folders:
                raise DatasetError(
                    f"{directory} has two folders called {entry.name}, whose accents are written "
                    "in two Unicode forms: move the images of one into the other."
                )
            folders[composed(entry.name)] = entry.name
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            images.append(entry.name)
    if images:
        raise DatasetError(
            f"{directory} has {len(images):,} images that are in no class folder, such as "
            f"{min(images)}: move them into the folder of their class."
        )
    if not folders:
        raise DatasetError(f"{directory} has no class folders: arrange it as <class>/<image>.")
    return folders


def _require_classes(directory: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses a folder whose classes are not those asked for."""
    if len(set(wanted)) < len(wanted):
        raise DatasetError(f"The class names for {directory} name a class twice: {named(wanted)}.")
    missing = [name for name in wanted if name not in set(found)]
    unknown = [name for name in found if name not in set(wanted)]
    faults = []
    if missing:
        faults.append(f"lacks {len(missing)} of the {len(wanted)} classes ({named(missing)})")
    if unknown:
        faults.append(f"has {len(unknown)} that are not among them ({named(unknown)})")
    if faults:
        raise DatasetError(
            f"{directory} {' and '.join(faults)}: arrange the same class folders in all splits."
        )


def _image_names(
    folder: str, root: str, on_bad_image: OnBadImage, skipped: list[str]
) -> Iterator[str]:
    """The names of the images in a class folder."""
    for entry in _entries(folder, root):
        if entry.is_dir():
            raise DatasetError(
                f"{entry.path} is a folder inside of a class folder: move its images up, so that "
                "each class is one folder."
            )
        # Files of other names are opened to see whether they are images.
        if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
            try:
                check_header(entry.path)
            except ImageError as error:
                if on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
        yield entry.name


def _entries(folder: str, root: str) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder without hidden ones and what operating systems leave behind.

    Raises:
        DatasetError: if the folder may not be read, a name is not text, or a link leads nowhere
            or out of `root`.
    """
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.startswith(".") or entry.name.lower() in _LEFT_BY_SYSTEMS:
                    continue
                require_text(entry.name, folder)
                if entry.is_symlink():
                    _check_link(entry.path, root)
                yield entry
    except PermissionError as error:
        raise DatasetError(
            f"{folder} may not be read by this user: check its permissions."
        ) from error


def _check_link(path: str, root: str) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise DatasetError(f"{path} is a link to {target}, which does not exist: remove it.")
    if os.path.commonpath([root, target]) != root:
        raise DatasetError(
            f"{path} is a link that leads out of {root}, to {target}: put the images themselves "
            "there."
        )
