"""Which run an output belongs to: the same command continues it, another run is refused."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_densepred import command, files
from keras_densepred.faults import SettingsError
from keras_densepred.files import is_free, write_atomically
from keras_densepred.saved.classes import read_classes
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.settings import flag_of

FILE_NAME = "settings.json"
FACTS = ("backend", "train_images", "classes")  # that decide a run and are no settings
GIVEN = "given"  # names of settings that flags gave to a run when it was started
FOLDER = "train_images_folder"  # the setting `train_images`, beside the fact of that name
# What a run trains: it decides many others, and is named before them.
_WHAT = ("detector", "head", "size")
# Settings that follow from others where no flag gives them.
_FOLLOWING = ("steps", "steps_per_epoch", "warmup_steps", "floor", "evaluate_every")
# By the name of a setting: what runs had before it could be set, by what they recorded.
Before = Mapping[str, Callable[[Mapping[str, Any]], Any]]
# What changes where a run continues or how fast it goes, but not its result.
_NOT_OF_THE_RESULT = (
    *("workers", "checkpoint_minutes", "output", "rematerialize", "shard_weights", "logger"),
    "val_loss",
    *("devices", "processes", "process_id", "coordinator"),
)


def decisive_settings(settings: Any, train: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    """Gives what decides a run's result: with other values it is another run.

    The classes are part of it, in the order of their labels: with the same weights, another order
    would give other names to what is found.

    Args:
        settings: a dataclass made by `parse_settings`, complete.
        train: the training split.
        but: more settings that leave the weights as they are.

    Returns:
        The settings by name without those of workers, devices and output, and the backend, the
        number of training images, and id and name of each class.
    """
    decisive = {
        FOLDER if name == "train_images" else name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _NOT_OF_THE_RESULT and name not in but
    }
    classes = zip(train.category_ids, train.class_names, strict=True)
    return decisive | {
        "backend": keras.config.backend(),
        "train_images": len(train),
        "classes": [[int(category_id), str(name)] for category_id, name in classes],
    }


def claim_output(
    output: str | pathlib.Path, settings: Mapping[str, Any], left_open: Collection[str] = ()
) -> pathlib.Path:
    """Takes a directory for a run, see `require_output`.

    Writes `settings.json` there, by which the next start recognises the run, with the names of what
    flags gave; that of a run which is there already stays as it is.

    Returns:
        The directory.

    Raises:
        SettingsError: if another run or other files are there.
    """
    output = pathlib.Path(output)
    require_output(output, settings, left_open)
    path = output / FILE_NAME
    if not path.is_file():
        ours = json.loads(json.dumps(dict(settings)))
        ours[GIVEN] = sorted(ours.keys() - {*left_open, *FACTS})
        write_atomically(path, (json.dumps(ours, indent=2) + "\n").encode())
    return output


def require_output(
    output: pathlib.Path,
    settings: Mapping[str, Any],
    left_open: Collection[str] = (),
    before: Before | None = None,
) -> None:
    """Makes sure that a directory is new or empty, or of a run with the same settings.

    Args:
        output: the directory.
        settings: JSON-able; what decides the run's result.
        left_open: names of settings that no flag gave. A run that was started before there was
            such a setting is the same run; of one that differs, those are named that a flag gave
            to it or gives now, and what is trained before all.
        before: see `Recipe.before`.

    Raises:
        SettingsError: if another run or other files are there.
    """
    path = output / FILE_NAME
    ours = json.loads(json.dumps(dict(settings)))
    if path.is_file():
        recorded = read_settings(path)
        theirs = _decisive(in_todays_terms(recorded, before))
        if "classes" in ours:
            theirs.setdefault("classes", _written_classes(output) or ours["classes"])
        if FOLDER in ours:
            theirs.setdefault(FOLDER, ours[FOLDER])
        unknown = {name for name in left_open if name not in theirs}
        different = [
            name
            for name in sorted(ours.keys() | theirs.keys())
            if name not in unknown and theirs.get(name) != ours.get(name)
        ]
        if strange := [name for name in different if name not in {*ours, *FACTS}]:
            raise SettingsError(
                f"{output} holds a run of another recipe (its settings have {strange[0]}, which "
                "this one does not know): give another --output."
            )
        if different:
            if ours.get("classes") != theirs.get("classes"):
                raise SettingsError(_other_classes(output, theirs["classes"], ours["classes"]))
            given = {*recorded.get(GIVEN, ()), *(ours.keys() - {*left_open, *FACTS})}
            named = _worth_naming(different, given)
            was, now = (", ".join(_in_words(n, s.get(n)) for n in named) for s in (theirs, ours))
            raise SettingsError(
                f"{output} holds a run with other settings: it has {was}, and this command {now}. "
                "Give another --output, or the same command as before to continue it; --extend "
                f"{output} with another --output trains it longer once it is finished."
            )
        return
    if not is_free(output):
        raise SettingsError(
            f"{output} exists and is not the output of a run (it has no settings.json): give "
            "another --output."
        )


def _worth_naming(different: Sequence[str], given: Collection[str]) -> list[str]:
    """Of the settings that differ: what is trained and what flags gave, then or now.

    Or else what no other setting explains.
    """
    what = [name for name in _WHAT if name in different]
    for chosen in (
        [*what, *(name for name in different if name in given and name not in what)],
        [name for name in different if name in FACTS],
        [name for name in different if name not in _FOLLOWING],
    ):
        if chosen:
            return chosen
    return list(different)


def _in_words(name: str, value: Any) -> str:
    if name == "backend":
        return f"KERAS_BACKEND={value}"
    if name == "train_images":
        return f"{value} training images"
    flag = flag_of("train_images" if name == FOLDER else name)
    if value is None:
        return f"no {flag}"
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag} {value}"


def _written_classes(output: pathlib.Path) -> list[list[Any]] | None:
    """Those of a finished run that was started before settings.json had them."""
    classes = read_classes(output / "preset")
    if classes is None:
        return None
    return [list(pair) for pair in zip(classes.category_ids, classes.class_names, strict=True)]


def _other_classes(output: pathlib.Path, theirs: list[list[Any]], ours: list[list[Any]]) -> str:
    then, now = (", ".join(name for _, name in classes) for classes in (theirs, ours))
    if then == now:
        then, now = (", ".join(f"{name} = {key}" for key, name in c) for c in (theirs, ours))
    return (
        f"The run in {output} was started with the classes {then}, and the data now have {now}: "
        "labels would change their meaning. Give another --output, or the data of before."
    )


def recorded_settings(output: str | pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a claimed output's run was started with, which its checkpoints carry.

    Args:
        output: the directory, claimed.
        settings: those of this start, for a process that does not see the directory.
    """
    path = pathlib.Path(output) / FILE_NAME
    return _decisive(read_settings(path)) if path.is_file() else dict(settings)


