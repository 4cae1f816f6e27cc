"""`--extend RUN`: a finished run trains longer, with its settings, into another output."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_densepred import files, saved
from keras_densepred.faults import SettingsError
from keras_densepred.training import identity
from keras_densepred.training.experiments import Experiment, follows
from keras_densepred.training.settings import flag_of

# Where the data are: from the run all of it or, with another place, nothing.
_PLACES = ("data_dir", "tfds", "train_annotations")
_OF_A_PLACE = ("layout", "val_share", "train_images", "val_annotations", "val_images")
# How long the run trained, and what it started from.
_OF_ITS_START = (
    *("epochs", "steps", "minutes", "preset", "weights", "weights_of", "extend"),
    "layer_scale",  # an initial value, and of backbones without one that of all others
)
# Of the schedule; decided anew for the new one, if the run's are what nobody asked for.
OF_THE_SCHEDULE = (
    *("learning_rate", "floor", "warmup_steps", "steps_per_epoch"),
    "evaluate_every",
)


def flags_of_run(
    settings: type,
    said: Mapping[str, Any],
    experiments: Mapping[str, Experiment],
    defaults: Mapping[str, Any],
    before: identity.Before | None = None,
) -> dict[str, Any]:
    """Fills in what the flags beside `--extend` leave open from the run's settings.

    Args:
        settings: the dataclass of the recipe's settings.
        said: what the flags give, `extend` among it.
        experiments: of the recipe.
        defaults: of the recipe, for `experiments.complete`.
        before: of the recipe.

    Returns:
        The settings by name, as if flags had given them; `weights` is the run.

    Raises:
        SettingsError: if the run is none, of another recipe or not finished, if the output is the
            run's, or if flags contradict it.
    """
    run = files.expanded(said["extend"])
    recorded = _recorded(run, before)
    known = {field.name for field in dataclasses.fields(settings)}
    given = recorded.pop(identity.GIVEN, None)
    unknown = recorded.keys() - known - {*identity.FACTS, identity.FOLDER}
    if unknown:
        raise SettingsError(
            f"--extend {run} is a run of another recipe (its settings have {min(unknown)}, which "
            "this one does not know): extend it with that recipe."
        )
    try:
        saved.find_model(run)
    except ValueError as error:
        raise SettingsError(
            f"The run in {run} has not ended: the command that started it goes on with it, and "
            "--extend is for finished runs."
        ) from error
    _check(run, recorded, said)
    decided = {**recorded, "train_images": recorded.get(identity.FOLDER)}
    kept = {
        name: decided[name] for name in known - set(_OF_ITS_START) if decided.get(name) is not None
    }
    for name in OF_THE_SCHEDULE:
        # A run from before settings.json had what was given, is asked what nobody needed to give.
        if name in kept and (
            follows(recorded, name, experiments, defaults) if given is None else name not in given
        ):
            del kept[name]
    if any(said.get(name) for name in _PLACES):
        for name in (*_PLACES, *_OF_A_PLACE):
            kept.pop(name, None)
    return {**kept, **said, "extend": str(run), "weights": str(run)}


def _recorded(run: pathlib.Path, before: identity.Before | None) -> dict[str, Any]:
    path = run / identity.FILE_NAME
    if not path.is_file():
        raise SettingsError(
            f"--extend {run} is not the output of a run (there is no {path}): give the directory "
            "that a recipe wrote."
        )
    return identity.in_todays_terms(identity.read_settings(path), before)


def _check(run: pathlib.Path, recorded: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Refuses flags that do not go together with `--extend`."""
    if not any(said.get(name) for name in ("epochs", "steps", "minutes")):
        raise SettingsError(f"--extend {run} trains longer: say for how long, with --epochs.")
    for name in ("weights", "weights_of"):
        if name in said:
            raise SettingsError(
                f"--extend {run} starts from that run's weights: leave {flag_of(name)} out."
            )
    for name in ("preset", "experiment"):
        if name in said and said[name] != recorded.get(name):
            raise SettingsError(
                f"--extend {run} goes on with that run's {name}, {recorded.get(name)}: leave "
                f"{flag_of(name)} out, or start another run with --weights {run}."
            )
    output = said.get("output")
    if output is None or files.expanded(output).resolve() == run.resolve():
        raise SettingsError(
            f"--extend {run} leaves that run as it is and trains into another directory: give "
            "another --output."
        )
