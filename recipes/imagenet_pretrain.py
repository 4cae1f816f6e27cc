"""Pretraining on ImageNet-1K or any class folders, with each family's published settings by name.

CEDNet (authors' code, ConvNeXt's commands): 300 epochs at 224 px, batch 4096, AdamW 4e-3 with 20
warm-up epochs and a cosine, decay 0.05 on matrices, mixup / cutmix, RandAugment, random erasing,
label smoothing, drop path, layer scale, averaged weights, one head at every stage.

BiCSNet (ImageNet and iNaturalist): 250 epochs at 224 px, batch 1024, 5 warm-up epochs and a cosine,
crop and flip; P4..P7 at the size of P3 are averaged with it. The paper names neither optimizer nor
rate: SGD at 0.4 is ours.

CSPNet (section 4.1 and the authors' cfg files): 800,000 steps of batch 128, dense networks twice as
many, SGD 0.1 with the fourth power of what is left of the run, momentum 0.9, decay 5e-4 (the cfgs;
the paper prints 0.005). Crop and flip, where the cfgs have Darknet's own colours and angles.

    python recipes/imagenet_pretrain.py                                     # built-in shapes
    python recipes/imagenet_pretrain.py --data-dir MY_FOLDERS --image-size 128 --output runs/mine
    python recipes/imagenet_pretrain.py --data-dir IMAGENET --preset cednet_next_tiny
    python recipes/imagenet_pretrain.py --data-dir IMAGENET --experiment bicsnet_imagenet
    python recipes/imagenet_pretrain.py --data-dir IMAGENET --preset csp_peleenet
    torchrun --nproc-per-node 8 recipes/imagenet_pretrain.py --data-dir IMAGENET  # PyTorch, 8 GPUs

Settings left open come from `--experiment`, by default the family's on 100,000 images and more, and
those of a short run from random weights on fewer. Killed at any moment, the same command continues
exactly. guides/scale.md says what a full run takes and how to start it on several machines.

Status: ImageNet not yet run. Class folders of some hundred images train from random weights in
minutes on two CPU cores.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import data, metrics, models, training
from keras_densepred.training import setting

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB
STD = (58.395, 57.12, 57.375)
PAPER_IMAGES = 100_000  # training images from which on the paper's settings are the default
SMALL_STEPS = 700  # steps of a run from random weights on few images
CROP_RATIO = 0.875  # share of the resized image that evaluation looks at
WARPED_FROM = 384  # pixels from which on evaluation warps the whole image (CEDNet's code)

_BICSNET: dict[str, Any] = {  # BiCSNet, section on classification
    "preset": "bicsnet_48",
    "image_size": 224,
    "batch_size": 1024,
    "epochs": 250,
    "warmup_epochs": 5.0,
    # The paper names no optimizer: SGD of its detectors, at the usual 0.1 for a batch of 256.
    "optimizer": "sgd",
    "learning_rate": 0.4,
    "floor": 0.0,
    "weight_decay": 4e-5,
    "ema": 0.0,
    "min_area": 0.08,
    "rand_augment": False,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "smoothing": 0.0,
    "evaluate_every": 10,
}
_CSPNET: dict[str, Any] = {  # CSPNet, section 4.1
    **_BICSNET,
    "preset": "csp_resnext_50",
    "image_size": 256,  # at which the paper counts operations
    "batch_size": 128,
    "epochs": 80,  # 800,000 steps
    "warmup_epochs": 0.0,
    "schedule": "power4",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
}
# Named settings. A family adds its paper's here; the flags go before them.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "cednet": {  # CEDNet, authors' code, main.py's defaults and TRAINING.md's commands
        "preset": "cednet_next_tiny",
        "image_size": 224,
        "batch_size": 4096,
        "epochs": 300,
        "warmup_epochs": 20.0,
        "optimizer": "adamw",
        "learning_rate": 4e-3,
        "floor": 1e-6,
        "weight_decay": 0.05,
        "ema": 0.9999,
        "min_area": 0.08,
        "rand_augment": True,
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "smoothing": 0.1,
        "layer_scale": 1e-6,
        "evaluate_every": 10,
    },
    "bicsnet_imagenet": _BICSNET,
    "bicsnet_inaturalist": _BICSNET,  # the same; the data have 8142 classes
    "cspnet": _CSPNET,
    "cspnet_dense": {**_CSPNET, "preset": "csp_peleenet", "epochs": 160},
    "small": {  # some hundred to some thousand images, from random weights
        "preset": "cednet_next_pico",
        "image_size": 128,
        "batch_size": 32,
        "warmup_epochs": 2.0,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "floor": 1e-5,
        "weight_decay": 0.05,
        "ema": 0.99,
        "min_area": 0.3,
        "rand_augment": False,
        "erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "smoothing": 0.1,
        "layer_scale": 0.2,
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; None means that the experiment decides, see `complete`."""

    # data
    data_dir: str | None = setting(None, "folder with train/CLASS and val/CLASS; none: shapes")
    tfds: str | None = setting(None, "TensorFlow Datasets name instead, such as imagenet2012")
    experiment: str | None = setting(None, "named settings (by the data)", tuple(EXPERIMENTS))
    image_size: int | None = setting(None, "side of training images (paper: 224)")
    batch_size: int | None = setting(None, "images of one update (CEDNet: 4096, BiCSNet: 1024)")
    accumulate: int = setting(1, "steps whose gradients make one update")
    min_area: float | None = setting(None, "smallest crop, as a share of the area (papers: 0.08)")
    rand_augment: bool | None = setting(None, "RandAugment m9 mstd0.5 inc1 (CEDNet: yes)")
    erasing: float | None = setting(None, "probability of random erasing (CEDNet: 0.25)")
    mixup: float | None = setting(None, "alpha of mixup, 0: none (CEDNet: 0.8)")
    cutmix: float | None = setting(None, "alpha of cutmix, 0: none (CEDNet: 1.0)")
    smoothing: float | None = setting(None, "label smoothing (CEDNet: 0.1)")
    on_bad_image: str = setting("raise", "unreadable training images", ("raise", "skip"))
    workers: int = setting(0, "processes that read images; 0: a background thread")
    # model
    preset: str | None = setting(
        None, "backbone, or directory of one to start from (CEDNet: cednet_next_tiny)"
    )
    drop_path: float | None = setting(
        None, "drop path rate (CEDNet: 0.1 tiny, 0.4 small, 0.5 base)"
    )
    layer_scale: float | None = setting(None, "start of the layer scale (CEDNet: 1e-6)")
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    rematerialize: bool = setting(False, "compute blocks again in the backward pass: less memory")
    # optimizer
    epochs: int | None = setting(None, "passes over the training data (CEDNet: 300, BiCSNet: 250)")
    steps_per_epoch: int | None = setting(None, "steps of an epoch, if not one pass")
    optimizer: str | None = setting(None, "update rule (CEDNet: adamw)", ("adamw", "sgd"))
    learning_rate: float | None = setting(None, "peak rate (CEDNet: 4e-3 for batch 4096)")
    schedule: str | None = setting(None, "from there (CSPNet: power4)", ("cosine", "power4"))
    floor: float | None = setting(None, "rate at the end (CEDNet: 1e-6)")
    warmup_epochs: float | None = setting(None, "epochs of the warm-up (CEDNet: 20, BiCSNet: 5)")
    weight_decay: float | None = setting(None, "of matrices and kernels (CEDNet: 0.05)")
    ema: float | None = setting(None, "momentum of averaged weights, 0: none (CEDNet: 0.9999)")
    seed: int = setting(0, "of weights, order, augmentation and drop path")
    # evaluation and output
    evaluate_every: int | None = setting(None, "epochs between evaluations (CEDNet: 10)")
    devices: int | None = setting(None, "GPUs or TPUs of all processes; none: all")
    processes: int | None = setting(None, "processes of the run, if the environment does not say")
    process_id: int | None = setting(None, "number of this process, from 0")
    coordinator: str | None = setting(None, "HOST:PORT of process 0")
    checkpoint_minutes: float = setting(10.0, "between checkpoints within an epoch")
    output: str = setting("runs/imagenet_pretrain", "directory for everything written")


