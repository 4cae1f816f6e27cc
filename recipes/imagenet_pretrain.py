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

Settings left open come from `--experiment`, by default that of the backbone's family on 100,000
images and more, and on fewer that of a short run from random weights. Killed at any moment, the
same command continues exactly. guides/scale.md says what a full run takes and how to start it on
several machines.

Expected: 80 % top-1 on 550 photographs in 10 classes (Caltech, 128 px), in 11 minutes on two CPU
cores.
Status: ImageNet not yet run.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import data, models, training
from keras_densepred.training import AtLeast, Experiment, PerBatch, flags, protocols

if TYPE_CHECKING:
    import keras

CROP_RATIO = 0.875  # share of the resized image that evaluation looks at
WARPED_FROM = 384  # pixels from which on evaluation warps the whole image (CEDNet's code)

_BICSNET: dict[str, Any] = {  # BiCSNet, section on classification
    "preset": "bicsnet_48",
    "image_size": 224,
    "batch_size": 1024,
    "epochs": 250,
    "min_area": 0.08,
    # The paper names no optimizer: SGD of its detectors, at the usual 0.1 for a batch of 256.
    "optimizer": "sgd",
    "learning_rate": PerBatch(0.4, 1024),
    "floor": 0.0,
    "warmup_epochs": 5.0,
    "weight_decay": 4e-5,
    "layer_scale": None,
    "evaluate_every": 10,
}
_CSPNET: dict[str, Any] = {  # CSPNet, section 4.1
    **_BICSNET,
    "preset": "csp_resnext_50",
    "image_size": 256,  # at which the paper counts operations
    "batch_size": 128,
    "epochs": 80,  # 800,000 steps
    "learning_rate": PerBatch(0.1, 128),
    "schedule": "power4",
    "warmup_epochs": 0.0,
    "weight_decay": 5e-4,
}
EXPERIMENTS = {
    "cednet": Experiment(
        "CEDNet, authors' code, main.py's defaults and TRAINING.md's commands",
        {
            "preset": "cednet_next_tiny",
            "image_size": 224,
            "batch_size": 4096,
            "epochs": 300,
            "min_area": 0.08,
            "rand_augment": True,
            "erasing": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "smoothing": 0.1,
            "layer_scale": 1e-6,
            "optimizer": "adamw",
            "learning_rate": PerBatch(4e-3, 4096),
            "floor": 1e-6,
            "warmup_epochs": 20.0,
            "weight_decay": 0.05,
            "ema": 0.9999,
            "evaluate_every": 10,
        },
        families=("CEDNetBackbone",),
    ),
    "bicsnet_imagenet": Experiment(
        "BiCSNet, section on classification", _BICSNET, families=protocols.BICSNET_FAMILIES
    ),
    "bicsnet_inaturalist": Experiment("the same; the data have 8142 classes", _BICSNET),
    "cspnet": Experiment("CSPNet, section 4.1", _CSPNET, families=("CSPNetBackbone",)),
    "cspnet_dense": Experiment(
        "CSPNet, section 4.1, dense networks",
        {**_CSPNET, "preset": "csp_peleenet", "epochs": 160},
        families=("CSPDenseNetBackbone", "PeleeNetBackbone", "ElasticDenseNetBackbone"),
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            "image_size": 128,
            "batch_size": 32,
            "epochs": AtLeast(10, steps=700),
            "min_area": 0.3,
            "smoothing": 0.1,
            "layer_scale": 0.2,
            "optimizer": "adamw",
            "learning_rate": PerBatch(2e-3, 32),
            "floor": 1e-5,
            "warmup_epochs": 2.0,
            "weight_decay": 0.05,
            "ema": 0.99,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.CommonSettings):
    """What can be set; None means that the experiment decides."""

    min_area: float | None = training.setting(
        None, "smallest crop, as a share of the area", group="data"
    )
    rand_augment: bool | None = training.setting(None, "RandAugment m9 mstd0.5 inc1", group="data")
    erasing: float | None = training.setting(None, "probability of random erasing", group="data")
    mixup: float | None = training.setting(None, "alpha of mixup; 0: none", group="data")
    cutmix: float | None = training.setting(None, "alpha of cutmix; 0: none", group="data")
    smoothing: float | None = training.setting(None, "label smoothing", group="data")
    accumulate: int = training.setting(
        1, "steps whose gradients make one update", group="optimizer"
    )
    warmup_epochs: float | None = training.setting(None, "epochs of the warm-up", group="optimizer")

    @property
    def step_size(self) -> int:
        return self.batch_size // self.accumulate


def unequal_steps(settings: Settings) -> str | None:
    """Why a batch does not split into the steps of an update."""
    batch, steps = settings.batch_size, settings.accumulate
    fault = f"{steps} does not divide --batch-size {batch}: give a divisor"
    return fault if batch % steps else None


def build_model(settings: Settings, train: Any) -> keras.Model:
    """The classifier, compiled."""
    import keras

    # Batch statistics of each device, as usual in pretraining.
    backbone = training.build_backbone(settings, sync_batch_norm=None)
    model = models.image_classifier(backbone, len(train.class_names))
    # Keras averages after every step, also those that only add to the gradients, and counts all of
    # them for the schedule.
    optimizer = training.make_optimizer(
        settings,
        model,
        make_schedule(settings),
        ema_momentum=settings.ema ** (1 / settings.accumulate),
        gradient_accumulation_steps=settings.accumulate if settings.accumulate > 1 else None,
    )
    # The targets are smoothed and mixed already. With a head at every stage the model takes the
    # mean of their losses. KerasHub's own choice of a metric is for targets of integers.
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), metrics=[])
    return model


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """A cosine or the fourth power, the warm-up from zero."""
    return training.make_schedule(settings, warmup_factor=0.0)


def augmentation(settings: Settings, image_size: int) -> list:
    """Random crop and flip, and what CEDNet adds."""
    return data.imagenet_augmentation(
        image_size,
        scale=(settings.min_area, 1.0),
        rand_augment=settings.rand_augment,
        erasing=settings.erasing,
    )


def preprocessing(settings: Settings) -> training.Preprocessing:
    """The middle of the resized image; from 384 pixels on all of it, warped, as the authors do."""
    size = settings.image_size
    crop_ratio = CROP_RATIO if size < WARPED_FROM else None
    mean, std = training.image_scaling(settings)
    return training.Preprocessing("classification", mean, std, size, crop_ratio=crop_ratio)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Classification(
    "imagenet_pretrain",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    check=lambda settings, train, cluster: cluster.check_accumulation(settings.accumulate),
    defaults={
        "drop_path": protocols.cednet_drop_path(tiny=0.1, small=0.4, base=0.5),
        "steps_per_epoch": lambda plan: max(1, plan.accumulate * plan.images // plan.batch_size),
        "warmup_steps": lambda plan: min(
            round(plan.warmup_epochs * plan.steps_per_epoch), plan.total_steps - 1
        ),
        "rand_augment": False,
        **dict.fromkeys(("erasing", "mixup", "cutmix", "smoothing"), 0.0),
    },
    meaning={
        "schedule": flags.NO_DROPS,
        "accumulate": flags.Rule(unequal_steps, ("batch_size",)),
    },
    large=100_000,
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
