"""Recipes that train classifiers."""

import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np

from keras_densepred import data, metrics
from keras_densepred.faults import SettingsError
from keras_densepred.files import renewing, write_atomically
from keras_densepred.report.classification import draw_classified
from keras_densepred.report.confusion import draw_confusion
from keras_densepred.report.detection import evaluation_json
from keras_densepred.saved.classes import write_classes
from keras_densepred.saved.writing import without_training_state
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.loop.in_output import Batches
from keras_densepred.training.optim import averaged_weights
from keras_densepred.training.run import Recipe, Run
from keras_densepred.training.tasks.card import write_card

NUM_SAMPLES = 24
SHAPES_SIZE = 64  # side of the built-in pictures
TRAIN_SHAPES, VAL_SHAPES = 1600, 400  # how many


@dataclasses.dataclass(frozen=True)
class Classification(Recipe):
    """A recipe that trains a classifier, with settings `mixup`, `cutmix` and `smoothing`."""

    has_val_loss: ClassVar[bool] = False  # its training's loss is of mixed images

    def open_data(self, settings: Any) -> tuple[Any, Any]:
        """See `Recipe.open_data`."""
        if settings.data_dir and settings.tfds:
            raise SettingsError("Give --data-dir or --tfds, not both.")
        if settings.tfds:
            return (
                data.TfdsClassification(settings.tfds, split="train"),
                data.TfdsClassification(settings.tfds, split="validation"),
            )
        if settings.data_dir:
            splits = data.find_class_folders(settings.data_dir)
            train, val = (data.ImageFolder(splits[name]) for name in ("train", "val"))
            data.require_same_class_names({"train": train, "val": val})
            return train, val
        size = settings.image_size or SHAPES_SIZE
        return (
            data.ShapesClassification(TRAIN_SHAPES, size, settings.seed, "train"),
            data.ShapesClassification(VAL_SHAPES, size, settings.seed, "val"),
        )

    def check_flags(
        self, settings: Any, given: Collection[str], undecided: Collection[str] = ()
    ) -> None:
        """See `Recipe.check_flags`; without the loss on validation images."""
        super().check_flags(settings, given, undecided)
        if settings.val_loss:
            raise SettingsError(
                "--val-loss compares with the training's loss, which a classifier has of mixed "
                "images and smoothed labels: leave it out; top-1 and the loss are evaluated anyway."
            )

    def prepare_memory(self, settings: Any) -> None:
        """See `Recipe.prepare_memory`; for small networks only.

        A quarter faster with a small network on CPU. With CEDNet-T, 8 images of 224 px on JAX, it
        is 5 %, and 6.7 GiB instead of 4.8.
        """
        if settings.experiment == "small":
            super().prepare_memory(settings)

    def open_stream(self, settings: Any, train: Any, **options: Any) -> data.BatchStream:
        """See `Recipe.open_stream`."""
        mixing = None
        if settings.mixup or settings.cutmix:
            mixing = data.Mixing(settings.mixup, settings.cutmix)
        return data.train_class_batches(
            train,
            mixing=mixing,
            blend_later=mixing is not None and options["mean"] is None,
            label_smoothing=settings.smoothing,
            **options,
        )

    def batches(self, settings: Any, train: Any, *, model: Any = None, **options: Any) -> Batches:
        """See `Recipe.batches`; mixed by the model, unless devices would part the pairs."""
        rows = settings.step_size // current_cluster().devices
        is_mixed = settings.mixup or settings.cutmix
        mixes = None if is_mixed and rows % 2 else model
        return super().batches(settings, train, model=mixes, **options)

    def open_evaluation(
        self, settings: Any, split: Any, shard: tuple[int, int], model: Any = None
    ) -> data.EvalBatches:
        """See `Recipe.open_evaluation`."""
        return data.eval_class_batches(split, **self.evaluation_options(settings, shard, model))

    def example(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """See `Recipe.example`."""
        return data.model_input(model, batch), batch["targets"]

    def train(self, run: Run) -> dict[str, float]:
        """Fits, and writes what is taken for what.

        Returns:
            The last evaluation: `val_loss`, `val_top1`, `val_top5`, and with averaged weights the
            same of those, `ema_val_top1` and so on.
        """
        settings, cluster, model = run.settings, run.cluster, run.model
        evaluation = metrics.ClassificationEvaluation(
            self.open_evaluation(settings, run.val, cluster.shard, model),
            len(run.train.class_names),
            every=settings.evaluate_every,
            averaged=(lambda: averaged_weights(model)) if settings.ema else None,
            predictor=cluster.predictor(model),
            gather=cluster.gather,
            verbose=False,
        )
        run.fit(evaluation)
        if evaluation.confusion is None:  # the run had been finished before
            cluster.say("Evaluating ...")
            evaluation.averaged = None  # the model holds them now
            evaluation.evaluate(model)
            if settings.ema:
                evaluation.results = {f"ema_{n}": v for n, v in evaluation.results.items()}
        cluster.say("Drawing the confusion of classes and saving the preset ...")
        samples = self.predict_samples(run, evaluation.predictor)
        with cluster.whole_weights(model):
            cluster.run_on_main(lambda: self.write(run, evaluation, samples))
        files = (
            *("settings.json", "metrics.csv", "curves.png", "evaluation.json", "confusion.png"),
            *("samples.png", "preset/"),
        )
        cluster.say(f"Wrote {', '.join(str(run.output / name) for name in files)}")
        results = evaluation.results
        shown = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in results.items()]
        assert evaluation.confusion is not None
        cluster.say(f"{', '.join(shown)} on {evaluation.confusion.sum()} validation images")
        return results

    def predict_samples(self, run: Run, predictor: Any) -> tuple[list, list, np.ndarray]:
        """Takes up to 24 images from all over the validation split: images, labels, logits."""
        prepared = self.preprocessing(run.settings)
        assert prepared.image_size is not None
        # As many as the model is compiled for already.
        rows = run.cluster.rows(run.settings.step_size)
        count = min(NUM_SAMPLES, rows, len(run.val))
        chosen = np.linspace(0, len(run.val) - 1, count).round().astype(int)
        items = list(data.readable_items(run.val, chosen))
        crops = [
            data.evaluation_crop(item.image, prepared.image_size, prepared.crop_ratio)
            for item in items
        ]
        images = (np.stack(crops).astype("float32") - prepared.mean) / prepared.std
        filled = images[np.arange(rows) % len(images)].astype("float32")
        logits = np.asarray(predictor.predict_on_batch(filled))[: len(items)]
        return [item.image for item in items], [item.label for item in items], logits

    def write(
        self,
        run: Run,
        evaluation: metrics.ClassificationEvaluation,
        samples: tuple[list, list, np.ndarray],
    ) -> None:
        """Writes the pictures and the preset with its model card."""
        settings, model, train = run.settings, run.model, run.train
        assert evaluation.confusion is not None
        draw_confusion(evaluation.confusion, train.class_names, run.output / "confusion.png")
        content = {
            "data": repr(run.val),
            "images": int(evaluation.confusion.sum()),
            "results": evaluation.results,
            "classes": list(train.class_names),
            "confusion": evaluation.confusion.tolist(),
        }
        write_atomically(run.output / "evaluation.json", evaluation_json(content))
        draw_classified(*samples, train.class_names, run.output / "samples.png")
        # With averaged weights the model holds those now.
        averaged = {n[4:]: v for n, v in evaluation.results.items() if n.startswith("ema_")}
        with renewing(run.output / "preset") as preset:
            with without_training_state(model):
                model.save_to_preset(str(preset / "classifier"))
            model.backbone.save_to_preset(str(preset / "backbone"))
            write_classes(preset / "classes.json", train)
            self.preprocessing(settings).write(preset)
            write_card(
                run,
                preset / "classifier",
                title=str(settings.weights or settings.preset),
                task="image-classification",
                results=averaged or evaluation.results,
                usage="import keras_densepred\n\n"
                f'classifier = keras_densepred.{type(model).__name__}.from_preset("DIRECTORY")',
            )
