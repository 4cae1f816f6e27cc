"""UperNet on CEDNet and ConvNeXt: ADE20K's 150 classes (CEDNet, Table 3).

The authors' MMSegmentation configs: 160,000 iterations of batch 16, AdamW with rate 1e-4, decay
0.05 of matrices and layer-wise decay 0.9, a straight line to 0 after 1,500 iterations of warm-up;
crops of 512 px, photometric distortion; cross-entropy averaged over all pixels, and 0.4 times that
of an auxiliary head. From ImageNet weights, which for CEDNet were never published.

    python recipes/ade20k_upernet.py                                          # built-in shapes
    python recipes/ade20k_upernet.py --data-dir MY_IMAGES --output runs/mine
    python recipes/ade20k_upernet.py --data-dir ADEChallengeData2016 --weights IMAGENET_RUN/preset
    python recipes/ade20k_upernet.py --data-dir ADEChallengeData2016 \\
        --preset hf://timm/convnext_tiny.fb_in1k                              # CEDNet's baseline
    python recipes/ade20k_upernet.py ... --multi-scale --flip                 # tests a finished run
    torchrun --nproc-per-node=8 recipes/ade20k_upernet.py ...                 # 8 GPUs with PyTorch

`--data-dir` takes ADEChallengeData2016, Cityscapes, COCO-Stuff, a tree in VOC's layout, or
images/train with masks/train and so on. Settings left open come from `--experiment`: the paper's
from 2,000 training images on, else those of a short run from random weights. Killed at any moment,
the same command continues exactly.

Expected: published mIoU, one scale / several: CEDNet T 48.3 / 48.9, S 49.8 / 50.4, B 49.9 / 51.0;
ConvNeXt T 46.0 / 46.7, S 48.7 / 49.6, B 49.1 / 49.9. On the built-in shapes mean IoU 0.78 after
five minutes (JAX, two cores with AVX-512).
Status: ADE20K not yet run.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, training
from keras_densepred.training import ByArchitecture, Experiment, flags, protocols

if TYPE_CHECKING:
    import keras

HEADS = ("uper", "ced")  # `models.UPERNET_HEADS`, which Keras must not be imported for
_CEDNET_LAYERS = 7  # what the authors' layer decay counts from in S and B, whose depths reach 9

_PAPER: dict[str, Any] = {
    "image_size": 512,
    "batch_size": 16,
    "steps": 160_000,
    "steps_per_epoch": lambda plan: min(plan.steps, 1000),
    "evaluate_every": 16,  # the authors': every 16,000 iterations
    "scale_min": 0.5,
    "scale_max": 2.0,
    "photometric": True,
    "width": 512,
    "layer_scale": 1.0,  # trained weights bring their own
    "average": "all",
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "layer_decay": 0.9,
    "schedule": "linear",
    "warmup_steps": 1500,
    "floor": 0.0,
    "sliding_window": True,
}

EXPERIMENTS = {
    "cednet": Experiment(
        "CEDNet on ADE20K, the authors' configs",
        {
            **_PAPER,
            "preset": "cednet_next_tiny",
            "drop_path": protocols.cednet_drop_path(0.2, 0.3, 0.4),
        },
        families=("CEDNetBackbone",),
    ),
    "convnext": Experiment(
        "ConvNeXt on ADE20K, CEDNet's baseline",
        {
            **_PAPER,
            "preset": "convnext_tiny",
            "drop_path": ByArchitecture(
                {"convnext_tiny": 0.4, "convnext_small": 0.3, "convnext_base": 0.4}, otherwise=0.4
            ),
        },
        families=("ConvNeXtBackbone",),
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
            "photometric": False,
            "width": 64,
            "average": "labelled",
            "optimizer": "adamw",
            "learning_rate": 3e-3,
            "weight_decay": 1e-4,
            "warmup_steps": lambda plan: min(50, plan.steps // 10),
            "floor": 0.0,
            "ema": 0.99,
            "sliding_window": False,
        },
        # Shapes come in all sizes, and a run sees few of them twice.
        on_shapes={"image_size": 192, "batch_size": 4, "scale_min": 1.0, "scale_max": 1.0},
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.SegmentationSettings):
    """What can be set; None means that the experiment decides."""

    head: str | None = training.head_setting(HEADS)
    average: str | None = training.setting(
        None, "pixels over which the loss is averaged", ("all", "labelled"), group="optimizer"
    )
    layer_decay: float | None = training.setting(
        None, "layer-wise decay of the backbone's rate; 1: none", group="optimizer"
    )


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone and head, compiled."""
    final_decoder = True if settings.head == "ced" else None
    backbone = training.build_backbone(settings, final_decoder=final_decoder)
    model = models.UperNet(
        backbone,
        len(train.class_names),
        settings.width,
        auxiliary_width=settings.width // 2,
        head=settings.head,
        sync_batch_norm=True,
    )
    schedule = training.make_schedule(settings, warmup_factor=1e-6)
    # Matrices are decayed and vectors are not, in the heads as well.
    rules = training.layer_decay_rules(
        backbone, settings.layer_decay, settings.weight_decay, layers_counted(backbone)
    )
    optimizer = training.make_optimizer(settings, model, schedule, rules=rules)
    model.compile(optimizer, models.IgnoreCrossentropy(average=settings.average))
    return model


def layers_counted(backbone: Any) -> int:
    """From which depth the layer decay counts."""
    is_cednet = isinstance(backbone, backbones.CEDNetBackbone)
    return min(backbone.num_layers, _CEDNET_LAYERS) if is_cednet else backbone.num_layers


def augmentation(settings: Settings, image_size: int) -> list:
    """The paper's: resize under two limits, crop, flip, colours; else as images are tested."""
    is_small = settings.experiment == "small"
    augment = data.segmentation_augmentation if is_small else data.scene_parsing_augmentation
    return augment(
        image_size,
        scale_range=(settings.scale_min, settings.scale_max),
        photometric=settings.photometric,
    )


def preprocessing(settings: Settings) -> training.Preprocessing:
    """Whole images, fitted into the training crop."""
    scaling = training.image_scaling(settings)
    return training.Preprocessing("segmentation", *scaling, settings.image_size)


def needs_cednet(settings: Settings) -> str | None:
    """What is wrong with `--head` on the backbone."""
    family = flags.source_of(settings).family
    if settings.head == "ced" and not issubclass(family, backbones.CEDNetBackbone):
        return "ced is one more stage of a CEDNet, and this backbone is none: give uper"
    return None


def check(settings: Settings, train: Any, cluster: Any) -> None:
    """Refuses what batch norm cannot normalise."""
    if settings.batch_size < 2:
        raise training.SettingsError(
            "--batch-size 1 leaves the batch norm behind the pooling grid of one cell nothing to "
            "normalise: give 2 or more."
        )


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Segmentation(
    "ade20k_upernet",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    defaults={"head": "uper"},
    check=check,
    meaning={"schedule": flags.NO_DROPS, "head": flags.Rule(needs_cednet, ("preset",))},
    numbers={"width": flags.Number(least=2)},  # the auxiliary head has half of it
    large=2_000,
    test_under_limits=True,
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
