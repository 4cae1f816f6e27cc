"""What all detection recipes do around their model: fit, evaluate, draw, save."""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred import data, metrics
from keras_densepred.saved.classes import write_classes
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.loop.checkpoint import ResumableCheckpoint
from keras_densepred.training.loop.fit import fit
from keras_densepred.training.optim import averaged_weights
from keras_densepred.training.report.progress import MetricsLog, Progress, draw_predictions
from keras_densepred.training.settings import SettingsError, claim_output

NUM_SAMPLES = 8


def require_trainable(train: Any, batch_size: int, image_size: int) -> None:
    """Refuses what cannot be trained before anything slow happens.

    Args:
        train: the training split.
        batch_size: images per step.
        image_size: side of the training images in pixels.

    Raises:
        SettingsError: if there are too few images or no class, or the size is no multiple of 32.
    """
    if len(train) < batch_size:
        raise SettingsError(
            f"There are {len(train)} training images and a batch takes {batch_size}: "
            f"use --batch-size {len(train)} or less."
        )
    if image_size % 32:
        raise SettingsError(
            f"--image-size {image_size} is no multiple of 32, which the backbone needs."
        )
    if not train.class_names:
        raise SettingsError(
            "The training annotations name no category, so there is nothing to detect."
        )


def train_detector(
    model: keras.Model,
    batches_from: Callable[[int], Iterator],
    *,
    cluster: Cluster,
    train: Any,
    val: Any,
    eval_batches: data.EvalBatches,
    preprocessing: Preprocessing,
    output: str | pathlib.Path,
    decisive: Mapping[str, Any],
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    evaluate_every: int,
    checkpoint_minutes: float,
) -> dict[str, float]:
    """Fits a detector, or goes on with it, evaluates, and writes everything to `output`.

    In all processes alike. Written are `settings.json`, `checkpoints`, `metrics.csv`, `curves.png`,
    `predictions.png` and `preset` with the backbone, the detector, the names of its classes and how
    its images are prepared.

    Args:
        model: a compiled detector whose `predict` returns final boxes, with a `backbone`.
        batches_from: opens the training batches at a step, see `fit`.
        cluster: of `distribute`.
        train: the training split.
        val: the validation split.
        eval_batches: of the validation split.
        preprocessing: what these do to an image.
        output: directory of the run, see `claim_output`.
        decisive: what decides the run's result; a run with other values is another one.
        batch_size: images per step over all devices.
        epochs: of the whole run.
        steps_per_epoch: batches in an epoch.
        evaluate_every: epochs between evaluations.
        checkpoint_minutes: between checkpoints within an epoch.

    Returns:
        What `metrics.evaluate_detector` gives for the validation split, with averaged weights where
        the optimizer keeps them.

    Raises:
        SettingsError: if `output` holds something else.
        TrainingDiverged: if the loss becomes NaN.
    """
    output = pathlib.Path(output)
    cluster.run_on_main(lambda: claim_output(output, decisive))
    predictor = cluster.predictor(model)
    evaluation = metrics.CocoEvaluation(
        eval_batches,
        val,
        every=evaluate_every,
        weights=lambda: averaged_weights(model),
        predictor=predictor,
        gather=cluster.gather,
        verbose=False,
    )
    with contextlib.closing(Progress(batch_size)) as progress:
        fit(
            model,
            batches_from,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            checkpoint=ResumableCheckpoint(
                output / "checkpoints", decisive, every_minutes=checkpoint_minutes
            ),
            callbacks=[
                evaluation,
                MetricsLog(output / "metrics.csv", output / "curves.png"),
                progress,
            ],
        )
    if not evaluation.results:  # the run had been finished before
        cluster.say("Evaluating ...")
        evaluation.results = metrics.evaluate_detector(
            predictor, eval_batches, val, gather=cluster.gather
        )
    cluster.say("Drawing predictions and saving the preset ...")
    # The same number of batches in all processes, some of which may have fewer images in them.
    enough = -(-NUM_SAMPLES // cluster.rows(batch_size))
    samples = predict_samples(predictor, eval_batches, val, enough)

    def write() -> None:
        draw_predictions(*samples, val.class_names, output / "predictions.png")
        _plain_backbone(model).save_to_preset(str(output / "preset" / "backbone"))
        model.save(output / "preset" / "detector.keras")
        write_classes(output / "preset" / "classes.json", train)
        preprocessing.write(output / "preset")

    cluster.run_on_main(write)
    results = evaluation.results
    files = ("settings.json", "metrics.csv", "curves.png", "predictions.png", "preset/")
    cluster.say(f"Wrote {', '.join(str(output / name) for name in files)}")
    masks = ""
    if "mask_AP" in results:
        masks = f", masks {results['mask_AP']:.3f} and {results['mask_AP50']:.3f}"
    cluster.say(
        f"AP {results['AP']:.3f}, AP50 {results['AP50']:.3f}{masks} on {len(val)} validation images"
    )
    return results


def predict_samples(
    predictor: Any, batches: Any, dataset: Any, batch_count: int
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Takes up to eight images of the first batches: images, objects, what is found.

    Args:
        predictor: has `predict_on_batch`, as a detector or `Cluster.predictor` of one.
        batches: `data.eval_batches` of the split.
        dataset: the split.
        batch_count: batches to run; processes that predict together take the same number.

    Returns:
        Three lists as `draw_predictions` takes them, in pixels of the images; with masks where the
        records and the predictions have them.
    """
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    images: list[np.ndarray] = []
    truth, found = [], []
    for batch in itertools.islice(batches, batch_count):
        predictions = predictor.predict_on_batch(batch["images"])
        for row in np.flatnonzero(batch["valid"])[: NUM_SAMPLES - len(images)]:
            record = dataset[index_of[int(batch["image_ids"][row])]]
            images.append(record.image)
            objects = {"boxes": record.boxes, "labels": record.labels}
            if record.masks is not None:
                objects["masks"] = record.masks
            truth.append(objects)
            found.append(metrics.detections_on_image(predictions, batch, row, record.size))
    return images, truth, found


def tell_skipped(streams: Sequence[data.BatchStream]) -> None:
    """Prints which training images of these streams could not be read, if any."""
    skipped = {name for stream in streams for name in stream.skipped_images}
    if skipped:
        print(f"{len(skipped)} unreadable images were skipped: {', '.join(sorted(skipped))}")


def _plain_backbone(model: keras.Model) -> Any:
    """The detector's backbone without what a pyramid puts on it."""
    backbone: Any = model.backbone
    return getattr(backbone, "backbone", backbone)
