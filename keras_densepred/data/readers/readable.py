"""Whether the files of a split can be read, found out before the first step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from keras_densepred.data.image_files import (
    ImageError,
    OnBadImage,
    check_on_bad_image,
    check_whole,
)
from keras_densepred.data.records import DatasetError

# Decoded within about 15 seconds on 2 cores, COCO's validation split (3 ms an image).
_MOST_DECODED = 5_000
_MOST_OPENED = 20_000  # about a second from a disk
_THREADS = min(8, os.cpu_count() or 1)  # decoding releases Python's lock


def require_readable(
    dataset: Any, on_bad_image: OnBadImage = "raise", *, decode: bool = True
) -> tuple[str, ...]:
    """Reads the images of a split once, so that a broken one shows before training.

    Args:
        dataset: a split of any task. One without `image_path(index)`, which is generated or in
            files of its own, is not looked at.
        on_bad_image: `"skip"` accepts images that cannot be read.
        decode: True decodes up to 5,000 images, of more every n-th, with their masks: for
            validation. False reads the first and last bytes of up to 20,000: for training.

    Returns:
        What is wrong with those that cannot be read, a sentence each; empty with `"raise"`.

    Raises:
        ImageError: if one cannot be read and `on_bad_image` is `"raise"`, or if none can.
    """
    check_on_bad_image(on_bad_image)
    if not hasattr(dataset, "image_path"):
        return ()
    most = _MOST_DECODED if decode else _MOST_OPENED
    indices = range(0, len(dataset), max(1, -(-len(dataset) // most)))
    faults = [
        fault for fault in find_unreadable(dataset, indices, decode=decode) if fault is not None
    ]
    if not faults:
        return ()
    if len(faults) == len(indices):
        more = f", as are all {len(faults):,} images looked at" if len(faults) > 1 else ""
        raise ImageError(f"{faults[0].rstrip('.')}{more}.")
    if on_bad_image == "raise":
        more = f" ({len(faults) - 1:,} more cannot be used)" if len(faults) > 1 else ""
        raise ImageError(
            f"{faults[0].rstrip('.')}{more}; or leave such images out with --on-bad-image skip."
        )
    return tuple(faults)


def find_unreadable(
    dataset: Any, indices: Iterable[int], *, decode: bool = True
) -> Iterator[str | None]:
    """Reads images of a split, several at a time.

    Args:
        dataset: the split.
        indices: numbers of images.
        decode: whether to read them in full, with their masks; else the first and last bytes.

    Yields:
        What is wrong with each, or None, in the order of `indices`.
    """

    def fault_of(index: int) -> str | None:
        try:
            if decode:
                dataset[index]
            else:
                check_whole(dataset.image_path(index))
        except (ImageError, DatasetError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(fault_of, indices)


def readable_items(dataset: Any, indices: Iterable[int]) -> Iterator[Any]:
    """Items of a split, without those whose images cannot be read.

    For pictures of what a run found that was told to skip such images.

    Args:
        dataset: a split of any task.
        indices: of the items.
    """
    for index in indices:
        try:
            item = dataset[int(index)]
        except (ImageError, DatasetError):
            continue
        yield item
