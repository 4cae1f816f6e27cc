"""Training in the output directory of a run: progress, `metrics.csv`, curves, checkpoints."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any

import keras

from keras_densepred import data
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.identity import claim_output, recorded_settings
from keras_densepred.training.length import advice
from keras_densepred.training.loop.best import BestEpoch
from keras_densepred.training.loop.checkpoint import ResumableCheckpoint
from keras_densepred.training.loop.fit import fit
from keras_densepred.training.optim import averaged_weights
from keras_densepred.training.report.loggers import make_logger
from keras_densepred.training.report.metrics_log import MetricsLog
from keras_densepred.training.report.progress import Progress

Batches = Callable[[int], Generator[tuple[Any, Any], None, None]]


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a run does beside training and evaluation.

    Args:
        patience: evaluations without a better one after which training stops; None for never.
        logger: one of `loggers.LOGGERS`, or None.
        callbacks: of the user.
        val_loss: measures the loss on validation images; None for not.
    """

    patience: int | None = None
    logger: str | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()
    val_loss: keras.callbacks.Callback | None = None


NO_EXTRAS = Extras()


def fit_in_output(
    model: keras.Model,
    batches_from: Batches,
    evaluation: Any,
    *,
    cluster: Cluster,
    output: pathlib.Path,
    decisive: Mapping[str, Any],
    left_open: Collection[str] = (),
    step_size: int,
    epochs: int,
    steps_per_epoch: int,
    checkpoint_minutes: float,
    extras: Extras = NO_EXTRAS,
) -> None:
    """Claims an output and fits a model in it: progress, `metrics.csv`, curves and checkpoints.

    The evaluation, a callback, tells the progress how far it is. With patience the model has the
    weights of the best epoch afterwards, and what the evaluation knows of the last is forgotten.
    """
    cluster.run_on_main(lambda: claim_output(output, decisive, left_open))
    checkpoint = ResumableCheckpoint(
        output / "checkpoints",
        recorded_settings(output, decisive),
        every_minutes=checkpoint_minutes,
    )
    log = MetricsLog(output / "metrics.csv", output / "curves.png")
    measured = [] if extras.val_loss is None else [extras.val_loss]
    callbacks = [evaluation, *measured, log]
    best = None
    if extras.patience:
        best = BestEpoch(
            evaluation.monitor,
            extras.patience,
            output / "best" / "weights.npz",
            lambda: averaged_weights(model),
        )
        callbacks.append(best)
    callbacks += [*extras.callbacks, *make_logger(extras.logger, output, decisive)]
    with contextlib.closing(Progress(step_size)) as progress:
        evaluation.on_batch = progress.on_evaluation_batch
        fit(
            model,
            batches_from,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            checkpoint=checkpoint,
            callbacks=[*callbacks, progress],
        )
    if best is not None and best.restore(model):
        if best.waited:
            evaluation.forget()
        cluster.say(
            f"The best epoch is {best.epoch} ({best.monitor} {best.best:.4g}): what follows is of "
            "its weights."
        )
    if said := advice(log.rows):
        cluster.say(said)


def tell_skipped(streams: Sequence[data.BatchStream]) -> None:
    """Prints which training images of these streams could not be read, if any, and why."""
    skipped = {name for stream in streams for name in stream.skipped_images}
    if skipped:
        print(f"{len(skipped)} unreadable images were skipped:", *sorted(skipped), sep="\n  ")
