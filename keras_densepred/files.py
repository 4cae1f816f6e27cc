"""Writing files that are either complete or not there."""

import os
import pathlib


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` under a temporary name in the same folder and renames it to `path`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
