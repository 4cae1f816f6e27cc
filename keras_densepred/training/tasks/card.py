"""The model card of a run."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping

from keras_densepred.saved.model_card import write_model_card
from keras_densepred.training.run import Run


def write_card(
    run: Run,
    directory: pathlib.Path,
    *,
    title: str,
    task: str,
    results: Mapping[str, float],
    usage: str,
    by_class: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Writes the model card of what a run trained.

    Args:
        run: the run.
        directory: of the preset.
        title: the model's name, to which that of the data is added.
        task: the hub's name of the task.
        results: of the validation split.
        usage: Python that loads the preset and uses it.
        by_class: class name to its numbers.
    """
    settings, train = run.settings, run.train
    source = settings.tfds or settings.data_dir or "the built-in shapes"
    prepared = run.recipe.preprocessing(settings)
    size = settings.image_size
    write_model_card(
        directory,
        title=f"{title} on {pathlib.PurePath(source).name}",
        task=task,
        data=f"{source}: {len(train):,} training and {len(run.val):,} validation images of "
        f"{len(train.class_names)} classes (`classes.json`), {size} x {size} pixels, normalised "
        f"with mean {prepared.mean} and standard deviation {prepared.std} (RGB, 0..255).",
        results=results,
        settings=dataclasses.asdict(settings),
        usage=usage,
        parameters=run.model.count_params(),
        by_class=by_class,
        command=shlex.join(["python", f"recipes/{run.recipe.name}.py", *run.argv]),
    )
