"""Recipes that train detectors."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, ClassVar

import numpy as np

from keras_densepred import data, metrics
from keras_densepred.files import renewing, write_atomically
from keras_densepred.report.detection import (
    describe_errors,
    evaluation_json,
    write_detection_report,
)
from keras_densepred.report.objects import draw_predictions, samples_of
from keras_densepred.saved.classes import write_classes
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.saved.writing import without_training_state
from keras_densepred.training.devices.cluster import Cluster, current_cluster
from keras_densepred.training.loop.in_output import (
    NO_EXTRAS,
    Batches,
    Extras,
    fit_in_output,
    tell_skipped,
)
from keras_densepred.training.optim import averaged_weights
from keras_densepred.training.run import Recipe, Run
from keras_densepred.training.tasks.card import write_card

NUM_SAMPLES = 8
MASK_SIZE = 112  # of the masks that train; four times what mask heads predict


@dataclasses.dataclass(frozen=True)
class Detection(Recipe):
    """A recipe that trains a detector; its settings are `DetectionSettings`.

    Args:
        sizes: takes the settings and the network's size divisor, returns the sizes of training
            images by step, for multi-scale training; None for images of one size.
        closing: takes the settings, returns from which step on others make the batches, and these;
            only how images are augmented may differ. None for batches of one kind.
        shapes_size: side of the built-in pictures in pixels.
    """

    sizes: Callable[[Any, int], data.RandomSizes] | None = None
    closing: Callable[[Any], tuple[int, Any]] | None = None
    shapes_size: int = 96

    packages: ClassVar[tuple[str, ...]] = ("faster_coco_eval",)

    def open_data(self, settings: Any) -> tuple[Any, Any]:
        """See `Recipe.open_data`."""
        fields = dataclasses.fields(data.DetectionFiles)
        return data.open_detection(
            tfds=settings.tfds,
            shapes_size=settings.image_size or self.shapes_size,
            seed=settings.seed,
            with_masks=settings.has_masks,
            files=data.DetectionFiles(**{f.name: getattr(settings, f.name) for f in fields}),
            say=current_cluster().say,
        )

    def open_stream(self, settings: Any, train: Any, **options: Any) -> data.BatchStream:
        """See `Recipe.open_stream`."""
        mask_size = MASK_SIZE if settings.has_masks else None
        return data.train_batches(
            train, max_boxes=settings.max_boxes, mask_size=mask_size, **options
        )

    def open_evaluation(
        self, settings: Any, split: Any, shard: tuple[int, int], model: Any = None
    ) -> data.EvalBatches:
        """See `Recipe.open_evaluation`."""
        return data.eval_batches(split, **self.evaluation_options(settings, shard, model))

    def example(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """See `Recipe.example`."""
        not_learned = ("images", "image_sizes")
        targets = {name: batch[name] for name in batch if name not in not_learned}
        return data.model_input(model, batch), targets

    def batches(self, settings: Any, train: Any, *, model: Any = None, **options: Any) -> Batches:
        """See `Recipe.batches`; with `sizes`, step by step at another size."""
        if self.closing is not None:
            return self._until_closing(settings, train, model=model, **options)
        if self.sizes is None:
            return super().batches(settings, train, model=model, **options)
        sizes = self.sizes(settings, getattr(model, "size_divisor", 1))
        largest = max(sizes.sizes)
        # Without the model, that is normalised: bytes would be rounded where they are resized.
        open_largest = super().batches(
            dataclasses.replace(settings, image_size=largest), train, **options
        )

        def batches_from(step: int) -> Generator[tuple[Any, Any], None, None]:
            with contextlib.closing(open_largest(step)) as opened:
                for number, (images, targets) in enumerate(opened, step):
                    yield _at_size(images, targets, sizes.at(number), largest)

        return batches_from

    def _until_closing(self, settings: Any, train: Any, **options: Any) -> Batches:
        """Batches of `settings`, then those of `closing`, with room for as many boxes."""
        assert self.closing is not None
        alone = dataclasses.replace(self, closing=None)
        last, others = self.closing(settings)
        if last <= 0:
            return alone.batches(others, train, **options)
        with self.stream(settings, train, settings.image_size, (0, 1)) as stream:
            room = {"max_boxes": stream.max_boxes}
        first, then = (
            alone.batches(dataclasses.replace(plan, **room), train, **options)
            for plan in (settings, others)
        )

        def batches_from(step: int) -> Generator[tuple[Any, Any], None, None]:
            if step < last:
                with contextlib.closing(first(step)) as opened:
                    yield from itertools.islice(opened, last - step)
            with contextlib.closing(then(max(step, last))) as opened:
                yield from opened

        return batches_from

    def train(self, run: Run) -> dict[str, float]:
        """See `train_detector`."""
        settings = run.settings
        streams: list[data.BatchStream] = []
        results = train_detector(
            run.model,
            self.batches(
                settings,
                run.train,
                model=run.model,
                streams=streams,
                shard=run.cluster.shard,
            ),
            cluster=run.cluster,
            train=run.train,
            val=run.val,
            eval_batches=self.open_evaluation(settings, run.val, run.cluster.shard, run.model),
            preprocessing=self.preprocessing(settings),
            output=run.output,
            decisive=run.decisive,
            left_open=run.left_open,
            batch_size=settings.step_size,
            epochs=settings.epochs,
            steps_per_epoch=settings.steps_per_epoch,
            evaluate_every=settings.evaluate_every,
            checkpoint_minutes=settings.checkpoint_minutes,
            extras=run.extras,
            card=functools.partial(write_detector_card, run),
        )
        tell_skipped(streams)
        return results


def _at_size(
    images: np.ndarray, targets: Mapping[str, np.ndarray], size: int, largest: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images and their boxes at another size."""
    is_padding = targets["labels"][..., None] < 0
    boxes = np.where(is_padding, targets["boxes"], targets["boxes"] * size / largest)
    return (
        data.resize_images(images, size),
        {**targets, "boxes": boxes.astype(np.float32)},
    )


