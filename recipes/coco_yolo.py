"""YOLOv3 on CSPNet's light backbones: "CSPNet: A New Backbone that can Enhance Learning Capability
of CNN", section 4, as Darknet trains it.

Paper and cfgs: COCO, 500,500 iterations of batch 64, SGD 1e-3 with momentum 0.9 and decay 5e-4, a
burn-in of 1,000 iterations, a tenth of the rate from 400,000 and from 450,000 on, multi-scale
training, jitter 0.3, hue 0.1, saturation and exposure 1.5. Three targets by name: `panet` for GPUs
(CSPResNeXt50-PANet-SPP, 416 px), `efm` for mobile GPUs (CSPPeleeNet-EFM(SAM), 416 px) and `prn` for
CPUs (CSPPeleeNet Reference-PRN, 320 px).

    python recipes/coco_yolo.py                                       # built-in shapes
    python recipes/coco_yolo.py --data-dir MY_IMAGES --image-size 320 --output runs/mine
    python recipes/coco_yolo.py --data-dir COCO --experiment efm      # the paper's settings
    python recipes/coco_yolo.py --data-dir MY_IMAGES --head yolov8    # KerasCV's YOLOv8

Settings left open come from `--experiment`: `efm` from 20,000 training images on, and those of a
short run from random weights, with anchors fitted to the data, on fewer. Killed at any moment, the
same command continues exactly.

Status: COCO not yet run. The built-in shapes and small folders train from random weights in minutes
on two CPU cores.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, training
from keras_densepred.training import setting

MEAN, STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)  # Darknet: 0..1
PAPER_IMAGES = 20_000  # training images from which on a paper's settings are the default
SMALL_STEPS = 450  # steps of a run from random weights on few images
WEIGHT_DECAY = 5e-4
SMALLEST_SCALE = 320 / 416  # multi-scale training: 320 to 608 px around 416
LARGEST_SCALE = 608 / 416
NECKS = {"efm": "efm_sam", "panet": "panet_spp"}  # what `--head` calls otherwise
HEADS = ("efm", "prn", "panet", "yolov8", *sorted(set(models.YOLO_NECKS) - {"prn"}))

_DARKNET: dict[str, Any] = {  # what the paper's detectors share
    "batch_size": 64,
    "iterations": 500_500,
    "multi_scale": True,
    "mosaic": False,
    "jitter": 0.3,
    "loss": "mse",
    "anchors": "coco",
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "schedule": "steps",
    "warmup_steps": 1000,
    "ema": 0.0,
    "evaluate_every": 10,
}
# Named settings; the flags go before them.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "panet": {**_DARKNET, "preset": "csp_resnext_50", "head": "panet", "image_size": 416},
    "efm": {**_DARKNET, "preset": "csp_peleenet", "head": "efm", "image_size": 416},
    "prn": {**_DARKNET, "preset": "csp_peleenet_ref", "head": "prn", "image_size": 320},
    "small": {  # some hundred to some thousand images, from random weights
        "preset": "csp_peleenet",
        "head": "efm",
        "batch_size": 8,
        "multi_scale": False,
        "mosaic": False,
        "jitter": 0.2,
        "loss": "ciou",
        "anchors": "data",
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "ema": 0.99,
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; None means that the experiment decides, see `complete`."""

    # data
    data_dir: str | None = setting(None, "folder in COCO layout; none: built-in shapes")
    tfds: str | None = setting(None, "TensorFlow Datasets name instead, such as coco/2017")
    experiment: str | None = setting(None, "named settings (by the data)", tuple(EXPERIMENTS))
    image_size: int | None = setting(None, "side of the network's input (paper: 416, 320)")
    batch_size: int | None = setting(None, "images per step over all devices (paper: 64)")
    multi_scale: bool | None = setting(
        None, "another size every ten steps, as the paper; each size is compiled"
    )
    jitter: float | None = setting(None, "how far borders of the window move (paper: 0.3)")
    mosaic: bool | None = setting(None, "four images in one for every second image (paper: no)")
    on_bad_image: str = setting("raise", "unreadable training images", ("raise", "skip"))
    workers: int = setting(0, "processes that read images; 0: a background thread")
    # model
    head: str | None = setting(None, "neck and loss, or KerasCV's YOLOv8", HEADS)
    preset: str | None = setting(None, "backbone of any family (efm: csp_peleenet)")
    weights: str | None = setting(None, "preset directory of backbone weights to start from")
    freeze_backbone: bool = setting(False, "train neck and predictions only")
    loss: str | None = setting(None, "of the boxes (paper: mse)", tuple(models.YOLO_LOSSES))
    anchors: str | None = setting(None, "COCO's, or fitted to the data", ("coco", "data"))
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    # optimizer
    epochs: int | None = setting(None, "passes over the training images")
    steps_per_epoch: int | None = setting(None, "steps of an epoch, if not one pass")
    optimizer: str | None = setting(None, "update rule (paper: sgd)", ("adamw", "sgd"))
    learning_rate: float | None = setting(None, "peak rate (paper: 1e-3)")
    schedule: str | None = setting(None, "after the warm-up (paper: steps)", ("steps", "cosine"))
    warmup_steps: int | None = setting(None, "steps of the warm-up (paper: 1000)")
    ema: float | None = setting(None, "momentum of averaged weights, 0: none (paper: none)")
    seed: int = setting(0, "of weights, order and augmentation")
    # evaluation and output
    evaluate_every: int | None = setting(None, "epochs between evaluations")
    devices: int | None = setting(None, "GPUs or TPUs in all processes together; none: all")
    processes: int | None = setting(
        None, "processes, each with this command; none: the environment's"
    )
    process_id: int | None = setting(None, "number of this process, from 0")
    coordinator: str | None = setting(
        None, "host:port of process 0 (TensorFlow: of all, by commas)"
    )
    checkpoint_minutes: float = setting(10.0, "between checkpoints within an epoch")
    output: str = setting("runs/coco_yolo", "directory for everything written")


