"""Faster, Mask and Cascade R-CNN on COCO, with the papers' settings by name.

MSFM (Multi-Scale Fusion Module, and MMDetection's defaults): ResNet with modules and FPN from
ImageNet weights, 12 epochs, batch 16, SGD 0.02, images of 800 to 1333 px. CEDNet: no FPN, 36
epochs, batch 16, AdamW 1e-4 (the cascade 2e-4) with layer-wise decay, large-scale jitter 0.1-2.0 at
1024 px with rectangle copy-paste, tested at 800/1333. BiCSNet (strategy A), from random weights:
350 epochs, batch 128, SGD 0.16.

    python recipes/coco_mask_rcnn.py                                        # built-in shapes
    python recipes/coco_mask_rcnn.py --data-dir MY_IMAGES --detector faster --output runs/mine
    python recipes/coco_mask_rcnn.py --data-dir COCO --experiment msfm --weights RESNET50
    python recipes/coco_mask_rcnn.py --data-dir COCO --experiment cednet --detector cascade_mask
    torchrun --nproc-per-node=8 recipes/coco_mask_rcnn.py ...               # 8 GPUs with PyTorch

Settings left open come from `--experiment`, by default CEDNet's from 20,000 training images on, and
those of a short run from random weights on fewer. Killed at any moment, the same command continues
exactly. RESNET50 is a preset directory made of KerasHub's or timm's weights by `convert.resnet`.

Status: COCO not yet run. MSFM's frame differs: a batch has one shape here, so images are fitted
into a square of 1088 px (photos of 4:3 have a short side of 816 in it, for the paper's 800).
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
    CEDNetBackbone,
    DetectionPyramid,
    FeaturePyramid,
    backbones,
    data,
    models,
    training,
)
from keras_densepred.training import setting

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB
STD = (58.395, 57.12, 57.375)
PAPER_IMAGES = 20_000  # training images from which on a paper's settings are the default
SMALL_STEPS = 400  # steps of a run from random weights on few images
MASK_SIZE = 112  # of the masks that train; four times what mask heads predict

DETECTORS = {
    "faster": models.FasterRCNN,
    "mask": models.MaskRCNN,
    "cascade": models.CascadeRCNN,
    "cascade_mask": models.CascadeMaskRCNN,
}
# Named settings; the flags go before them.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "msfm": {
        "preset": "msfm_resnet50",
        "image_size": 1088,
        "batch_size": 16,
        "epochs": 12,
        "scale_min": 1.0,
        "scale_max": 1.0,
        "copy_paste": False,
        "width": 256,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "learning_rate": 0.02,
        "schedule": "steps",
        "warmup_steps": 500,
        "layer_decay": 1.0,
        "ema": 0.0,
        "evaluate_every": 1,
    },
    "cednet": {
        "preset": "cednet_next_tiny",
        "image_size": 1024,
        "batch_size": 16,
        "epochs": 36,
        "scale_min": 0.1,
        "scale_max": 2.0,
        "copy_paste": True,
        "width": 256,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "schedule": "steps",
        "warmup_steps": 500,
        "ema": 0.0,
        "evaluate_every": 1,
    },
    "bicsnet": {
        "preset": "bicsnet_48",
        "image_size": 640,
        "batch_size": 128,
        "epochs": 350,
        "scale_min": 0.5,
        "scale_max": 2.0,
        "copy_paste": False,
        "width": 256,
        "optimizer": "sgd",
        "weight_decay": 4e-5,
        "learning_rate": 0.16,
        "schedule": "steps",
        "layer_decay": 1.0,
        "drop_path": 0.0,
        "ema": 0.0,
        "evaluate_every": 10,
    },
    "small": {  # some hundred to some thousand images, from random weights
        "preset": "cednet_next_pico",
        "batch_size": 8,
        "scale_min": 0.6,
        "scale_max": 1.4,
        "copy_paste": False,
        "width": 64,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "learning_rate": 1.5e-3,
        "schedule": "cosine",
        "layer_decay": 1.0,
        "ema": 0.99,
    },
}
# Epochs after which the rate is a tenth and a hundredth, of how many.
_DROPS = {"msfm": (8, 11, 12), "cednet": (27, 33, 36), "bicsnet": (320, 340, 350)}
_DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.4, "swin": 0.1, "cswin": 0.2}
_FINE_LAYERS = {"small": 9, "base": 9, "cswin": 7}  # variants with the finer layer ids


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; None means that the experiment decides, see `complete`."""

    # data
    data_dir: str | None = setting(None, "folder in COCO layout; none: built-in shapes")
    experiment: str | None = setting(None, "named settings (by the data)", tuple(EXPERIMENTS))
    image_size: int | None = setting(None, "side of training images (CEDNet: 1024, shapes: 96)")
    batch_size: int | None = setting(None, "images per step (MSFM, CEDNet: 16, BiCSNet: 128)")
    scale_min: float | None = setting(None, "large-scale jitter from (CEDNet: 0.1)")
    scale_max: float | None = setting(None, "large-scale jitter to (CEDNet: 2.0)")
    copy_paste: bool | None = setting(None, "rectangle copy-paste (CEDNet: yes)")
    max_boxes: int | None = setting(None, "most objects of an image that train; none: all")
    on_bad_image: str = setting("raise", "unreadable training images", ("raise", "skip"))
    workers: int = setting(0, "processes that read images; 0: a background thread")
    # model
    detector: str = setting("mask", "which detector", tuple(DETECTORS))
    dynamic: bool = setting(False, "Dynamic R-CNN's training, for faster and mask")
    preset: str | None = setting(None, "backbone of any family (large data: cednet_next_tiny)")
    weights: str | None = setting(None, "preset directory of backbone weights to start from")
    freeze_backbone: bool = setting(False, "train pyramid and heads only")
    width: int | None = setting(None, "channels of the pyramid (the papers: 256)")
    anchor_scale: float | None = setting(None, "anchor side over stride (large data: 8)")
    drop_path: float | None = setting(None, "drop path rate (CEDNet: 0.2 tiny, 0.3 small)")
    precision: str = setting("float32", "computation", ("float32", "mixed_bfloat16"))
    # optimizer
    epochs: int | None = setting(None, "passes over the training images (MSFM: 12, CEDNet: 36)")
    steps_per_epoch: int | None = setting(None, "steps of an epoch, if not one pass")
    optimizer: str | None = setting(None, "update rule (CEDNet: adamw)", ("adamw", "sgd"))
    weight_decay: float | None = setting(None, "of the backbone, with SGD of all (MSFM: 1e-4)")
    learning_rate: float | None = setting(None, "peak rate (MSFM: 0.02, CEDNet: 1e-4)")
    schedule: str | None = setting(None, "after the warm-up (papers: steps)", ("steps", "cosine"))
    warmup_steps: int | None = setting(None, "steps of the warm-up (MSFM, CEDNet: 500)")
    layer_decay: float | None = setting(None, "layer-wise rate decay (CEDNet: 0.95, cascade 0.6)")
    ema: float | None = setting(None, "momentum of averaged weights, 0: none (the papers: none)")
    seed: int = setting(0, "of weights, order, augmentation, drop path and samples")
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
    output: str = setting("runs/coco_mask_rcnn", "directory for everything written")

    @property
    def has_masks(self) -> bool:
        return DETECTORS[self.detector].with_masks