def train_detector(
    model: Any,
    batches_from: Batches,
    *,
    cluster: Cluster,
    train: Any,
    val: Any,
    eval_batches: data.EvalBatches,
    preprocessing: Preprocessing,
    output: str | pathlib.Path,
    decisive: Mapping[str, Any],
    left_open: Collection[str] = (),
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    evaluate_every: int,
    checkpoint_minutes: float,
    extras: Extras = NO_EXTRAS,
    card: Callable[[pathlib.Path, metrics.DetectionReport], None] | None = None,
) -> dict[str, float]:
    """Fits a detector, or goes on with it, evaluates, and writes everything to `output`.

    In all processes alike. Written are `settings.json`, `checkpoints`, `metrics.csv`, `curves.png`,
    `predictions.png`, `evaluation.json` with what `write_detection_report` writes beside it, and
    `preset` with the backbone, the detector, the names of its classes and how
    its images are prepared.

    Args:
        model: a compiled `models.Detector`.
        batches_from: opens the training batches at a step, see `fit`.
        cluster: of `distribute`.
        train: the training split.
        val: the validation split.
        eval_batches: of the validation split.
        preprocessing: what these do to an image.
        output: directory of the run, see `claim_output`.
        decisive: what decides the run's result; a run with other values is another one.
        left_open: those of its names that no flag gave, see `claim_output`.
        batch_size: images per step over all devices.
        epochs: of the whole run.
        steps_per_epoch: batches in an epoch.
        evaluate_every: epochs between evaluations.
        checkpoint_minutes: between checkpoints within an epoch.
        extras: early stopping, loggers, more callbacks.
        card: writes a model card into the preset's directory.

    Returns:
        What `metrics.evaluate_detector` gives for the validation split, with averaged weights where
        the optimizer keeps them.

    Raises:
        SettingsError: if `output` holds something else.
        TrainingDiverged: if the loss becomes NaN.
    """
    output = pathlib.Path(output)
    predictor = cluster.predictor(model)
    evaluation = metrics.CocoEvaluation(
        eval_batches,
        val,
        every=evaluate_every,
        weights=lambda: averaged_weights(model),
        predictor=predictor,
        gather=cluster.gather,
        once=cluster.once,
        verbose=False,
    )
    fit_in_output(
        model,
        batches_from,
        evaluation,
        cluster=cluster,
        output=output,
        decisive=decisive,
        left_open=left_open,
        step_size=batch_size,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        checkpoint_minutes=checkpoint_minutes,
        extras=extras,
    )
    found = evaluation.found
    if found is None:  # the run had been finished before
        cluster.say("Evaluating ...")
        found = metrics.find_objects(predictor, eval_batches, val, gather=cluster.gather)
        evaluation.results = cluster.once(found.results)
    results = evaluation.results
    cluster.say("Drawing predictions, writing reports and saving the preset ...")
    files = ["settings.json", "metrics.csv", "curves.png", "predictions.png", "evaluation.json"]

    def write() -> None:
        report = metrics.DetectionReport.of(found, results)
        with renewing(output / "preset") as preset:
            model.plain_backbone.save_to_preset(str(preset / "backbone"))
            with without_training_state(model):
                model.save(preset / "detector.keras")
            write_classes(preset / "classes.json", train)
            preprocessing.write(preset)
            if card is not None:
                card(preset, report)
        samples = samples_of(found, val, NUM_SAMPLES)
        path = output / "predictions.png"
        draw_predictions(
            *(*samples, val.class_names, path),
            min_confidence=report.threshold,
            chosen=report.chosen,
        )
        text = evaluation_json({"data": repr(val), "images": found.images, **report.as_json()})
        write_atomically(output / "evaluation.json", text)
        files.extend(
            write_detection_report(
                report, val, lambda name, content: write_atomically(output / name, content)
            )
        )
        cluster.say(describe_errors(report))

    with cluster.whole_weights(model):
        cluster.run_on_main(write)
    cluster.say(f"Wrote {', '.join(str(output / name) for name in (*files, 'preset/'))}")
    masks = ""
    if "mask_AP" in results:
        masks = f", masks {results['mask_AP']:.3f} and {results['mask_AP50']:.3f}"
    cluster.say(
        f"AP {results['AP']:.3f}, AP50 {results['AP50']:.3f}{masks} on {found.images} validation "
        "images"
    )
    return results


