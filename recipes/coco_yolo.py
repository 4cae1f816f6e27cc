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

Expected: on 205 pictures of blood cells AP 0.41 in 14 minutes on two CPU cores (320 px).
Status: COCO not yet run.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import data, models, training
from keras_densepred.training import Experiment, flags

if TYPE_CHECKING:
    import keras

MEAN, STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)  # Darknet: 0..1
SIZE_STEP = 32  # between the sizes of multi-scale training (Darknet)
SMALLEST_SCALE = 320 / 416  # multi-scale training: 320 to 608 px around 416
LARGEST_SCALE = 608 / 416
NECKS = {"efm": "efm_sam", "panet": "panet_spp"}  # what `--head` calls otherwise
HEADS = ("efm", "prn", "panet", "yolov8")  # and, beside the paper's and KerasCV's:
OTHER_HEADS = ("cem", "cem_sam", "efm_sam", "efm_spp", "gfm", "panet_spp", "prn_3l", "tiny")

_DARKNET: dict[str, Any] = {  # what the paper's detectors share
    "batch_size": 64,
    "steps": 500_500,
    "multi_scale": True,
    "mosaic": False,
    "jitter": 0.3,
    "loss": "mse",
    "anchors": "coco",
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "schedule": "steps",
    "warmup_steps": 1000,
    "evaluate_every": 10,
}
_DROPS = (400 / 500.5, 450 / 500.5)
EXPERIMENTS = {
    "efm": Experiment(
        "CSPNet, section 4, for mobile GPUs",
        {**_DARKNET, "preset": "csp_peleenet", "head": "efm", "image_size": 416},
        drops=_DROPS,
    ),
    "panet": Experiment(
        "CSPNet, section 4, for GPUs",
        {**_DARKNET, "preset": "csp_resnext_50", "head": "panet", "image_size": 416},
        drops=_DROPS,
    ),
    "prn": Experiment(
        "CSPNet, section 4, for CPUs",
        {**_DARKNET, "preset": "csp_peleenet_ref", "head": "prn", "image_size": 320},
        drops=_DROPS,
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            "preset": "csp_peleenet",
            "head": "efm",
            "image_size": 416,
            "batch_size": 8,
            "steps": 450,
            "multi_scale": False,
            "mosaic": False,
            "jitter": 0.2,
            "loss": "ciou",
            "anchors": "data",
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "ema": 0.99,
        },
        on_shapes={"image_size": 96},
        drops=_DROPS,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.DetectionSettings):
    """What can be set; None means that the experiment decides."""

    multi_scale: bool | None = training.setting(
        None, "another size every ten steps; each size is compiled", group="data"
    )
    jitter: float | None = training.setting(
        None, "how far borders of the window move", group="data"
    )
    mosaic: bool | None = training.setting(
        None, "four images in one for every second image", group="data"
    )
    head: str | None = training.head_setting(HEADS + OTHER_HEADS)
    loss: str | None = training.setting(None, "of the boxes", ("mse", "giou", "ciou"))
    anchors: str | None = training.setting(None, "COCO's, or fitted to the data", ("coco", "data"))


def check(settings: Settings, train: Any, cluster: training.Cluster) -> None:
    """tf.data hands out batches of one shape to several devices; KerasCV's grid is static."""
    import keras

    if not settings.multi_scale or keras.backend.backend() != "tensorflow":
        return
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
    number = 6 if settings.head in ("prn", "tiny") else 9
    anchors, overlap = data.cluster_anchors(
        data.box_shapes(train, settings.image_size), number, settings.seed
    )
    training.current_cluster().say(
        f"{number} anchors, mean IoU with the training boxes {overlap:.3f}"
    )
    return anchors


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone, neck and predictions, compiled."""
    anchors = fit_anchors(settings, train)
    backbone = training.build_backbone(settings)
    if settings.head == "yolov8":
        model = models.YOLOV8KerasCV(backbone, len(train.class_names))
    else:
        model = models.YOLOv3Detector(
            backbone,
            len(train.class_names),
            neck=NECKS.get(settings.head, settings.head),
            anchors=anchors,
            loss=settings.loss,
        )
    model.compile(make_optimizer(settings, model))
    return model


def make_optimizer(settings: Settings, model: keras.Model) -> keras.optimizers.Optimizer:
    """Darknet's SGD with its burn-in, or AdamW with a cosine for short runs."""
    burn_in = {"warmup_factor": 0.0, "warmup_power": 4.0} if settings.schedule == "steps" else {}
    drops = EXPERIMENTS[settings.experiment].drops
    schedule = training.make_schedule(settings, drops, **burn_in)
    return training.make_optimizer(settings, model, schedule)


def augmentation(settings: Settings, image_size: int) -> list:
    """Darknet's window, colours and flip, and its mosaic."""
    return data.yolo_augmentation(image_size, jitter=settings.jitter, mosaic=settings.mosaic)


def sizes(settings: Settings, size_divisor: int) -> data.RandomSizes:
    """The sizes of multi-scale training, multiples of Darknet's step and of the network's."""
    side = settings.image_size
    if not settings.multi_scale:
        return data.RandomSizes((side,), settings.seed)
    step = max(SIZE_STEP, size_divisor)
    low, high = (round(side * s / step) * step for s in (SMALLEST_SCALE, LARGEST_SCALE))
    return data.RandomSizes(tuple(range(max(low, step), high + 1, step)), settings.seed)


def preprocessing(settings: Settings) -> training.Preprocessing:
    """Stretched to the square, as in training, and in Darknet."""
    scaling = training.image_scaling(settings, MEAN, STD)
    return training.Preprocessing(
        "detection", *scaling, image_size=settings.image_size, stretch=True
    )


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_yolo",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    check=check,
    defaults={
        # Of all weights: Darknet's, or that of a short run.
        "weight_decay": lambda plan: 5e-4 if plan.optimizer == "sgd" else 0.05,
    },
    meaning={name: flags.not_with("head", "yolov8") for name in ("loss", "anchors")},
    numbers={
        "image_size": flags.Number(multiple=SIZE_STEP, where=flags.not_with("head", "yolov8"))
    },
    sizes=sizes,
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
