"""Writing that loses nothing: under a temporary name, then renamed, never over others' work.

The one module that writes for the package, its recipes and its tools.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from keras_densepred._optional import require

MARKER = ".keras_densepred.json"  # in a folder that a command made, with the command's name

LOCK = ".lock"  # in a folder that is being written to

UNFINISHED = ".unfinished"  # ends the name of what is being written; a killed process leaves it


class OutputError(ValueError):
    """An output that cannot be written or would replace what is not ours; one sentence."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced, which bash and zsh leave alone behind `--output=`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OutputError(f"{path} begins with ~ and names no home: write it out.") from error


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` under a temporary name in the same folder and renames it to `path`.

    For files inside of an output that has been claimed. Where the disk is full, the old file stays
    and nothing half-written is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_to_disk(path: Path, content: bytes | memoryview) -> None:
    """Writes a file within `renewing` and waits until it lies on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """A temporary place for a file or folder that others write; renamed to `path` at the end.

    A file at `path` is replaced, and a folder if it is one that this function made.

    Args:
        path: the file or folder to be.
        name: what the unfinished one is called, in a hidden folder beside `path`.

    Raises:
        OutputError: if another folder is there.
    """
    path = Path(path)
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(path) as folder:
        unfinished = Path(folder) / name
        yield unfinished
        if unfinished.is_dir():
            (unfinished / MARKER).write_text(json.dumps({"files": _listing(unfinished)}), "utf-8")
        _require_replaceable(path)  # it may have come while the export ran
        if path.is_dir():
            os.replace(path, Path(folder) / "old")  # deleted with the folder
        os.replace(unfinished, path)


@contextlib.contextmanager
def renewing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary place for all files of a folder inside of a claimed output.

    It takes the folder's place at the end: whoever reads the folder finds all files of before or
    all new ones.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(folder) as temporary:
        unfinished = Path(temporary) / "new"
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(unfinished, folder)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes of this machine out of an output; a killed one leaves no lock.

    What a killed one left unfinished there is removed.

    Raises:
        OutputError: if another process is writing there.
    """
    lock = require("filelock", "data").FileLock(Path(folder) / LOCK, timeout=0)
    try:
        lock.acquire()
    except TimeoutError as error:
        raise OutputError(
            f"Another run is writing to {folder}: wait for it, or give another --output."
        ) from error
    try:
        remove_unfinished(Path(folder))
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file
            (Path(folder) / LOCK).unlink()
        lock.release()


def require_new_file(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """Refuses an output that exists, before any work starts.

    Args:
        path: the file that a command is to write.
        inputs: what the command reads; never written over, whatever `overwrite` says.
        overwrite: whether a file may be replaced.
        is_ours: tells of a file whether the command wrote it earlier, so that it may be replaced.

    Returns:
        The path, `~` replaced.

    Raises:
        OutputError: if the file exists, a folder has its name, it is an input or lies in one, or it
            cannot be made there.
    """
    path = expanded(path)
    _require_no_input(path, inputs)
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file as --output.")
    if path.exists() and not overwrite and not is_ours(path):
        raise OutputError(f"{path} exists: give another --output, or --overwrite to replace it.")
    require_possible(path.parent)
    return path


def require_new_folder(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool | None = None,
) -> Path:
    """`require_new_file` for a folder that `replacing` is to make: one with others' files stays.

    `overwrite` None is of a command that replaces no folder.

    Raises:
        OutputError: if the folder exists, or with `overwrite` if it holds other files than an
            export's; or as in `require_new_file`.
    """
    path = expanded(path)
    _require_no_input(path, inputs)
    if path.exists() and not overwrite:
        choice = "" if overwrite is None else ", or --overwrite to replace it"
        raise OutputError(f"{path} exists: give another --output{choice}.")
    if path.is_file():
        raise OutputError(f"{path} is a file: give the name of a folder as --output.")
    _require_replaceable(path)
    require_possible(path.parent)
    return path


class CommandFolder:
    """A folder with the files of one command, which `claim_folder` gives.

    Attributes:
        path: of the folder, `~` replaced.
    """

    def __init__(self, path: Path, command: str):
        self.path = path
        self._command = command
        self._earlier = _earlier_files(path / MARKER)
        self._written: dict[str, str] = {}

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file, see `write_atomically`; returns its path."""
        path = self.path / name
        write_atomically(path, content)
        self._written[name] = _sum_of(content)
        return path

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A temporary place for a file that others write, or that memory does not hold."""
        path = self.path / name
        try:
            with replacing(path, path.name) as unfinished:
                yield unfinished
        except BaseException:
            for folder in Path(name).parents[:-1]:
                remove_if_empty(self.path / folder)
            raise
        self._written[name] = _sum_of_file(path)

    @property
    def written(self) -> Collection[str]:
        """Names of the files written so far, relative to the folder."""
        return self._written.keys()

    def note(self) -> None:
        """Writes down which files are the command's."""
        content = {"command": self._command, "written": {**self._earlier, **self._written}}
        write_atomically(self.path / MARKER, (json.dumps(content) + "\n").encode())

    def remove_earlier(self) -> None:
        """Removes what the command wrote earlier and not now, where nobody has changed it."""
        if not self._written:
            return
        for name in self._earlier.keys() - self._written.keys():
            path = self.path / name
            if path.is_file() and _sum_of_file(path) == self._earlier[name]:
                path.unlink()
                for folder in path.relative_to(self.path).parents[:-1]:
                    remove_if_empty(self.path / folder)
        self._earlier = {}


@contextlib.contextmanager
def claim_folder(
    path: str | os.PathLike[str],
    command: str,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> Iterator[CommandFolder]:
    """A folder for a command's files: a new or empty one, or one that this command made.

    Files that are there stay, but for those that the command wrote earlier: at the end the folder
    has this job's. A command that fails before it writes anything leaves a new folder as it was.

    Args:
        path: the folder.
        command: its name, by which the next run recognises the folder.
        inputs: what the command reads; the folder may be none of them.
        overwrite: whether to write into another folder, too.

    Yields:
        The folder, which exists, for what is written there.

    Raises:
        OutputError: if other files are there, it is an input, or it cannot be made.
    """
    path = expanded(path)
    _require_no_input(path, inputs)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file: give the name of a folder as --output.")
    marker = path / MARKER
    if not is_free(path) and not overwrite and _command_of(marker) != command:
        raise OutputError(
            f"{path} holds files that `{command}` did not write: give another --output, or "
            "--overwrite to write among them."
        )
    existed = path.exists()
    if existed and _command_of(marker) == command:
        for place in (path, *(below for below in path.rglob("*") if below.is_dir())):
            remove_unfinished(place)
    before = {file.name for file in path.iterdir()} if existed else set()
    require_possible(path)
    folder = CommandFolder(path, command)
    folder.note()
    try:
        yield folder
        folder.remove_earlier()
    finally:
        folder.note()
        if {file.name for file in path.iterdir()} == before | {MARKER} != before:
            marker.unlink()
            if not existed:
                remove_if_empty(path)


def remove_if_empty(folder: Path) -> None:
    """Removes a folder unless something is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_free(path: Path) -> bool:
    """Whether nothing is there, or a folder without files but those of a run that was killed."""
    if not path.exists():
        return True
    return path.is_dir() and all(
        file.name == LOCK or _is_unfinished(file) for file in path.iterdir()
    )


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was writing into a folder that nobody else writes to now."""
    for path in [file for file in folder.glob("*") if _is_unfinished(file)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)


def _command_of(marker: Path) -> str | None:
    try:
        return json.loads(marker.read_text(encoding="utf-8")).get("command")
    except (OSError, ValueError, AttributeError):
        return None


def _earlier_files(marker: Path) -> dict[str, str]:
    """The sums of the files that a command wrote into its folder, by name."""
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8"))["written"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sum_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(folder: Path) -> list[str]:
    """What lies in a folder, sub-folders included; the marker left out."""
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    return sorted(name for name in files if name != MARKER)


def _require_replaceable(path: Path) -> None:
    if path.is_symlink() and path.is_dir():
        raise OutputError(f"{path} is a link to a folder: give another name.")
    if not path.is_dir():
        return
    try:
        ours = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    if ours != _listing(path):
        raise OutputError(
            f"{path} is a folder with files that were not exported there: give another name."
        )


def _require_no_input(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    place = path.resolve()
    for name in inputs:
        given = expanded(name)
        if not given.exists():  # the name of a preset, a pattern
            continue
        given = given.resolve()
        inside = given.is_dir() and given in place.parents and (given / "config.json").exists()
        if place == given or place in given.parents or inside:
            raise OutputError(
                f"{path} would be written over {name}, which is read: give another --output."
            )


def require_possible(folder: Path) -> None:
    """Makes sure that files can be made in a folder, which need not be there yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"Nothing can be written to {folder} ({reason}).") from error
