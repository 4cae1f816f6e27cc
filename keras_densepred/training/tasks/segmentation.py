"""Recipes that train segmenters."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from keras_densepred import data, metrics, models
from keras_densepred.faults import SettingsError
from keras_densepred.files import renewing, write_atomically
from keras_densepred.report.confusion import draw_confusion
from keras_densepred.report.detection import evaluation_json
from keras_densepred.report.semantic import describe_iou, draw_segmentations, write_iou
from keras_densepred.saved.classes import write_classes
from keras_densepred.saved.writing import without_training_state
from keras_densepred.training.optim import averaged_weights
from keras_densepred.training.run import Recipe, Run
from keras_densepred.training.tasks.card import write_card
from keras_densepred.training.tasks.semantic_testing import LimitedTest, count_under_limits

NUM_SAMPLES = 8
SHAPES_SIZE = 192  # side of the built-in pictures
TRAIN_SHAPES, VAL_SHAPES = 1600, 200  # how many


@dataclasses.dataclass(frozen=True)
class Segmentation(Recipe):
    """A recipe that trains a segmenter; its settings are `SegmentationSettings`.

    Args:
        test_under_limits: whether `--sliding-window`, `--multi-scale` and `--flip` test images
            resized under two limits (`semantic_testing`), instead of at their own size.
    """

    test_under_limits: bool = False

    not_decisive: ClassVar[tuple[str, ...]] = (
        "evaluate_train",
        "sliding_window",
        "multi_scale",
        "flip",
    )

    def open_data(self, settings: Any) -> tuple[Any, Any]:
        """See `Recipe.open_data`."""
        if settings.data_dir and settings.tfds:
            raise SettingsError("Give --data-dir or --tfds, not both.")
        if settings.tfds or settings.data_dir:
            splits: Any
            if settings.tfds:
                splits = data.find_tfds_segmentation(settings.tfds)
            else:
                splits = data.find_segmentation_splits(
                    settings.data_dir, reduce_zero_label=settings.reduce_zero_label
                )
            return splits["train"], splits["val"]
        size = settings.image_size or SHAPES_SIZE
        return (
            data.ShapesSegmentation(TRAIN_SHAPES, size, settings.seed, "train"),
            data.ShapesSegmentation(VAL_SHAPES, size, settings.seed, "val"),
        )

    def open_stream(self, settings: Any, train: Any, **options: Any) -> data.BatchStream:
        """See `Recipe.open_stream`."""
        return data.train_mask_batches(train, **options)

    def pyramid_of(self, model: Any) -> Any:
        """See `Recipe.pyramid_of`."""
        return model.plain_backbone

    def example(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """See `Recipe.example`."""
        return data.model_input(model, batch), batch["semantic"]

    def open_evaluation(
        self,
        settings: Any,
        split: Any,
        shard: tuple[int, int],
        model: Any = None,
        own_size: bool = False,
    ) -> data.EvalBatches:
        """Whole images, fitted into the training crop or at their own size.

        Normalised, whatever the model takes: windows and scales are made of them here.
        """
        options = self.evaluation_options(settings, shard)
        if own_size:
            options["image_size"] = None
        return data.eval_mask_batches(split, **options)

    def train(self, run: Run) -> dict[str, float]:
        """Fits, tests as the flags say, and writes what was found class by class.

        Returns:
            What `metrics.PixelCounts.results` gives for the validation split, tested as the flags
            say; with `--evaluate-train` also `train_mIoU`.
        """
        settings, cluster, model = run.settings, run.cluster, run.model
        predictor = cluster.predictor(model)

        def evaluation_of(split: Any, own_size: bool = False, **options: Any) -> Any:
            return metrics.SegmentationEvaluation(
                self.open_evaluation(settings, split, cluster.shard, own_size=own_size),
                split.class_names,
                predictor=predictor,
                gather=cluster.gather,
                verbose=False,
                **options,
            )

        evaluation = evaluation_of(
            run.val, every=settings.evaluate_every, weights=lambda: averaged_weights(model)
        )
        run.fit(evaluation)
        evaluation.weights = contextlib.nullcontext  # the model holds the averages now
        if evaluation.confusion is None:  # the run had been finished before
            cluster.say("Evaluating ...")
            evaluation.evaluate(model)
        results = {"val": evaluation.results}
        confusion = evaluation.confusion
        rows = cluster.rows(settings.step_size)
        inference = inference_of(settings, rows, model.size_divisor)
        if inference is not None and self.test_under_limits:
            cluster.say("Testing on the validation images, one by one ...")
            counts = self.test(run, predictor, rows)
            results["val, tested"] = counts.results(run.val.class_names)
            confusion = counts.confusion
        elif inference is not None:
            cluster.say("Testing on the validation images ...")
            tester = evaluation_of(run.val, settings.sliding_window, inference=inference)
            results["val, tested"] = tester.evaluate(model)
            confusion = tester.confusion
        if settings.evaluate_train:
            cluster.say("Evaluating the training images ...")
            results["train"] = evaluation_of(run.train).evaluate(model)
        cluster.say("Drawing predictions and saving the preset ...")
        # Enough for the share of this process.
        chosen = spread(run.val, NUM_SAMPLES * cluster.shard[1])
        batches = self.open_evaluation(settings, chosen, cluster.shard)
        samples = predict_samples(predictor, batches, chosen)
        skipped = np.array([len(evaluation.batches.skipped_images)])
        images = len(run.val) - int(cluster.gather({"skipped": skipped})["skipped"].sum())
        with cluster.whole_weights(model):
            cluster.run_on_main(lambda: self.write(run, results, images, confusion, samples))
        return _report(run, results, images)

    def test(self, run: Run, predictor: Any, rows: int) -> metrics.PixelCounts:
        """Tests under two limits. Each process tests all images: their windows differ in number."""
        settings, model = run.settings, run.model
        options = self.preprocessing(settings).batch_options()
        test = LimitedTest(
            predictor.predict_on_batch,
            options["mean"],
            options["std"],
            short=settings.image_size,
            window=settings.image_size if settings.sliding_window else None,
            scales=models.PAPER_SCALES if settings.multi_scale else (1.0,),
            flip=settings.flip,
            size_multiple=model.size_divisor,
            rows=rows,
        )
        return count_under_limits(test, run.val)

    def write(
        self,
        run: Run,
        results: dict[str, dict[str, float]],
        images: int,
        confusion: np.ndarray,
        samples: tuple[list, list, list],
    ) -> None:
        """Writes tables and pictures of the classes and the preset with its model card."""
        model, train = run.model, run.train
        write_iou(run.output / "iou.csv", results)
        draw_confusion(confusion, train.class_names, run.output / "confusion.png", counted="pixels")
        content = {
            "data": repr(run.val),
            "images": images,
            "results": results.get("val, tested", results["val"]),
            "classes": list(train.class_names),
            "confusion": confusion.tolist(),
        }
        write_atomically(run.output / "evaluation.json", evaluation_json(content))
        draw_segmentations(
            *samples,
            train.class_names,
            run.output / "predictions.png",
            colours=getattr(train, "class_colours", None),
        )
        with renewing(run.output / "preset") as preset:
            model.plain_backbone.save_to_preset(str(preset / "backbone"))
            with without_training_state(model):
                model.save(preset / "segmenter.keras")
            write_classes(preset / "classes.json", train)
            self.preprocessing(run.settings).write(preset)
            write_card(
                run,
                preset,
                title=f"{type(model).__name__} with {type(model.plain_backbone).__name__}",
                task="image-segmentation",
                results=_together(results.get("val, tested", results["val"])),
                by_class=_classes_of(results.get("val, tested", results["val"])),
                usage="import keras\nimport keras_densepred\n\n"
                'model = keras.saving.load_model("DIRECTORY/segmenter.keras")\n'
                "labels = model.predict(images).argmax(axis=-1)",
            )


def _classes_of(results: dict[str, float]) -> dict[str, dict[str, float]]:
    return {
        name.removeprefix("IoU/"): {"IoU": value}
        for name, value in results.items()
        if name.startswith("IoU/")
    }


def _together(results: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in results.items() if not name.startswith("IoU/")}


def _report(run: Run, results: dict[str, dict[str, float]], images: int) -> dict[str, float]:
    """Says what was written and found; returns the last results."""
    say, output = run.cluster.say, run.output
    files = (
        *("settings.json", "metrics.csv", "curves.png", "iou.csv", "evaluation.json"),
        *("confusion.png", "predictions.png", "preset/"),
    )
    say(f"Wrote {', '.join(str(output / name) for name in files)}")
    say(describe_iou(results))
    last = dict(results.get("val, tested", results["val"]))
    if "train" in results:
        last["train_mIoU"] = results["train"]["mIoU"]
        say(f"mIoU {last['train_mIoU']:.3f} on {len(run.train)} training images")
    say(
        f"mIoU {last['mIoU']:.3f}, pixel accuracy {last['pixel_accuracy']:.3f} on {images} "
        "validation images"
    )
    return last


def inference_of(
    settings: Any, rows: int, size_divisor: int
) -> Callable[[Callable], Callable] | None:
    """Sliding windows, several scales and mirrored images, as the flags say; None for none."""
    if not (settings.sliding_window or settings.multi_scale or settings.flip):
        return None

    def inference(predict: Callable) -> Callable:
        if settings.sliding_window:
            predict = models.sliding_window(predict, settings.image_size, batch_size=rows)
        if settings.multi_scale or settings.flip:
            scales = models.PAPER_SCALES if settings.multi_scale else (1.0,)
            predict = models.multi_scale(predict, scales, settings.flip, size_divisor)
        return predict

    return inference


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some images of a segmentation data set, as one."""

    split: Any
    positions: tuple[int, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.split.class_names

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        return self.split[self.positions[index]]


def spread(split: Any, count: int) -> Chosen:
    """Images from all over a split: neighbours are often of one scene."""
    positions = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    return Chosen(split, tuple(positions.tolist()))


def predict_samples(predictor: Any, batches: Any, val: Any) -> tuple[list, list, list]:
    """Takes up to eight of this process' images: images, masks, what is found."""
    images: list[np.ndarray] = []
    truth, found = [], []
    for batch in batches:
        scores = np.asarray(predictor.predict_on_batch(batch["images"]))
        for row in np.flatnonzero(batch["valid"])[: NUM_SAMPLES - len(images)].tolist():
            record = val[int(batch["indices"][row])]
            images.append(record.image)
            truth.append(record.semantic)
            found.append(metrics.labels_at_own_size(scores, batch, row))
    return images, truth, found
