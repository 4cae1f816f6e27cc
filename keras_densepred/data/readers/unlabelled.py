"""Image files given by name, as a data set without labels."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_densepred.data.image_files import ImageError, load_image, read_content, stored_size
from keras_densepred.data.readers.listing import IMAGE_SUFFIXES
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


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files that some names stand for.

    Args:
        names: files, folders (whose images are taken, not those of folders inside), or patterns
            such as `photos/*.jpg`.

    Returns:
        The files, each once, in the order of `names` and by name within a folder.

    Raises:
        ValueError: if a name stands for no file.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [entry for entry in path.iterdir() if _is_image(entry)]
            if not files:
                raise ValueError(f"{path} has no images: give a folder with image files in it.")
        elif path.exists():
            files = [path]
        else:
            files = [Path(match) for match in glob.glob(name) if os.path.isfile(match)]
            if not files:
                raise ValueError(f"There is no image {name}: give files, folders or a pattern.")
        found.update(dict.fromkeys(sorted(files)))
    return list(found)


def output_names(paths: Sequence[Path]) -> list[Path]:
    """Where the result for each image goes, below a folder: the same places, as PNG.

    Args:
        paths: of the images.

    Returns:
        Relative paths, all different: images whose names differ in the suffix alone keep it.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(root) for path in absolute]
    times = Counter(path.with_suffix("") for path in relative)
    return [
        path.with_suffix(".png")
        if times[path.with_suffix("")] == 1
        else path.with_name(f"{path.name}.png")
        for path in relative
    ]


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
