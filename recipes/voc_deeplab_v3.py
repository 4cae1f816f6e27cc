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
the list `train_aug` are there), or images/train with masks/train and so on. Settings left open come
from `--experiment`: the paper's from 1,400 training images on, else those of a short run from
random weights. Killed at any moment, the same command continues exactly.

Expected: on the built-in shapes mean IoU 0.756 after six minutes on two CPU cores (JAX).
Status: VOC not yet run (the paper starts from COCO weights that were never published).
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import data, models, training
from keras_densepred.training import Experiment, PerBatch, flags

if TYPE_CHECKING:
    import keras


def _follow(batch_size: int) -> Any:
    """SGD's rate follows the batch, as in the paper's other experiments; AdamW has one of ours."""
    rate = PerBatch(0.02, batch_size)
    adamw = {"mask2former": 1e-3}
    return lambda plan: rate(plan) if plan.optimizer == "sgd" else adamw.get(plan.head, 3e-3)


EXPERIMENTS = {
    "bicsnet": Experiment(
        "BiCSNet, section on semantic segmentation",
        {
            "preset": "bicsnet_48",
            "image_size": 512,
            "batch_size": 256,
            "steps": 20_000,
            "steps_per_epoch": lambda plan: min(plan.steps, 1000),
            "scale_min": 0.5,
            "scale_max": 2.0,
            "width": 256,
            "aspp": True,
            "optimizer": "sgd",
            "warmup_steps": 1000,
            "evaluate_every": 1,
        },
    ),
    "small": Experiment(
        "some hundred images, from random weights",
        {
            "image_size": 256,
            "batch_size": 8,
            "steps": 900,
            "steps_per_epoch": lambda plan: min(plan.steps, 100),
            "scale_min": 0.8,
            "scale_max": 1.25,
            "width": 64,
            "aspp": False,
            "optimizer": "adamw",
            "warmup_steps": lambda plan: min(50, plan.steps // 10),
            "ema": 0.99,
        },
        # Shapes come in all sizes, and a run sees few of them twice.
        on_shapes={"image_size": 192, "batch_size": 4, "scale_min": 1.0, "scale_max": 1.0},
    ),
}


# Mask2Former on some hundred images; the paper's are the defaults.
FEW_QUERIES = {"num_queries": 30, "encoder_layers": 2, "decoder_layers": 3, "num_points": 2048}
FEW_QUERIES |= {"encoder_hidden": 256, "decoder_hidden": 256}


@dataclasses.dataclass(frozen=True)
class Settings(training.SegmentationSettings):
    """What can be set; None means that the experiment decides."""

    head: str | None = training.head_setting(("ours", "mask2former", "keras_hub", "keras_cv"))
    aspp: bool | None = training.setting(None, "atrous spatial pyramid pooling in our head")


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone and head, compiled."""
    backbone = training.build_backbone(settings)
    num_classes = len(train.class_names)
    if settings.head == "ours":
        rates = models.ATROUS_RATES if settings.aspp else None
        model = models.DeepLabV3(backbone, num_classes, settings.width, rates)
    elif settings.head == "mask2former":
        few = FEW_QUERIES if settings.experiment == "small" else {}
        model = models.Mask2FormerSegmenter(backbone, num_classes, settings.width, **few)
    elif settings.head == "keras_hub":
        model = models.DeepLabV3KerasHub(backbone, num_classes)
    else:
        model = models.DeepLabV3PlusKerasCV(backbone, num_classes)
    clip = {"global_clipnorm": 0.01} if settings.head == "mask2former" else {}
    schedule = training.make_schedule(settings)
    model.compile(training.make_optimizer(settings, model, schedule, **clip))
    return model


def augmentation(settings: Settings, image_size: int) -> list:
    """Random scale, crop, flip, and colours where asked for."""
    return data.segmentation_augmentation(
        image_size,
        scale_range=(settings.scale_min, settings.scale_max),
        photometric=settings.photometric,
    )


def preprocessing(settings: Settings) -> training.Preprocessing:
    """Whole images, fitted into the training crop."""
    scaling = training.image_scaling(settings)
    return training.Preprocessing("segmentation", *scaling, settings.image_size)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Segmentation(
    "voc_deeplab_v3",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    defaults={
        "head": "ours",
        "learning_rate": _follow(256),
        "floor": 0.0,
        "photometric": False,
        "sliding_window": False,
        "weight_decay": lambda plan: 4e-5 if plan.optimizer == "sgd" else 1e-4,
    },
    meaning={
        "schedule": flags.NO_DROPS,
        "width": flags.only("head", "ours", "mask2former"),
        "aspp": flags.only("head", "ours"),
    },
    numbers={
        "width": flags.Number(multiple=8, where=flags.only("head", "mask2former")),  # its heads
        "image_size": flags.Number(multiple=32, where=flags.only("head", "keras_hub")),
    },
    large=1_400,  # VOC 2012's own training split has 1,464, with SBD's annotations 10,582
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