def _decisive(recorded: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recorded.items() if name != GIVEN}


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """Reads the `settings.json` of a run.

    Raises:
        SettingsError: if it is not readable.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} is not readable, so the run in {path.parent} cannot be recognised: give "
            "another directory."
        ) from error


def in_todays_terms(recorded: Mapping[str, Any], before: Before | None) -> dict[str, Any]:
    """The recorded settings of a run, with what it had before that could be set."""
    return {**{name: rule(recorded) for name, rule in (before or {}).items()}, **recorded}


@contextlib.contextmanager
def own_output(cluster: Cluster, output: str) -> Iterator[None]:
    """Keeps other runs out of an output, and tells who interrupts this one how to go on.

    Args:
        cluster: of `distribute`; its main process owns the output.
        output: the directory.

    Raises:
        OutputError: if another run is writing there, or nothing can be.
    """
    hint = f"The same command continues the run in {output} from its last checkpoint."
    with contextlib.ExitStack() as stack:
        stack.enter_context(command.on_interrupt(hint))

        def lock() -> None:
            folder = pathlib.Path(output)
            # Of anything else `claim_output` says what is wrong with it.
            if files.is_free(folder) or (folder / "settings.json").is_file():
                if not folder.exists():
                    stack.callback(files.remove_if_empty, folder)  # of a run that did not get far
                files.require_possible(folder)
                stack.enter_context(files.locked(folder))

        cluster.run_on_main(lock)
        yield
