"""RetinaNet on COCO without an FPN, with each family's published settings by name.

CEDNet ("CEDNet: a cascade encoder-decoder network for dense prediction", and its code): 36 epochs,
batch 16, AdamW 1e-4 with layer-wise decay, large-scale jitter 0.1-2.0 at 1024 px with rectangle
copy-paste, tested at 800/1333. BiCSNet (section V-A), from random weights: 350 epochs of strategy A
or 500 of B, batch 128, SGD 0.16, batch norms in the heads, 640 to 1280 px by network; B adds
stochastic depth, swish and a wider jitter.

    python recipes/coco_retinanet.py                                      # built-in shapes
    python recipes/coco_retinanet.py --data-dir MY_IMAGES --image-size 512 --output runs/mine
    python recipes/coco_retinanet.py --data-dir COCO --output runs/coco   # CEDNet's settings
    python recipes/coco_retinanet.py --data-dir COCO --experiment bicsnet_b --output runs/bicsnet
    torchrun --nproc-per-node=8 recipes/coco_retinanet.py ...             # 8 GPUs with PyTorch

Settings left open come from `--experiment`, by default the family's of `--preset` from 20,000
training images on, and those of a short run from random weights on fewer. Killed at any moment, the
same command continues exactly.

Status: COCO not yet run (CEDNet starts from ImageNet weights that were never published). The
built-in shapes and small folders train from random weights in minutes on two CPU cores.
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

from keras_densepred import (
    BiCSNetLiteBackbone,
    CEDNetBackbone,
    DetectionPyramid,
    backbones,
    data,
    models,
    training,
)
from keras_densepred.training import setting

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB
STD = (58.395, 57.12, 57.375)
PAPER_IMAGES = 20_000  # training images from which on a paper's settings are the default
SMALL_STEPS = 700  # steps of a run from random weights on few images
SGD_WEIGHT_DECAY = 4e-5  # BiCSNet

_BICSNET: dict[str, Any] = {  # what its two strategies share
    "preset": "bicsnet_48",
    "batch_size": 128,
    "scale_max": 2.0,
    "copy_paste": False,
    "head_depth": 4,
    "optimizer": "sgd",
    "learning_rate": 0.16,
    "schedule": "steps",
    "layer_decay": 1.0,
    "focal_gamma": 1.5,
    "ema": 0.0,
    "evaluate_every": 10,
}
# Named settings. A family adds its paper's here; the flags go before them.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "cednet": {
        "preset": "cednet_next_tiny",
        "image_size": 1024,
        "batch_size": 16,
        "epochs": 36,
        "scale_min": 0.1,
        "scale_max": 2.0,
        "copy_paste": True,
        "width": 256,
        "head_depth": 4,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "schedule": "steps",
        "warmup_steps": 500,
        "layer_decay": 0.95,
        "focal_gamma": 2.0,
        "ema": 0.0,
        "evaluate_every": 1,
    },
    "bicsnet_a": {
        **_BICSNET,
        "epochs": 350,
        "scale_min": 0.5,
        "activation": "relu",
        "drop_path": 0.0,
    },
    "bicsnet_b": {
        **_BICSNET,
        "epochs": 500,
        "scale_min": 0.1,
        "activation": "swish",
        "drop_path": 0.2,  # SpineNet's; the paper gives none
    },
    "small": {  # some hundred to some thousand images, from random weights
        "preset": "cednet_next_pico",
        "batch_size": 8,
        "scale_min": 0.6,
        "scale_max": 1.4,
        "copy_paste": False,
        "width": 64,
        "head_depth": 1,
        "optimizer": "adamw",
        "learning_rate": 1.5e-3,
        "schedule": "cosine",
        "focal_gamma": 2.0,
        "ema": 0.99,
    },
}
# Epochs after which the rate is a tenth and a hundredth, of how many.
_DROPS = {"bicsnet_a": (320, 340, 350), "bicsnet_b": (470, 490, 500)}
_CEDNET_DROPS = (27, 33, 36)
# BiCSNet's Table I, and the sizes of its Lite form.
_BICSNET_SIDES = {
    "bicsnet_48l": 896,
    "bicsnet_94": 1024,
    "bicsnet_140": 1280,
    "bicsnet_lite0": 256,
    "bicsnet_lite1": 384,
    "bicsnet_lite2": 384,
    "bicsnet_lite3": 512,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; None means that the experiment decides, see `complete`."""

    # data
    data_dir: str | None = setting(None, "folder in COCO layout; none: built-in shapes")
    tfds: str | None = setting(None, "TensorFlow Datasets name instead, such as coco/2017")
    experiment: str | None = setting(None, "named settings (by the data)", tuple(EXPERIMENTS))
    image_size: int | None = setting(None, "side of training images (CEDNet: 1024, shapes: 96)")
    batch_size: int | None = setting(None, "images per step (CEDNet: 16, BiCSNet: 128)")
    scale_min: float | None = setting(None, "large-scale jitter from (CEDNet: 0.1)")
    scale_max: float | None = setting(None, "large-scale jitter to (the papers: 2.0)")
    copy_paste: bool | None = setting(None, "rectangle copy-paste (CEDNet: yes)")
    on_bad_image: str = setting("raise", "unreadable training images", ("raise", "skip"))
    workers: int = setting(0, "processes that read images; 0: a background thread")
    # model
    head: str = setting("keras_hub", "whose RetinaNet", ("keras_hub", "keras_cv"))
    preset: str | None = setting(None, "backbone of any family (large data: cednet_next_tiny)")
    weights: str | None = setting(None, "preset directory of backbone weights to start from")
    freeze_backbone: bool = setting(False, "train pyramid and heads only")
    width: int | None = setting(None, "channels of pyramid and heads (CEDNet: 256)")
    head_depth: int | None = setting(None, "convolutions per head (the papers: 4)")
    activation: str | None = setting(
        None, "of BiCSNet and its heads (strategy A: relu, B: swish)", ("relu", "swish")
    )
    drop_path: float | None = setting(None, "drop path rate (CEDNet: 0.2 tiny, 0.3 small and base)")
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    rematerialize: bool = setting(False, "compute blocks again in the backward pass: less memory")
    # optimizer
    epochs: int | None = setting(None, "passes over the training images (CEDNet: 36)")
    steps_per_epoch: int | None = setting(None, "steps of an epoch, if not one pass")
    optimizer: str | None = setting(None, "update rule (BiCSNet: sgd)", ("adamw", "sgd"))
    learning_rate: float | None = setting(
        None, "peak rate (CEDNet: 1e-4 for batch 16, BiCSNet: 0.16 for batch 128)"
    )
    schedule: str | None = setting(None, "after the warm-up (papers: steps)", ("steps", "cosine"))
    warmup_steps: int | None = setting(None, "steps of the warm-up (CEDNet: 500)")
    layer_decay: float | None = setting(None, "layer-wise rate decay (CEDNet: 0.95)")
    focal_gamma: float | None = setting(None, "exponent of the focal loss (BiCSNet: 1.5)")
    ema: float | None = setting(None, "momentum of averaged weights, 0: none (the papers: none)")
    seed: int = setting(0, "of weights, order, augmentation and drop path")
    # evaluation and output
    evaluate_every: int | None = setting(None, "epochs between evaluations (large data: 1)")
    devices: int | None = setting(None, "GPUs or TPUs in all processes together; none: all")
    processes: int | None = setting(
        None, "processes, each with this command; none: the environment's"
    )
    process_id: int | None = setting(None, "number of this process, from 0")
    coordinator: str | None = setting(
        None, "host:port of process 0 (TensorFlow: of all, by commas)"
    )
    checkpoint_minutes: float = setting(10.0, "between checkpoints within an epoch")
    output: str = setting("runs/coco_retinanet", "directory for everything written")


_DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.3, "swin": 0.1, "cswin": 0.2}
_FINE_LAYERS = {"small": 9, "base": 9, "cswin": 7}  # variants with the finer layer ids


def complete(settings: Settings, train: Any) -> Settings:
    """Fills in what the flags left open from the experiment."""
    family = "bicsnet_b" if (settings.preset or "").startswith("bicsnet") else "cednet"
    name = settings.experiment or (family if len(train) >= PAPER_IMAGES else "small")
    defaults = {"experiment": name, **EXPERIMENTS[name]}
    preset = settings.preset or defaults["preset"]
    batch_size = settings.batch_size or defaults["batch_size"]
    steps = settings.steps_per_epoch or max(1, len(train) // batch_size)
    builtin = isinstance(train, data.ShapesDataset)
    # Few images are repeated until the network has had about as many steps as it needs.
    least = 5 if builtin else 12  # 1000 steps on the built-in shapes
    epochs = settings.epochs or defaults.get("epochs") or max(least, -(-SMALL_STEPS // steps))
    open_yet = {
        "image_size": 96 if builtin else 512,
        "drop_path": _DROP_PATH.get(training.cednet_variant(preset), 0.0),
        "warmup_steps": min(100, epochs * steps // 10),
        "layer_decay": 0.95 if settings.weights else 1.0,
        "evaluate_every": max(1, epochs // 2),
    }
    if name.startswith("bicsnet"):
        open_yet |= {"image_size": _BICSNET_SIDES.get(preset, 640), "warmup_steps": 2 * steps}
        defaults["learning_rate"] *= batch_size / defaults["batch_size"]
    defaults = open_yet | defaults | {"steps_per_epoch": steps, "epochs": epochs}
    given = dataclasses.asdict(settings)
    return Settings(**{n: defaults.get(n) if v is None else v for n, v in given.items()})


def build_backbone(settings: Settings) -> backbones.PyramidBackbone:
    """The backbone of `--preset`, or with the weights of `--weights`."""
    options: dict[str, Any] = {"sync_batch_norm": True}
    if settings.activation:
        options["activation"] = settings.activation
    if not settings.weights:
        # Random weights learn slowly through layer scales of 1e-6, which are for long schedules.
        options["layer_scale_init"] = 0.2
    options |= {"dtype": settings.precision, "drop_path_rate": settings.drop_path}
    source = backbones.find_backbone(settings.weights or settings.preset)
    backbone = source.build(**{name: v for name, v in options.items() if source.accepts(name)})
    backbone.trainable = not settings.freeze_backbone
    return backbone


def build_model(
    settings: Settings, backbone: backbones.PyramidBackbone, num_classes: int
) -> keras.Model:
    """Pyramid and heads on a backbone, compiled; everything random is drawn from the seed."""
    pyramid, initializer = backbone, None
    options: dict[str, Any] = {}
    if hasattr(backbone, "max_level"):  # BiCSNet's levels are what RetinaNet takes
        options = {
            "head_width": settings.width,
            "head_norm": True,
            "head_activation": backbone.activation,
            "head_separable": isinstance(backbone, BiCSNetLiteBackbone),
            "anchor_scale": 4.0 if settings.preset == "bicsnet_140" else 3.0,
        }
    else:
        pyramid = DetectionPyramid(backbone, width=settings.width)
        initializer = None if settings.weights else "he_normal"
    pyramid.rematerialize(settings.rematerialize)
    host = models.RetinaNetKerasHub if settings.head == "keras_hub" else models.RetinaNetKerasCV
    model = host(
        pyramid,
        num_classes,
        head_depth=settings.head_depth,
        head_initializer=initializer,
        **options,
    )
    model.compile(
        make_optimizer(settings, model, backbone),
        classification_loss=models.SigmoidFocalLoss(gamma=settings.focal_gamma),
    )
    return model


def make_optimizer(
    settings: Settings, model: keras.Model, backbone: backbones.PyramidBackbone
) -> keras.optimizers.Optimizer:
    """SGD, or AdamW with CEDNet's layer-wise rates."""
    schedule = make_schedule(settings)
    averages = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    if settings.optimizer == "sgd":
        return training.momentum_sgd(model, schedule, weight_decay=SGD_WEIGHT_DECAY, **averages)
    if isinstance(backbone, CEDNetBackbone):
        variant = training.cednet_variant(settings.preset)
        rules = training.cednet_rules(
            model.backbone,
            settings.layer_decay,
            num_layers=_FINE_LAYERS.get(variant, 4),
            fine=variant in _FINE_LAYERS,
        )
    else:
        rules = training.matrix_decay_rules(model.backbone, 0.05)
    # The decay here is of the heads; the rules hold for the backbone and pyramid.
    return training.AdamW(schedule, weight_decay=1e-4, rules=rules, **averages)


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The papers drop the rate twice, CEDNet at epochs 27 and 33; a short run takes a cosine."""
    total = settings.epochs * settings.steps_per_epoch
    rate, warmup = settings.learning_rate, settings.warmup_steps
    start = {"warmup_factor": 0.0} if settings.optimizer == "sgd" else {}
    if settings.schedule == "steps":
        *drops, epochs = _DROPS.get(settings.experiment, _CEDNET_DROPS)
        steps = sorted({round(total * epoch / epochs) for epoch in drops})
        return training.WarmupSteps(rate, warmup, steps, **start)
    return training.WarmupCosine(rate, warmup, max(total, warmup + 1), floor=0.01 * rate, **start)


def batch_opener(
    settings: Settings, train: Any, streams: list, shard: tuple[int, int] = (0, 1)
) -> Callable[[int], Iterator]:
    """Returns a function that opens the training batches at a step, for `training.fit`."""
    augment = data.coco_augmentation(
        settings.image_size,
        scale_range=(settings.scale_min, settings.scale_max),
        copy_paste=settings.copy_paste,
    )

    def batches_from(step: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        with data.train_batches(
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
                yield batch["images"], {"boxes": batch["boxes"], "labels": batch["labels"]}

    return batches_from


def preprocessing(settings: Settings) -> training.Preprocessing:
    """CEDNet tests at 800/1333 what it trained at 1024; others fit images into their square."""
    size = settings.image_size
    frame: dict[str, Any] = {"image_size": size}
    if settings.experiment == "cednet":
        frame = {"short_side": size * 800 // 1024, "long_side": size * 1333 // 1024}
    return training.Preprocessing("detection", MEAN, STD, **frame)


def open_evaluation(settings: Settings, val: Any, shard: tuple[int, int]) -> data.EvalBatches:
    """The validation split, as `preprocessing` has it."""
    return data.eval_batches(
        val,
        batch_size=settings.batch_size,
        workers=settings.workers,
        on_bad_image=settings.on_bad_image,
        shard=shard,
        **preprocessing(settings).batch_options(),
    )


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
        training.require_trainable(train, settings.batch_size, settings.image_size)
        cluster.say(cluster.describe(settings.batch_size))
        return run(settings, cluster, train, val)


def run(settings: Settings, cluster: training.Cluster, train: Any, val: Any) -> dict[str, float]:
    """Does what `main` promises, with every setting filled in; in all processes alike."""
    decisive = training.decisive_settings(settings, train)
    for split in (train, val):
        cluster.say(split.summary())
    cluster.say(f"Building {settings.preset} with a {settings.head} RetinaNet ...")
    keras.utils.set_random_seed(settings.seed)
    backbone = build_backbone(settings)
    model = build_model(settings, backbone, len(train.class_names))
    cluster.say(f"{model.count_params():,} parameters; learning rate {settings.learning_rate:g}")
    streams: list[data.BatchStream] = []
    results = training.train_detector(
        model,
        batch_opener(settings, train, streams, cluster.shard),
        cluster=cluster,
        train=train,
        val=val,
        eval_batches=open_evaluation(settings, val, cluster.shard),
        preprocessing=preprocessing(settings),
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
