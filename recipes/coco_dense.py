"""A dense detector of today's kind on any backbone: small and fast, and quick to learn few images.

`models.TaskAlignedDetector`: Feng et al., "TOOD: Task-aligned One-stage Object Detection"; Li et
al., "Generalized Focal Loss". CEDNet and BiCSNet fuse their scales themselves; other backbones get
a light path aggregation network of CSP blocks.

    python recipes/coco_dense.py                                          # built-in shapes
    python recipes/coco_dense.py --data-dir MY_IMAGES --image-size 320 --output runs/mine
    python recipes/coco_dense.py --data-dir COCO --size small             # of pico to large
    python recipes/coco_dense.py --data-dir MY_IMAGES --preset cednet_next_nano
    torchrun --nproc-per-node=8 recipes/coco_dense.py ...                 # 8 GPUs with PyTorch

`--size` names a whole detector: backbone, widths and depths. Settings left open come from
`--experiment`, by default that for COCO from 20,000 training images on, and on fewer that of a
short run from random weights. Killed at any moment, the same command continues exactly.

Expected: on the built-in shapes AP 0.65, AP50 0.89 after 2,400 steps, in 4.5 minutes of two CPU
cores (JAX).
Status: COCO not yet run; its settings are those of the kind (300 epochs from random weights), not
of one paper.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, necks, training
from keras_densepred.training import AtLeast, Experiment, PerBatch, flags, protocols

if TYPE_CHECKING:
    import keras

SHAPES_SIZE = 128  # side of the built-in pictures
SIZES = ("pico", "nano", "tiny", "small", "medium", "large")  # `models.DENSE_SIZES`


def _of_size(name: str) -> Any:
    return lambda plan: getattr(models.DENSE_SIZES[plan.size], name)


_SIZE: dict[str, Any] = {
    "preset": _of_size("preset"),
    "width": _of_size("width"),
    "neck_depth": _of_size("neck_depth"),
    "head_depth": _of_size("head_depth"),
}
_FEW_IMAGES = {k: v for k, v in protocols.FEW_IMAGES.items() if k != "copy_paste"}
EXPERIMENTS = {
    "coco": Experiment(
        "of the kind, from random weights; not one paper's",
        {
            **_SIZE,
            "size": "nano",
            "image_size": 640,
            "batch_size": 64,
            "epochs": 300,
            "scale_min": 0.5,
            "scale_max": 1.5,
            "mosaic_share": 1.0,
            "plain_epochs": 15,
            "max_boxes": 150,
            "optimizer": "adamw",
            "learning_rate": PerBatch(1e-3, 64),
            "weight_decay": 0.05,
            "warmup_steps": 1000,
            "ema": 0.9998,
            "evaluate_every": 10,
        },
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            **_FEW_IMAGES,
            **_SIZE,
            "size": "nano",
            "image_size": 320,
            "epochs": AtLeast(12, steps=1500),
            # Of 1.5e-3, 4e-3 and 8e-3 the best on the built-in shapes (scales varied with them).
            "learning_rate": lambda plan: 1e-3 if plan.pretrained else 4e-3,
            "weight_decay": 0.05,
            "mosaic_share": 0.0,
            "plain_epochs": 0,
        },
        on_shapes={
            "size": "pico",
            "image_size": SHAPES_SIZE,
            "epochs": AtLeast(5, steps=1600),
            "scale_min": 0.8,
            "scale_max": 1.2,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.RandomScaleSettings, training.DetectionSettings):
    """What can be set; None means that the experiment decides."""

    mosaic_share: float | None = training.setting(
        None, "share of training images put together of four", group="data"
    )
    plain_epochs: int | None = training.setting(
        None, "epochs at the end without mosaic", group="data"
    )
    size: str | None = training.setting(None, "of the whole detector", SIZES)
    neck_depth: int | None = training.setting(None, "blocks of each fusion in the neck")
    head_depth: int | None = training.setting(None, "convolutions per head")
    gamma: float = training.setting(
        2.0, "exponent of the class loss; 0: cross-entropy", group="optimizer"
    )
    one_to_one: bool = training.setting(
        False, "add a head that finds each object once: no suppression after it"
    )
    class_loss: str = training.setting(
        "quality_focal", "of the classes", ("quality_focal", "varifocal"), group="optimizer"
    )


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone, pyramid and heads, compiled."""
    # Pretrained batch norms are not trained on a few images a device.
    fixed = {"fixed_batch_norm": True} if training.is_pretrained(settings) else {}
    backbone = pyramid = training.build_backbone(settings, **fixed)
    if isinstance(backbone, backbones.CEDNetBackbone):
        pyramid = necks.DetectionPyramid(backbone, settings.width, max_level=5)
    elif not backbone.is_pyramid:
        pyramid = necks.CSPPathAggregation(backbone, settings.width, settings.neck_depth)
    model = models.TaskAlignedDetector(
        pyramid,
        len(train.class_names),
        head_width=settings.width,
        head_depth=settings.head_depth,
        class_loss=settings.class_loss,
        focal_gamma=settings.gamma,
        one_to_one=settings.one_to_one,
    )
    model.compile(training.make_optimizer(settings, model, training.make_schedule(settings)))
    return model


def augmentation(settings: Settings, image_size: int) -> list:
    """Large-scale jitter, crop, flip, mosaic."""
    scales = (settings.scale_min, settings.scale_max)
    steps = data.coco_augmentation(image_size, scale_range=scales, copy_paste=False)
    if not settings.mosaic_share:
        return steps
    return [*steps, data.PadToSize(image_size), data.Mosaic(settings.mosaic_share)]


def without_mosaic(settings: Settings) -> tuple[int, Settings]:
    """The last epochs see images as they are evaluated.

    Raises:
        SettingsError: if there are no others.
    """
    if settings.mosaic_share and settings.plain_epochs >= settings.epochs:
        raise training.SettingsError(
            f"All {settings.epochs} epochs are plain, so there would be no mosaic: give fewer "
            "--plain-epochs, or --mosaic-share 0."
        )
    steps = (settings.epochs - settings.plain_epochs) * settings.steps_per_epoch
    return steps if settings.mosaic_share else 0, dataclasses.replace(settings, mosaic_share=0.0)


def check(settings: Settings, train: Any, cluster: Any) -> None:
    """Refuses a run without mosaic that asks for it; with --minutes, once its length is known."""
    if not settings.minutes:
        without_mosaic(settings)


def preprocessing(settings: Settings) -> training.Preprocessing:
    """Images fit into their square."""
    return training.detection_preprocessing(settings, None)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_dense",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    check=check,
    meaning={
        "schedule": flags.NO_DROPS,
        "plain_epochs": flags.only("mosaic_share"),
        "neck_depth": flags.only_on(
            "is for backbones that do not fuse their scales themselves",
            lambda source: flags.has_neck(source) and source.family is not backbones.CEDNetBackbone,
        ),
    },
    closing=without_mosaic,
    shapes_size=SHAPES_SIZE,
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
