"""DeepLabv3 on a BiCSNet backbone: "BiCSNet: A Bidirectional Cross-Scale Backbone ...".

Paper (section on semantic segmentation): Pascal VOC 2012, 20k steps of batch 256, SGD, rate 0.02
after 1000 warm-up steps and a cosine, crops of 512 px, from weights trained on COCO; P3..P7 at
stride 8 averaged, two convolutions of 256 channels. Random scale 0.5-2.0, momentum 0.9 and decay
4e-5 are those of its other experiments and of DeepLab.

    python recipes/voc_deeplab_v3.py                                          # built-in shapes
    python recipes/voc_deeplab_v3.py --data-dir MY_IMAGES --output runs/mine
    python recipes/voc_deeplab_v3.py --data-dir VOC2012 --weights COCO_RUN/preset --output runs/voc
    python recipes/voc_deeplab_v3.py ... --multi-scale --flip                 # tests a finished run
    torchrun --nproc-per-node=8 recipes/voc_deeplab_v3.py ...                 # 8 GPUs with PyTorch

`--data-dir` takes a tree in VOC's layout (with SBD's annotations where `SegmentationClassAug` and
the list `train_aug` are there), or images/train with masks/train and so on. Settings left open are
the data's choice: the paper's from 1,400 training images on, else those of a short run from random
weights. Killed at any moment, the same command continues exactly.

Status: VOC not yet run (the paper starts from COCO weights that were never published). The built-in
shapes and small folders train from random weights in minutes on two CPU cores.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, metrics, models, training
from keras_densepred.training import setting

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB
STD = (58.395, 57.12, 57.375)
PAPER_IMAGES = 1_400  # VOC 2012's own training split has 1,464, with SBD's annotations 10,582
PAPER_BATCH = 256
SHAPES_SIZE = 192  # side of the built-in pictures


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; None means that the data decide, see `complete`."""

    # data
    data_dir: str | None = setting(None, "VOC tree, or images and masks; none: built-in shapes")
    tfds: str | None = setting(None, "TensorFlow Datasets name instead, such as oxford_iiit_pet")
    image_size: int | None = setting(None, "side of training crops (paper: 512, shapes: 192)")
    batch_size: int | None = setting(None, "images per step over all devices (paper: 256)")
    scale_min: float | None = setting(None, "random scale from (paper-sized data: 0.5)")
    scale_max: float | None = setting(None, "random scale to (paper-sized data: 2.0)")
    photometric: bool = setting(False, "change brightness, contrast, saturation and hue")
    on_bad_image: str = setting("raise", "unreadable training images", ("raise", "skip"))
    workers: int = setting(0, "processes that read images; 0: a background thread")
    # model
    head: str = setting(
        "ours", "the paper's DeepLabv3, or a host's", ("ours", "keras_hub", "keras_cv")
    )
    preset: str | None = setting(None, "backbone of any family (paper: bicsnet_48)")
    weights: str | None = setting(None, "preset directory of backbone weights to start from")
    freeze_backbone: bool = setting(False, "train the head only")
    width: int | None = setting(None, "channels of our head (paper: 256)")
    aspp: bool | None = setting(None, "atrous spatial pyramid pooling in our head (paper: yes)")
    drop_path: float | None = setting(None, "drop path rate (BiCSNet's strategy B: 0.2)")
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    rematerialize: bool = setting(False, "compute blocks again in the backward pass: less memory")
    # optimizer
    steps: int | None = setting(None, "in all, rounded up to whole epochs (paper: 20,000)")
    steps_per_epoch: int | None = setting(
        None, "from one row of metrics.csv and checkpoint to the next (paper-sized data: 1000)"
    )
    optimizer: str | None = setting(None, "update rule (paper: sgd)", ("sgd", "adamw"))
    learning_rate: float | None = setting(None, "peak rate (paper: 0.02 for batch 256)")
    warmup_steps: int | None = setting(None, "steps of the warm-up (paper: 1000)")
    weight_decay: float | None = setting(None, "of kernels and matrices (paper: 4e-5)")
    ema: float | None = setting(None, "momentum of averaged weights, 0: none (paper: none)")
    seed: int = setting(0, "of weights, order, augmentation and drop path")
    # evaluation and output
    evaluate_every: int | None = setting(None, "epochs between evaluations (paper-sized data: 1)")
    evaluate_train: bool = setting(False, "at the end, also mean IoU of the training split")
    sliding_window: bool = setting(False, "test at the images' own size, in windows of the crop's")
    multi_scale: bool = setting(False, "test at scales 0.5, 0.75, ... 1.75")
    flip: bool = setting(False, "test mirrored images too")
    devices: int | None = setting(None, "GPUs or TPUs in all processes together; none: all")
    processes: int | None = setting(
        None, "processes, each with this command; none: the environment's"
    )
    process_id: int | None = setting(None, "number of this process, from 0")
    coordinator: str | None = setting(
        None, "host:port of process 0 (TensorFlow: of all, by commas)"
    )
    checkpoint_minutes: float = setting(10.0, "between checkpoints within an epoch")
    output: str = setting("runs/voc_deeplab_v3", "directory for everything written")