def write_detector_card(run: Run, preset: pathlib.Path, report: metrics.DetectionReport) -> None:
    """Writes the model card of a detector.

    Args:
        run: that trained it.
        preset: the preset's directory.
        report: of the validation split.
    """
    model = run.model
    columns = ("objects", "AP", "AP50", "APs", "APm", "APl", "AR100")
    masks = report.by_class.get("masks", {})
    by_class = {}
    for name, row in report.by_class["boxes"].items():
        of_masks = {f"mask {key}": masks[name][key] for key in ("AP", "AP50")} if masks else {}
        by_class[name] = {**{column: row[column] for column in columns}, **of_masks}
    write_card(
        run,
        preset,
        title=f"{type(model).__name__} with {type(model.plain_backbone).__name__}",
        task="image-segmentation" if masks else "object-detection",
        results={
            **{n: v for n, v in report.results.items() if "AP/" not in n and v >= 0},
            "best confidence (F1)": report.threshold,
        },
        by_class=by_class,
        usage="import keras\nimport keras_densepred\n\n"
        'model = keras.saving.load_model("DIRECTORY/detector.keras")\n'
        "detections = model.predict(images)",
    )


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
        predictions = predictor.predict_on_batch(data.model_input(predictor, batch))
        for row in np.flatnonzero(batch["valid"])[: NUM_SAMPLES - len(images)]:
            record = dataset[index_of[int(batch["image_ids"][row])]]
            images.append(record.image)
            objects = {"boxes": record.boxes, "labels": record.labels}
            if record.masks is not None:
                objects["masks"] = record.masks
            truth.append(objects)
            found.append(metrics.detections_on_image(predictions, batch, row, record.size))
    return images, truth, found