def complete(settings: Settings, train: Any) -> Settings:
    """Fills in what the flags left open from the experiment."""
    first = (settings.preset or "cednet").split("_")[0]  # of the preset's name
    family = first if first in ("cednet", "bicsnet") else "msfm"
    name = settings.experiment or (family if len(train) >= PAPER_IMAGES else "small")
    defaults = {"experiment": name, **EXPERIMENTS[name]}
    preset = settings.preset or defaults["preset"]
    batch_size = settings.batch_size or defaults["batch_size"]
    steps = settings.steps_per_epoch or max(1, len(train) // batch_size)
    builtin = isinstance(train, data.ShapesDataset)
    # Few images are repeated until the network has had about as many steps as it needs.
    least = 5 if builtin else 12
    epochs = settings.epochs or defaults.get("epochs") or max(least, -(-SMALL_STEPS // steps))
    is_cascade = settings.detector.startswith("cascade")
    variant = training.cednet_variant(preset)
    decay = (0.7 if variant in _FINE_LAYERS else 0.6) if is_cascade else 0.95
    open_yet = {
        "image_size": 96 if builtin else 512,
        "drop_path": _DROP_PATH.get(variant, 0.0) if name == "cednet" else 0.0,
        "warmup_steps": 2 * steps if name == "bicsnet" else min(100, epochs * steps // 10),
        "learning_rate": 2e-4 if is_cascade else 1e-4,
        "layer_decay": decay,
        "anchor_scale": {"small": 4.0, "bicsnet": 4.0 if preset == "bicsnet_140" else 3.0}.get(
            name, 8.0
        ),
        "evaluate_every": max(1, epochs // 2),
        "max_boxes": None,
    }
    if name in ("msfm", "bicsnet"):
        defaults["learning_rate"] *= batch_size / defaults["batch_size"]
    defaults = open_yet | defaults | {"steps_per_epoch": steps, "epochs": epochs}
    given = dataclasses.asdict(settings)
    return Settings(**{n: defaults.get(n) if v is None else v for n, v in given.items()})


def build_model(settings: Settings, num_classes: int) -> models.FasterRCNN:
    """Backbone, pyramid and heads, compiled; everything random is drawn from the seed."""
    options: dict[str, Any] = {"sync_batch_norm": True}
    if settings.weights:  # pretrained batch norms are not trained on a few images a device
        options |= {"frozen_stages": 1, "fixed_batch_norm": True}
    else:
        # Random weights learn slowly through layer scales of 1e-6, which are for long schedules.
        options["layer_scale_init"] = 0.2
    options |= {"dtype": settings.precision, "drop_path_rate": settings.drop_path}
    source = backbones.find_backbone(settings.weights or settings.preset)
    backbone = source.build(**{name: v for name, v in options.items() if source.accepts(name)})
    if settings.freeze_backbone:
        backbone.trainable = False
    heads: dict[str, Any] = {}
    if hasattr(backbone, "max_level"):  # BiCSNet
        pyramid = backbone
        heads = {"head_convs": 4, "head_fcs": 1, "head_norm": True}
    elif isinstance(backbone, CEDNetBackbone):
        pyramid = DetectionPyramid(backbone, settings.width, min_level=2, max_level=6)
        if settings.detector.startswith("cascade"):
            heads = {"head_convs": 4, "head_fcs": 1, "head_norm": True}
            heads |= {"class_agnostic": False, "box_loss": "giou"}
    else:
        pyramid = FeaturePyramid(backbone, settings.width)
    if settings.experiment == "small":
        heads |= {"head_width": 256, "samples": 64, "num_proposals": 300}
    model = DETECTORS[settings.detector](
        pyramid,
        num_classes,
        anchor_scale=settings.anchor_scale,
        dynamic=settings.dynamic,
        sync_batch_norm=True,
        **heads,
    )
    model.compile(make_optimizer(settings, model, backbone))
    return model


def make_optimizer(
    settings: Settings, model: keras.Model, backbone: backbones.PyramidBackbone
) -> keras.optimizers.Optimizer:
    """SGD, or AdamW with CEDNet's layer-wise rates."""
    schedule = make_schedule(settings)
    averages = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return training.momentum_sgd(model, schedule, weight_decay=decay, **averages)
    if isinstance(backbone, CEDNetBackbone):
        variant = training.cednet_variant(settings.preset)
        rules = training.cednet_rules(
            model.backbone,
            settings.layer_decay,
            num_layers=_FINE_LAYERS.get(variant, 4),
            fine=variant in _FINE_LAYERS,
            weight_decay=decay,
        )
    else:
        rules = training.matrix_decay_rules(model.backbone, decay)
    # The decay here is of the heads; the rules hold for the backbone and pyramid.
    return training.AdamW(schedule, weight_decay=1e-4, rules=rules, **averages)


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The papers drop the rate twice; a short run takes a cosine."""
    total = settings.epochs * settings.steps_per_epoch
    rate, warmup = settings.learning_rate, settings.warmup_steps
    start = {"warmup_factor": 0.0} if settings.experiment == "bicsnet" else {}
    if settings.schedule == "steps":
        *drops, epochs = _DROPS.get(settings.experiment, _DROPS["msfm"])
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
            max_boxes=settings.max_boxes,
            workers=settings.workers,
            on_bad_image=settings.on_bad_image,
            shard=shard,
            mask_size=MASK_SIZE if settings.has_masks else None,
        ) as stream:
            streams.append(stream)
            stream.set_state({**stream.get_state(), "next_batch": step})
            for batch in stream:
                yield batch.pop("images"), batch

    return batches_from


def preprocessing(settings: Settings) -> training.Preprocessing:
    """CEDNet and MSFM test at 800/1333; others fit images into their square."""
    frame: dict[str, Any] = {"image_size": settings.image_size}
    if settings.experiment in ("cednet", "msfm"):
        share = settings.image_size / EXPERIMENTS[settings.experiment]["image_size"]
        frame = {"short_side": round(800 * share), "long_side": round(1333 * share)}
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
        What `metrics.evaluate_detector` gives for the validation split.

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
            shapes_size=settings.image_size or 96,
            seed=settings.seed,
            with_masks=settings.has_masks,
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
    cluster.say(f"Building {DETECTORS[settings.detector].__name__} on {settings.preset} ...")
    keras.utils.set_random_seed(settings.seed)
    model = build_model(settings, len(train.class_names))
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