_DROP_PATH = {"tiny": 0.1, "small": 0.4, "base": 0.5, "swin": 0.1, "cswin": 0.2}


def complete(settings: Settings, train: Any) -> Settings:
    """Fills in what the flags left open from the experiment."""
    name = settings.experiment
    if name is None:
        name = paper_of(settings.preset) if len(train) >= PAPER_IMAGES else "small"
    defaults = {"experiment": name, **EXPERIMENTS[name]}
    batch_size = settings.batch_size or defaults["batch_size"]
    # The rate follows the batch linearly, as in the papers.
    defaults["learning_rate"] *= batch_size / defaults["batch_size"]
    preset = settings.preset or defaults["preset"]
    steps = settings.steps_per_epoch or max(1, settings.accumulate * len(train) // batch_size)
    epochs = settings.epochs or defaults.get("epochs") or max(10, -(-SMALL_STEPS // steps))
    defaults = {"schedule": "cosine"} | defaults
    defaults |= {
        "drop_path": _DROP_PATH.get(training.cednet_variant(preset), 0.0),
        "steps_per_epoch": steps,
        "epochs": epochs,
        "evaluate_every": defaults.get("evaluate_every", max(1, epochs // 5)),
    }
    given = dataclasses.asdict(settings)
    return Settings(**{n: defaults.get(n) if v is None else v for n, v in given.items()})


def paper_of(preset: str | None) -> str:
    """The experiment of the paper that a built-in preset comes from, CEDNet's for any other."""
    name = (preset or "").removeprefix("se_")
    if name.startswith("bicsnet"):
        return "bicsnet_imagenet"
    if "dense" in name or "pelee" in name:
        return "cspnet_dense"
    return "cspnet" if name.startswith("csp") else "cednet"


def open_data(settings: Settings) -> tuple[Any, Any]:
    """Opens the training and the validation split."""
    if settings.data_dir and settings.tfds:
        raise training.SettingsError("Give --data-dir or --tfds, not both.")
    if settings.tfds:
        return tuple(
            data.TfdsClassification(settings.tfds, split=split) for split in ("train", "validation")
        )
    if settings.data_dir:
        splits = data.find_class_folders(settings.data_dir)
        train, val = (data.ImageFolder(splits[name]) for name in ("train", "val"))
        data.require_same_class_names({"train": train, "val": val})
        return train, val
    size = settings.image_size or 64
    return tuple(
        data.ShapesClassification(count, size, settings.seed, split)
        for count, split in ((1600, "train"), (400, "val"))
    )


def check(settings: Settings, train: Any) -> None:
    """Refuses what cannot be trained before anything slow happens."""
    if len(train) < settings.batch_size:
        raise training.SettingsError(
            f"There are {len(train)} training images and a batch takes {settings.batch_size}: "
            f"use --batch-size {len(train)} or less."
        )
    if settings.batch_size % settings.accumulate:
        raise training.SettingsError(
            f"--batch-size {settings.batch_size} does not split into --accumulate "
            f"{settings.accumulate} steps: use a multiple of {settings.accumulate}."
        )
    if settings.image_size % 32:
        raise training.SettingsError(
            f"--image-size {settings.image_size} is no multiple of 32, which the backbone needs."
        )


def build_model(settings: Settings, num_classes: int) -> keras.Model:
    """The classifier, compiled; everything random is drawn from the seed."""
    model = models.image_classifier(
        settings.preset,
        num_classes,
        drop_path_rate=settings.drop_path,
        layer_scale_init=settings.layer_scale,  # of CEDNet only
        dtype=settings.precision,
    )
    model.backbone.rematerialize(settings.rematerialize)
    schedule = make_schedule(settings)
    options: dict[str, Any] = {
        "use_ema": settings.ema > 0,
        # Keras averages after every step, also those that only add to the gradients, and counts
        # all of them for the schedule.
        "ema_momentum": settings.ema ** (1 / settings.accumulate),
        "gradient_accumulation_steps": settings.accumulate if settings.accumulate > 1 else None,
    }
    if settings.optimizer == "sgd":
        optimizer = training.momentum_sgd(
            model, schedule, weight_decay=settings.weight_decay, **options
        )
    else:
        rules = training.matrix_decay_rules(model, settings.weight_decay)
        optimizer = training.AdamW(schedule, rules=rules, **options)
    # The targets are smoothed and mixed already. With a head at every stage the model takes the
    # mean of their losses. KerasHub's own choice of a metric is for targets of integers.
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), metrics=[])
    return model


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rate over the steps of the run."""
    total = settings.epochs * settings.steps_per_epoch
    warmup = min(round(settings.warmup_epochs * settings.steps_per_epoch), total - 1)
    if settings.schedule == "cosine":
        return training.WarmupCosine(
            settings.learning_rate, warmup, total, floor=settings.floor, warmup_factor=0.0
        )
    if warmup:
        raise training.SettingsError(
            "--schedule power4 has no warm-up: use --warmup-epochs 0, or --schedule cosine."
        )
    return keras.optimizers.schedules.PolynomialDecay(
        settings.learning_rate, total, settings.floor, power=4
    )


def batch_opener(
    settings: Settings, train: Any, streams: list, shard: tuple[int, int]
) -> Callable[[int], Iterator]:
    """Returns a function that opens the training batches at a step, for `training.fit`."""
    augment = data.imagenet_augmentation(
        settings.image_size,
        scale=(settings.min_area, 1.0),
        rand_augment=settings.rand_augment,
        erasing=settings.erasing,
    )
    mixing = None
    if settings.mixup or settings.cutmix:
        mixing = data.Mixing(settings.mixup, settings.cutmix)

    def batches_from(step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with data.train_class_batches(
            train,
            batch_size=settings.batch_size // settings.accumulate,
            image_size=settings.image_size,
            seed=settings.seed,
            mean=MEAN,
            std=STD,
            augment=augment,
            mixing=mixing,
            label_smoothing=settings.smoothing,
            workers=settings.workers,
            on_bad_image=settings.on_bad_image,
            shard=shard,
        ) as stream:
            streams.append(stream)
            stream.set_state({**stream.get_state(), "next_batch": step})
            for batch in stream:
                yield batch["images"], batch["targets"]

    return batches_from


def preprocessing(settings: Settings) -> training.Preprocessing:
    """The middle of the resized image; from 384 pixels on all of it, warped, as the authors do."""
    crop_ratio = CROP_RATIO if settings.image_size < WARPED_FROM else None
    return training.Preprocessing(
        "classification", MEAN, STD, settings.image_size, crop_ratio=crop_ratio
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and writes everything to `--output`.

    Args:
        argv: flags; None for those of the process.

    Returns:
        The last evaluation: `val_loss`, `val_top1`, `val_top5`, and with averaged weights the same
        of those, `ema_val_top1` and so on.

    Raises:
        ValueError: for settings or data that cannot be trained; one sentence.
        training.TrainingDiverged: if the loss becomes NaN.
    """
    settings = training.parse_settings(Settings, argv, __doc__)
    with training.distribute(
        settings.devices, settings.processes, settings.process_id, settings.coordinator
    ) as cluster:
        cluster.say("Listing the images ...")
        train, val = open_data(settings)
        settings = complete(settings, train)
        check(settings, train)
        if settings.experiment == "small":
            # A quarter faster with a small network on CPU. With CEDNet-T, 8 images of 224 px on
            # JAX, it is 5 %, and 6.7 GiB instead of 4.8.
            training.keep_freed_memory()
        cluster.say(cluster.describe(settings.batch_size // settings.accumulate))
        return run(settings, cluster, train, val)


def run(settings: Settings, cluster: training.Cluster, train: Any, val: Any) -> dict[str, float]:
    """Does what `main` promises, with every setting filled in; in all processes alike."""
    decisive = training.decisive_settings(settings, train)
    for split in (train, val):
        cluster.say(split.summary())
    num_classes = len(train.class_names)
    cluster.say(f"Building {settings.preset} with {num_classes} classes ...")
    keras.utils.set_random_seed(settings.seed)
    model = build_model(settings, num_classes)
    cluster.say(
        f"{model.count_params():,} parameters; an update is {settings.batch_size} images in "
        f"{settings.accumulate} steps, learning rate {settings.learning_rate:g}"
    )
    output = pathlib.Path(settings.output)
    cluster.run_on_main(lambda: training.claim_output(output, decisive))
    step_size = settings.batch_size // settings.accumulate
    eval_batches = data.eval_class_batches(
        val,
        batch_size=step_size,
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
        shard=cluster.shard,
        **preprocessing(settings).batch_options(),
    )
    evaluation = metrics.ClassificationEvaluation(
        eval_batches,
        num_classes,
        every=settings.evaluate_every,
        averaged=(lambda: training.averaged_weights(model)) if settings.ema else None,
        predictor=cluster.predictor(model),
        gather=cluster.gather,
        verbose=False,
    )
    progress = training.Progress(step_size)
    streams: list[data.BatchStream] = []
    with contextlib.closing(progress):
        training.fit(
            model,
            batch_opener(settings, train, streams, cluster.shard),
            epochs=settings.epochs,
            steps_per_epoch=settings.steps_per_epoch,
            checkpoint=training.ResumableCheckpoint(
                output / "checkpoints", decisive, every_minutes=settings.checkpoint_minutes
            ),
            callbacks=[
                evaluation,
                training.MetricsLog(output / "metrics.csv", output / "curves.png"),
                progress,
            ],
        )
    skipped = {name for stream in streams for name in stream.skipped_images}
    if skipped:
        print(f"{len(skipped)} unreadable images were skipped: {', '.join(sorted(skipped))}")
    if evaluation.confusion is None:  # the run had been finished before
        cluster.say("Evaluating ...")
        evaluation.evaluate(model)
    cluster.say("Drawing the confusion of classes and saving the preset ...")
    samples = predict_samples(settings, evaluation.predictor, val, cluster.rows(step_size))
    cluster.run_on_main(
        lambda: write(settings, output, model, evaluation, samples, train, len(val))
    )
    files = ("settings.json", "metrics.csv", "curves.png", "confusion.png", "samples.png")
    cluster.say(f"Wrote {', '.join(str(output / name) for name in (*files, 'preset/'))}")
    results = evaluation.results
    shown = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in results.items()]
    cluster.say(f"{', '.join(shown)} on {len(val)} validation images")
    return results


def predict_samples(
    settings: Settings, predictor: Any, val: Any, rows: int
) -> tuple[list, list, np.ndarray]:
    """Takes up to 24 images from all over the validation split: images, labels, logits.

    `rows` of them are predicted, the number that the model is compiled for already.
    """
    chosen = np.linspace(0, len(val) - 1, min(24, rows, len(val))).round().astype(int)
    items = [val[int(index)] for index in chosen]
    crop_ratio = preprocessing(settings).crop_ratio
    crops = [data.evaluation_crop(item.image, settings.image_size, crop_ratio) for item in items]
    images = (np.stack(crops).astype("float32") - MEAN) / STD
    filled = images[np.arange(rows) % len(images)].astype("float32")
    logits = np.asarray(predictor.predict_on_batch(filled))[: len(items)]
    return [item.image for item in items], [item.label for item in items], logits


def write(
    settings: Settings,
    output: pathlib.Path,
    model: keras.Model,
    evaluation: metrics.ClassificationEvaluation,
    samples: tuple[list, list, np.ndarray],
    train: Any,
    val_images: int,
) -> None:
    """Writes the pictures and the preset with its model card."""
    preset = output / "preset"
    training.draw_confusion(evaluation.confusion, train.class_names, output / "confusion.png")
    training.draw_classified(*samples, train.class_names, output / "samples.png")
    model.save_to_preset(str(preset / "classifier"))
    model.backbone.save_to_preset(str(preset / "backbone"))
    training.write_classes(preset / "classes.json", train)
    preprocessing(settings).write(preset)
    # With averaged weights the model holds those now.
    averaged = {n[4:]: v for n, v in evaluation.results.items() if n.startswith("ema_")}
    source = settings.tfds or settings.data_dir or "the built-in shapes"
    training.write_model_card(
        preset / "classifier",
        title=f"{settings.preset} on {pathlib.PurePath(source).name}",
        task="image-classification",
        data=f"{source}: {len(train):,} training and {val_images:,} validation images of "
        f"{len(train.class_names)} classes, {settings.image_size} x {settings.image_size} pixels, "
        f"normalised with mean {MEAN} and standard deviation {STD} (RGB, 0..255).",
        results=averaged or evaluation.results,
        settings=dataclasses.asdict(settings),
        usage=f"import keras_densepred\n\nclassifier = keras_densepred.{type(model).__name__}"
        '.from_preset("DIRECTORY")',
        parameters=model.count_params(),
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, training.TrainingDiverged) as error:
        raise SystemExit(f"error: {error}") from error
