"""A validation split held out of images that have none, without tearing copies apart."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence

from keras_densepred.data.readers.listing import composed
from keras_densepred.data.records import DatasetError

# Roboflow's augmented copies: `cat_jpg.rf.0a1b2c.jpg` is made from `cat.jpg`.
_VARIANT = re.compile(r"(.+)\.rf\.\w+")


def hold_out(
    file_names: Sequence[str], folder: str, share: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chooses images for validation, the same whatever their order.

    Copies of one picture, by content or as Roboflow names what it made from one original, go
    together: found in training and validation, they would make the numbers too good. Images are
    drawn by a hash of their names, so that new ones change little.

    Args:
        file_names: of the images, relative to `folder`.
        folder: where they are.
        share: of the images that is wanted, above 0 and below 1.

    Returns:
        Positions for training, and for validation, each at least one, ascending.

    Raises:
        DatasetError: if the share cannot be, or all images are copies of one.
    """
    if not 0 < share < 1:
        raise DatasetError(f"A validation share of {share:g} cannot be: give one between 0 and 1.")
    groups = _copies(file_names, folder)
    if len(groups) < 2:
        what = "one image" if len(file_names) == 1 else "copies of one image alone"
        raise DatasetError(f"{folder} has {what}, too few to hold out a part for validation.")
    wanted = max(1, round(share * len(file_names)))
    held: list[int] = []
    for group in groups:
        if len(held) + len(group) <= wanted:
            held += group
    if not held:
        held = min(groups, key=len)
    chosen = set(held)
    kept = tuple(index for index in range(len(file_names)) if index not in chosen)
    return kept, tuple(sorted(held))


def _copies(file_names: Sequence[str], folder: str) -> list[list[int]]:
    """Positions of images that are copies of one another, in the order of a hash."""
    parents = list(range(len(file_names)))

    def root_of(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    by_size = defaultdict(list)
    by_key: dict[str | bytes, int] = {}
    for index, name in enumerate(file_names):
        parents[root_of(index)] = root_of(by_key.setdefault(_original(name), index))
        by_size[_size(os.path.join(folder, name))].append(index)
    for size, indices in by_size.items():
        if size < 0 or len(indices) < 2:
            continue
        for index in indices:
            content = _digest(os.path.join(folder, file_names[index]))
            parents[root_of(index)] = root_of(by_key.setdefault(content, index))
    groups = defaultdict(list)
    for index in range(len(file_names)):
        groups[root_of(index)].append(index)

    def drawn(group: list[int]) -> bytes:
        first = min(composed(file_names[index]) for index in group)
        return hashlib.sha256(first.encode("utf-8", "surrogateescape")).digest()

    return sorted(groups.values(), key=drawn)


def _original(name: str) -> str:
    """The picture that an image was made from, as Roboflow spells it: `cat_jpg`."""
    folder, base = os.path.split(composed(name))
    stem, suffix = os.path.splitext(base)
    variant = _VARIANT.fullmatch(stem)
    return os.path.join(folder, variant[1] if variant else f"{stem}_{suffix[1:]}")


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1  # reported when the image is read


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path.encode("utf-8", "surrogateescape")
