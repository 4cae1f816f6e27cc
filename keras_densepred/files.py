"""Writing files that are either complete or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` under a temporary name in the same folder and renames it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


@contextlib.contextmanager
def replacing(path: Path, name: str) -> Iterator[Path]:
    """A temporary place for a file or directory that others write; renamed to `path` at the end.

    Args:
        path: the file or directory to be; an old one is replaced.
        name: what the unfinished one is called, in a hidden folder beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / name
        yield unfinished
        if path.is_dir() and not path.is_symlink():
            os.replace(path, Path(folder) / "old")  # deleted with the folder
        os.replace(unfinished, path)