def complete(settings: Settings, train: Any) -> Settings:
    """Fills in what the flags left open from the experiment."""
    name = settings.experiment or ("efm" if len(train) >= PAPER_IMAGES else "small")
    defaults = {"experiment": name, **EXPERIMENTS[name]}
    batch_size = settings.batch_size or defaults["batch_size"]
    steps = settings.steps_per_epoch or max(1, len(train) // batch_size)
    # Few images are repeated until the network has had about as many steps as it needs.
    epochs = settings.epochs or -(-defaults.pop("iterations", SMALL_STEPS) // steps)
    builtin = isinstance(train, data.ShapesDataset)
    open_yet = {
        "steps_per_epoch": steps,
        "epochs": epochs,
        "image_size": 96 if builtin else 416,
        "warmup_steps": min(100, epochs * steps // 10),
        "evaluate_every": max(1, epochs // 2),
    }
    given = dataclasses.asdict(settings)
    defaults = open_yet | defaults
    return Settings(**{n: defaults.get(n) if v is None else v for n, v in given.items()})


def check(settings: Settings, train: Any, cluster: training.Cluster) -> None:
    """Refuses what cannot be trained before anything slow happens."""
    training.require_trainable(train, settings.batch_size, settings.image_size)
    if settings.multi_scale and keras.backend.backend() == "tensorflow":
        # tf.data hands out batches of one shape to several devices, and the host's grid is static.
        for reason, holds in (
            ("on several devices", cluster.devices > 1),
            ("with KerasCV's YOLOv8", settings.head == "yolov8"),
        ):
            if holds:
                raise training.SettingsError(
                    f"TensorFlow trains on images of one size {reason}: use --no-multi-scale."
                )


def fit_anchors(settings: Settings, train: Any) -> list[tuple[float, float]] | None:
    """The anchors of `--anchors`, in pixels of the network's input; None for those of COCO."""
    if settings.anchors == "coco" or settings.head == "yolov8":
        return None
    number = 6 if settings.head == "prn" else 9
    anchors, overlap = data.cluster_anchors(
        data.box_shapes(train, settings.image_size), number, settings.seed
    )
    print(f"{number} anchors, mean IoU with the training boxes {overlap:.3f}")
    return anchors


def build_model(
    settings: Settings, num_classes: int, anchors: list[tuple[float, float]] | None
) -> keras.Model:
    """Backbone, neck and predictions, compiled; everything random is drawn from the seed."""
    options: dict[str, Any] = {"dtype": settings.precision, "sync_batch_norm": True}
    if not settings.weights:
        options["layer_scale_init"] = 0.2  # of CEDNet: its 1e-6 is for long schedules
    source = backbones.find_backbone(settings.weights or settings.preset)
    backbone = source.build(**{name: v for name, v in options.items() if source.accepts(name)})
    backbone.trainable = not settings.freeze_backbone
    if settings.head == "yolov8":
        model = models.YOLOV8KerasCV(backbone, num_classes)
    else:
        model = models.YOLOv3Detector(
            backbone,
            num_classes,
            neck=NECKS.get(settings.head, settings.head),
            anchors=anchors,
            loss=settings.loss,
        )
    model.compile(make_optimizer(settings, model))
    return model


def make_optimizer(settings: Settings, model: keras.Model) -> keras.optimizers.Optimizer:
    """Darknet's SGD with its burn-in, or AdamW with a cosine for short runs."""
    total = settings.epochs * settings.steps_per_epoch
    rate, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "steps":
        drops = sorted({round(total * part / 500.5) for part in (400, 450)})
        schedule: Any = training.WarmupSteps(
            rate, warmup, drops, warmup_factor=0.0, warmup_power=4.0
        )
    else:
        schedule = training.WarmupCosine(rate, warmup, max(total, warmup + 1), floor=0.01 * rate)
    averages = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    if settings.optimizer == "sgd":
        return training.momentum_sgd(model, schedule, weight_decay=WEIGHT_DECAY, **averages)
    rules = training.matrix_decay_rules(model, 0.05)
    return training.AdamW(schedule, rules=rules, **averages)


def batch_opener(
    settings: Settings, train: Any, streams: list, shard: tuple[int, int] = (0, 1)
) -> Callable[[int], Iterator]:
    """Returns a function that opens the training batches at a step, for `training.fit`."""
    side = settings.image_size
    sizes = data.RandomSizes((side,), settings.seed)
    if settings.multi_scale:
        low, high = (round(side * s / 32) * 32 for s in (SMALLEST_SCALE, LARGEST_SCALE))
        sizes = data.RandomSizes(tuple(range(max(low, 32), high + 1, 32)), settings.seed)
    largest = max(sizes.sizes)
    augment = data.yolo_augmentation(largest, jitter=settings.jitter, mosaic=settings.mosaic)

    def batches_from(step: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        with data.train_batches(
            train,
            batch_size=settings.batch_size,
            image_size=largest,
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
            for number, batch in enumerate(stream, step):
                size = sizes.at(number)
                boxes = np.where(
                    batch["labels"][..., None] < 0, batch["boxes"], batch["boxes"] * size / largest
                )
                yield (
                    data.resize_images(batch["images"], size),
                    {"boxes": boxes.astype(np.float32), "labels": batch["labels"]},
                )

    return batches_from


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and writes everything to `--output`.

    Args:
        argv: flags; None for those of the process.

    Returns:
        What `metrics.coco_average_precision` gives for the validation split.

    Raises:
        ValueError: for settings or data that cannot be trained; one sentence.
        training.TrainingDiverged: if the loss becomes NaN.
    """
    settings = training.parse_settings(Settings, argv, __doc__)
    training.keep_freed_memory()
    with training.distribute(
        settings.devices, settings.processes, settings.process_id, settings.coordinator
    ) as cluster:
        cluster.say("Reading the annotations ...")
        train, val = data.open_detection(
            settings.data_dir,
            settings.tfds,
            shapes_size=settings.image_size or 96,
            seed=settings.seed,
        )
        settings = complete(settings, train)
        check(settings, train, cluster)
        cluster.say(cluster.describe(settings.batch_size))
        return run(settings, cluster, train, val)


def run(settings: Settings, cluster: training.Cluster, train: Any, val: Any) -> dict[str, float]:
    """Does what `main` promises, with every setting filled in; in all processes alike."""
    decisive = training.decisive_settings(settings, train)
    for split in (train, val):
        cluster.say(split.summary())
    anchors = fit_anchors(settings, train)
    cluster.say(f"Building {settings.preset} with the head {settings.head} ...")
    keras.utils.set_random_seed(settings.seed)
    model = build_model(settings, len(train.class_names), anchors)
    cluster.say(f"{model.count_params():,} parameters; learning rate {settings.learning_rate:g}")
    preprocessing = training.Preprocessing(
        "detection",
        MEAN,
        STD,
        image_size=settings.image_size,
        stretch=True,  # as in training, and in Darknet
    )
    streams: list[data.BatchStream] = []
    results = training.train_detector(
        model,
        batch_opener(settings, train, streams, cluster.shard),
        cluster=cluster,
        train=train,
        val=val,
        eval_batches=data.eval_batches(
            val,
            batch_size=settings.batch_size,
            workers=settings.workers,
            on_bad_image=settings.on_bad_image,
            shard=cluster.shard,
            **preprocessing.batch_options(),
        ),
        preprocessing=preprocessing,
        output=settings.output,
        decisive=decisive,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        steps_per_epoch=settings.steps_per_epoch,
        evaluate_every=settings.evaluate_every,
        checkpoint_minutes=settings.checkpoint_minutes,
    )
    training.tell_skipped(streams)
    return results


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, training.TrainingDiverged) as error:
        raise SystemExit(f"error: {error}") from error
