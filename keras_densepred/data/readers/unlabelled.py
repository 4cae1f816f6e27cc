"""Image files given by name, as a data set without labels."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.image_files import (
    ImageError,
    begins_like_an_image,
    load_image,
    read_content,
    stored_size,
)
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    composed,
    input_path,
)
from keras_densepred.data.records import LabelledImage, Record, semantic_record


class _Unlabelled:
    """Image files, numbered.

    Args:
        paths: of the files.

    Attributes:
        image_ids: 1, 2 and so on.
    """

    class_names = ("",)

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self.image_ids = tuple(range(1, len(paths) + 1))

    def __len__(self) -> int:
        return len(self.paths)


class UnlabelledImages(_Unlabelled):
    """A sequence of `Record`s without objects, for `data.eval_batches` and `eval_mask_batches`.

    Args:
        paths: of the files.

    Attributes:
        max_objects: room for objects in a batch.
    """

    max_objects = 1

    def __getitem__(self, index: int) -> Record:
        """Reads image number `index`.

        Raises:
            ImageError: if it cannot be decoded.
        """
        image = load_image(self.paths[index])
        no_labels = np.zeros(image.shape[:2], np.uint8)
        record = semantic_record(image, no_labels, index, str(self.paths[index]))
        return record.replace(image_id=self.image_ids[index])

    def ground_truth(self) -> dict:
        """The images' sizes from their headers, 1x1 where a file cannot be read."""
        images = []
        for image_id, path in zip(self.image_ids, self.paths, strict=True):
            try:
                height, width = stored_size(read_content(str(path)), str(path))
            except ImageError:
                height = width = 1  # reported when the image is read
            images.append({"id": image_id, "height": height, "width": width})
        return {"images": images, "annotations": [], "categories": []}


class UnlabelledClassImages(_Unlabelled):
    """The same as `LabelledImage`s, for `data.eval_class_batches`."""

    def __getitem__(self, index: int) -> LabelledImage:
        """Reads image number `index`; its label is 0."""
        path = self.paths[index]
        return LabelledImage(load_image(path), 0, self.image_ids[index], str(path))


class _Pictures:
    """Images in memory, numbered.

    Args:
        images: each `(H, W, 3)` uint8, RGB.

    Attributes:
        image_ids: 1, 2 and so on.
    """

    class_names = ("",)
    max_objects = 1

    def __init__(self, images: Sequence[np.ndarray]):
        self.images = tuple(images)
        self.image_ids = tuple(range(1, len(self.images) + 1))

    def __len__(self) -> int:
        return len(self.images)


class Pictures(_Pictures):
    """`UnlabelledImages` in memory."""

    def __getitem__(self, index: int) -> Record:
        image = self.images[index]
        record = semantic_record(
            image, np.zeros(image.shape[:2], np.uint8), index, f"image {index}"
        )
        return record.replace(image_id=self.image_ids[index])

    def ground_truth(self) -> dict:
        """The images' sizes."""
        images = [
            {"id": image_id, "height": image.shape[0], "width": image.shape[1]}
            for image_id, image in zip(self.image_ids, self.images, strict=True)
        ]
        return {"images": images, "annotations": [], "categories": []}


class ClassPictures(_Pictures):
    """`UnlabelledClassImages` in memory."""

    def __getitem__(self, index: int) -> LabelledImage:
        return LabelledImage(self.images[index], 0, self.image_ids[index], f"image {index}")


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files that some names stand for.

    Args:
        names: files, folders, or patterns such as `photos/*.jpg`. Of a folder all files are taken
            that are images by their suffix or their first bytes, those in folders inside left out.

    Returns:
        The files, each once, in the order of `names` and by name within a folder. Some may turn
        out not to be readable.

    Raises:
        ValueError: if a name stands for no file.
    """
    found: dict[str, Path] = {}
    for name in names:
        path = input_path(name)
        if path.is_dir():
            files = [entry for entry in path.iterdir() if _is_image(entry)]
            if not files:
                raise ValueError(f"{path} has no images: give a folder with image files in it.")
        elif path.exists():
            files = [path]
        else:
            files = [Path(match) for match in glob.glob(str(path)) if os.path.isfile(match)]
            if not files:
                raise ValueError(f"There is no file {name}: give files, folders or a pattern.")
        for file in sorted(files):
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def output_names(paths: Sequence[Path]) -> list[Path]:
    """Where the result for each image goes, below a folder: the same places, as PNG.

    Args:
        paths: of the images.

    Returns:
        Relative paths, all different, on file systems that ignore case, too: `.png` takes the place
        of an image's suffix, or follows it where two results would have one name.
    """
    if not paths:
        return []
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(root) for path in absolute]
    short = [path.with_suffix(".png") for path in relative]
    long = [path.with_name(f"{path.name}.png") for path in relative]
    times = Counter(map(_same, short))
    of_others = Counter(map(_same, long))
    return [
        ours if times[_same(ours)] == 1 and not of_others[_same(ours)] else with_suffix
        for ours, with_suffix in zip(short, long, strict=True)
    ]


def _same(path: Path) -> str:
    """Equal for names that some file system takes for one."""
    return composed(str(path)).casefold()


def _is_image(path: Path) -> bool:
    # A broken link with an image's name is one, so that it is named when it cannot be read.
    if path.name.startswith(".") or path.is_dir():
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES + UNREAD_SUFFIXES or begins_like_an_image(path)