# How a run is tested leaves its weights as they are.
_TESTING = ("evaluate_train", "sliding_window", "multi_scale", "flip")


def complete(settings: Settings, train: Any) -> Settings:
    """Fills in what the flags left open: the paper's settings, or ones for few images."""
    builtin = isinstance(train, data.ShapesSegmentation)
    paper = len(train) >= PAPER_IMAGES and not builtin
    batch_size = settings.batch_size or (PAPER_BATCH if paper else 4 if builtin else 8)
    steps = settings.steps or (20_000 if paper else 900)
    steps_per_epoch = settings.steps_per_epoch or min(steps, 1000 if paper else 100)
    optimizer = settings.optimizer or ("sgd" if paper else "adamw")
    epochs = -(-steps // steps_per_epoch)
    defaults = {
        "preset": "bicsnet_48" if paper else "cednet_next_pico",
        "batch_size": batch_size,
        "steps": epochs * steps_per_epoch,
        "steps_per_epoch": steps_per_epoch,
        "image_size": 512 if paper else SHAPES_SIZE if builtin else 256,
        # Shapes come in all sizes, and a run sees few of them twice.
        "scale_min": 0.5 if paper else 1.0 if builtin else 0.8,
        "scale_max": 2.0 if paper else 1.0 if builtin else 1.25,
        "width": 256 if paper else 64,
        "aspp": paper,
        "drop_path": 0.0,
        "optimizer": optimizer,
        # The rate of SGD follows the batch linearly, as in the paper's other experiments.
        "learning_rate": 0.02 * batch_size / PAPER_BATCH if optimizer == "sgd" else 3e-3,
        "warmup_steps": 1000 if paper else min(50, steps // 10),
        "weight_decay": 4e-5 if optimizer == "sgd" else 1e-4,
        "ema": 0.0 if paper else 0.99,
        "evaluate_every": 1 if paper else max(1, epochs // 3),
    }
    given = dataclasses.asdict(settings) | {"steps": None}
    return Settings(**{n: defaults.get(n) if v is None else v for n, v in given.items()})


def open_data(settings: Settings) -> tuple[Any, Any]:
    """Opens the training and the validation split."""
    if settings.data_dir and settings.tfds:
        raise training.SettingsError("Give --data-dir or --tfds, not both.")
    if settings.tfds or settings.data_dir:
        find = data.find_tfds_segmentation if settings.tfds else data.find_segmentation_splits
        splits = find(settings.tfds or settings.data_dir)
        return splits["train"], splits["val"]
    size = settings.image_size or SHAPES_SIZE
    return tuple(
        data.ShapesSegmentation(count, size, settings.seed, split)
        for count, split in ((1600, "train"), (200, "val"))
    )


def check(settings: Settings, train: Any) -> None:
    """Refuses what cannot be trained before anything slow happens."""
    if len(train) < settings.batch_size:
        raise training.SettingsError(
            f"There are {len(train)} training images and a batch takes {settings.batch_size}: "
            f"use --batch-size {len(train)} or less."
        )
    if settings.image_size % 32:
        raise training.SettingsError(
            f"--image-size {settings.image_size} is no multiple of 32, which the backbone needs."
        )


def check_labels(summary: data.SegmentationSummary) -> None:
    """Refuses a training split without anything to learn from."""
    if not summary.labelled:
        raise data.DatasetError(
            f"{summary.name} has no labelled pixel: every mask is {data.IGNORE_LABEL} everywhere, "
            "which stands for none."
        )


def build_backbone(settings: Settings) -> backbones.PyramidBackbone:
    """The backbone of `--preset`, or with the weights of `--weights`."""
    # Random weights learn slowly through CEDNet's layer scales of 1e-6, which are for long runs.
    options: dict[str, Any] = {} if settings.weights else {"layer_scale_init": 0.2}
    options |= {
        "dtype": settings.precision,
        "drop_path_rate": settings.drop_path,
        "sync_batch_norm": True,
    }
    source = backbones.find_backbone(settings.weights or settings.preset)
    backbone = source.build(**{name: v for name, v in options.items() if source.accepts(name)})
    backbone.trainable = not settings.freeze_backbone
    backbone.rematerialize(settings.rematerialize)
    return backbone


def build_model(
    settings: Settings, backbone: backbones.PyramidBackbone, num_classes: int
) -> keras.Model:
    """Backbone and head, compiled; everything random is drawn from the seed."""
    if settings.head == "ours":
        rates = models.ATROUS_RATES if settings.aspp else None
        model = models.DeepLabV3(backbone, num_classes, settings.width, rates)
    elif settings.head == "keras_hub":
        model = models.DeepLabV3KerasHub(backbone, num_classes)
    else:
        model = models.DeepLabV3PlusKerasCV(backbone, num_classes)
    rate = settings.learning_rate
    schedule = training.WarmupCosine(
        rate, settings.warmup_steps, max(settings.steps, settings.warmup_steps + 1)
    )
    averages = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    if settings.optimizer == "sgd":
        optimizer = training.momentum_sgd(
            model, schedule, weight_decay=settings.weight_decay, **averages
        )
    else:
        rules = training.matrix_decay_rules(model, settings.weight_decay)
        optimizer = training.AdamW(schedule, rules=rules, **averages)
    model.compile(optimizer)
    return model


def batch_opener(
    settings: Settings, train: Any, streams: list, shard: tuple[int, int] = (0, 1)
) -> Callable[[int], Iterator]:
    """Returns a function that opens the training batches at a step, for `training.fit`."""
    augment = data.segmentation_augmentation(
        settings.image_size,
        scale_range=(settings.scale_min, settings.scale_max),
        photometric=settings.photometric,
    )

    def batches_from(step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with data.train_mask_batches(
            train,
            batch_size=settings.batch_size,
            image_size=settings.image_size,
            seed=settings.seed,
            mean=MEAN,
            std=STD,
            augment=augment,
            workers=settings.workers,
            on_bad_image=settings.on_bad_image,
            shard=shard,
        ) as stream:
            streams.append(stream)
            stream.set_state({**stream.get_state(), "next_batch": step})
            for batch in stream:
                yield batch["images"], batch["semantic"]

    return batches_from


def preprocessing(settings: Settings) -> training.Preprocessing:
    """How evaluation, and whoever uses the model, prepares images."""
    return training.Preprocessing("segmentation", MEAN, STD, settings.image_size)


def open_evaluation(
    settings: Settings, split: Any, shard: tuple[int, int], own_size: bool = False
) -> data.EvalBatches:
    """Whole images, fitted into the training crop or at their own size."""
    prepared = preprocessing(settings).batch_options()
    return data.eval_mask_batches(
        split,
        batch_size=settings.batch_size,
        **(prepared | {"image_size": None} if own_size else prepared),
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
        shard=shard,
    )


def inference_of(settings: Settings, rows: int) -> Callable[[Callable], Callable] | None:
    """Sliding windows, several scales and mirrored images, as the flags say; None for none."""
    if not (settings.sliding_window or settings.multi_scale or settings.flip):
        return None

    def inference(predict: Callable) -> Callable:
        if settings.sliding_window:
            predict = models.sliding_window(predict, settings.image_size, batch_size=rows)
        if settings.multi_scale or settings.flip:
            scales = models.PAPER_SCALES if settings.multi_scale else (1.0,)
            predict = models.multi_scale(predict, scales, settings.flip)
        return predict

    return inference


def predict_samples(
    predictor: Any, batches: Any, val: Any, batch_count: int
) -> tuple[list, list, list]:
    """Takes up to eight of this process' validation images: images, masks, what is found."""
    images, truth, found = [], [], []
    for batch in itertools.islice(batches, batch_count):
        scores = np.asarray(predictor.predict_on_batch(batch["images"]))
        for row in np.flatnonzero(batch["valid"])[: 8 - len(images)].tolist():
            record = val[int(batch["indices"][row])]
            images.append(record.image)
            truth.append(record.semantic)
            found.append(metrics.labels_at_own_size(scores, batch, row))
    return images, truth, found


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and writes everything to `--output`.

    Args:
        argv: flags; None for those of the process.

    Returns:
        What `metrics.PixelCounts.results` gives for the validation split, tested as the flags say;
        with `--evaluate-train` also `train_mIoU`.

    Raises:
        ValueError: for settings or data that cannot be trained; one sentence.
        training.TrainingDiverged: if the loss becomes NaN.
    """
    settings = training.parse_settings(Settings, argv, __doc__)
    training.keep_freed_memory()
    with training.distribute(
        settings.devices, settings.processes, settings.process_id, settings.coordinator
    ) as cluster:
        cluster.say("Listing the images ...")
        train, val = open_data(settings)
        settings = complete(settings, train)
        check(settings, train)
        cluster.say(cluster.describe(settings.batch_size))
        return run(settings, cluster, train, val)


def run(settings: Settings, cluster: training.Cluster, train: Any, val: Any) -> dict[str, float]:
    """Does what `main` promises, with every setting filled in; in all processes alike."""
    decisive = training.decisive_settings(settings, train, but=_TESTING)
    cluster.say("Reading the masks ...")
    for split in (train, val):
        summary = split.summary()
        cluster.say(summary)
        if split is train:
            check_labels(summary)
    source = settings.weights or settings.preset
    cluster.say(f"Building {source} with DeepLabv3 ({settings.head}) ...")
    keras.utils.set_random_seed(settings.seed)
    backbone = build_backbone(settings)
    model = build_model(settings, backbone, len(train.class_names))
    cluster.say(
        f"{model.count_params():,} parameters; {settings.steps:,} steps of {settings.optimizer}, "
        f"learning rate {settings.learning_rate:g}"
    )
    output = pathlib.Path(settings.output)
    cluster.run_on_main(lambda: training.claim_output(output, decisive))
    predictor = cluster.predictor(model)

    def evaluation_of(split: Any, own_size: bool = False, **options: Any) -> Any:
        return metrics.SegmentationEvaluation(
            open_evaluation(settings, split, cluster.shard, own_size),
            split.class_names,
            weights=lambda: training.averaged_weights(model),
            predictor=predictor,
            gather=cluster.gather,
            verbose=False,
            **options,
        )

    evaluation = evaluation_of(val, every=settings.evaluate_every)
    progress = training.Progress(settings.batch_size)
    streams: list[data.BatchStream] = []
    with contextlib.closing(progress):
        training.fit(
            model,
            batch_opener(settings, train, streams, cluster.shard),
            epochs=settings.steps // settings.steps_per_epoch,
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
    results = {"val": evaluation.results}
    rows = cluster.rows(settings.batch_size)
    inference = inference_of(settings, rows)
    if inference is not None:
        cluster.say("Testing on the validation images ...")
        tester = evaluation_of(val, settings.sliding_window, inference=inference)
        results["val, tested"] = tester.evaluate(model)
    if settings.evaluate_train:
        cluster.say("Evaluating the training images ...")
        results["train"] = evaluation_of(train).evaluate(model)
    cluster.say("Drawing predictions and saving the preset ...")
    # The same number of batches in all processes, some of which may have fewer images in them.
    samples = predict_samples(predictor, evaluation.batches, val, -(-8 // rows))
    cluster.run_on_main(
        lambda: write(settings, output, model, backbone, results, samples, train, len(val))
    )
    files = ("settings.json", "metrics.csv", "curves.png", "iou.csv", "predictions.png", "preset/")
    cluster.say(f"Wrote {', '.join(str(output / name) for name in files)}")
    cluster.say(training.describe_iou(results))
    last = results.get("val, tested", evaluation.results)
    if settings.evaluate_train:
        cluster.say(f"mIoU {results['train']['mIoU']:.3f} on {len(train)} training images")
    cluster.say(
        f"mIoU {last['mIoU']:.3f}, pixel accuracy {last['pixel_accuracy']:.3f} on {len(val)} "
        "validation images"
    )
    more = {"train_mIoU": results["train"]["mIoU"]} if settings.evaluate_train else {}
    return {**last, **more}


def write(
    settings: Settings,
    output: pathlib.Path,
    model: keras.Model,
    backbone: backbones.PyramidBackbone,
    results: dict[str, dict[str, float]],
    samples: tuple[list, list, list],
    train: Any,
    val_images: int,
) -> None:
    """Writes the table of classes, the drawn predictions and the preset with its model card."""
    preset = output / "preset"
    training.write_iou(output / "iou.csv", results)
    training.draw_segmentations(*samples, train.class_names, output / "predictions.png")
    backbone.save_to_preset(str(preset / "backbone"))
    model.save(preset / "segmenter.keras")
    training.write_classes(preset / "classes.json", train)
    preprocessing(settings).write(preset)
    source = settings.tfds or settings.data_dir or "the built-in shapes"
    training.write_model_card(
        preset,
        title=f"DeepLabv3 on {type(backbone).__name__}, {pathlib.PurePath(source).name}",
        task="image-segmentation",
        data=f"{source}: {len(train):,} training and {val_images:,} validation images of "
        f"{len(train.class_names)} classes (`classes.json`), {settings.image_size} x "
        f"{settings.image_size} pixels, normalised with mean {MEAN} and standard deviation {STD} "
        "(RGB, 0..255).",
        results=results.get("val, tested", results["val"]),
        settings=dataclasses.asdict(settings),
        usage="import keras\nimport keras_densepred\n\n"
        'model = keras.saving.load_model("DIRECTORY/segmenter.keras")\n'
        "labels = model.predict(images).argmax(axis=-1)",
        parameters=model.count_params(),
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, training.TrainingDiverged) as error:
        raise SystemExit(f"error: {error}") from error
