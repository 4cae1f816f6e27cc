"""All files below a folder, and images found by their names without suffix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    by_stem,
    require_text,
)
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError

_KINDS = IMAGE_SUFFIXES + UNREAD_SUFFIXES


def walk(folder: str) -> Iterator[str]:
    """Names of the files below a folder, relative to it; hidden ones left out.

    Folders are followed through links, each once.

    Raises:
        DatasetError: if a folder cannot be read.
    """
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        place = os.path.join(folder, inside) if inside else folder
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.is_dir():
                        waiting.append(name)
                    else:
                        yield name
        except OSError as error:
            raise DatasetError(f"{place} is not a readable folder: {error.strerror}.") from error


class ImageTree:
    """The images below a folder.

    Args:
        folder: the folder.

    Attributes:
        names: file names relative to the folder, sorted.

    Raises:
        DatasetError: if it is no folder, has no image, or a name is no text.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names: list[str] = []
        self._left_out: list[str] = []
        for name in walk(folder):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in _KINDS:
                require_text(name, folder)
                (self.names if suffix in IMAGE_SUFFIXES else self._left_out).append(name)
        self.names.sort()
        if not self.names:
            raise DatasetError(
                f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}): put some in."
            )

    def by_stem(self) -> dict[str, str]:
        """Names without suffix, `composed`, to names.

        Raises:
            DatasetError: if two images have the same, so that their labels would, too.
        """
        return by_stem(self.names, self.folder)

    def findings(self) -> tuple[Finding, ...]:
        """Counts images of kinds that are not read, which would be passed over in silence."""
        if not self._left_out:
            return ()
        what = "image left out" if len(self._left_out) == 1 else "images left out"
        what += ", of a kind that is not read: convert to JPEG or PNG"
        return (Finding(len(self._left_out), what, min(self._left_out)),)


def files_finding(names: Sequence[str], one: str, many: str) -> tuple[Finding, ...]:
    """A finding about files, if there are any."""
    return (Finding(len(names), one if len(names) == 1 else many, min(names)),) if names else ()
