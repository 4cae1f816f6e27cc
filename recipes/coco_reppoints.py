"""RepPoints on COCO, with the settings that the MSFM paper is measured with.

Yang et al., "RepPoints: Point Set Representation for Object Detection", in MMDetection's form
without norms; MSFM, Table 4. ResNet-50 from ImageNet weights, FPN
with P6 from C5, 12 epochs of batch 16, SGD 0.01, momentum 0.9, decay 1e-4, a tenth after 8 and 11
epochs, 500 steps of warm-up from 0.001, flips alone, images of 800 to 1333 px.

    python recipes/coco_reppoints.py                                      # built-in shapes
    python recipes/coco_reppoints.py --data-dir MY_IMAGES --output runs/mine
    python recipes/coco_reppoints.py --data-dir COCO --weights RESNET50   # the paper's settings
    torchrun --nproc-per-node=8 recipes/coco_reppoints.py ...             # 8 GPUs with PyTorch

Settings left open come from `--experiment`, by default the paper's from 20,000 training images on,
and on fewer those of a short run from random weights. Killed at any moment, the same command
continues exactly. RESNET50 is a preset directory made of KerasHub's or timm's weights by
`convert.resnet`; `--deformable` makes its 3x3 convolutions deformable.

Expected: published AP on COCO 36.8, with MSFM's modules 38.5. On 205 pictures of blood cells, from
random weights, 256 px, AP 0.47, AP50 0.77 after 700 steps (JAX).
Status: COCO not yet run. The frame differs: a batch has one shape here, so images are fitted into a
square of 1088 px (photos of 4:3 have a short side of 816 in it, for the paper's 800).
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

EXPERIMENTS = {
    "msfm": Experiment(
        "MSFM, Table 4, and MMDetection's 1x schedule",
        {
            **protocols.MSFM_ON_COCO,
            "learning_rate": PerBatch(0.01, 16),
            "head_depth": 3,
            "head_norm": False,
        },
        families=("PyramidBackbone",),
        drops=protocols.MSFM_DROPS,
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            **protocols.FEW_IMAGES,
            "epochs": AtLeast(12, steps=700),
            "head_depth": 1,
            "head_norm": True,
            "weight_decay": 0.05,
        },
        on_shapes={"image_size": 96, "epochs": AtLeast(5, steps=700)},
        drops=protocols.MSFM_DROPS,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.PyramidDetectionSettings):
    """What can be set; None means that the experiment decides."""

    head_depth: int | None = training.setting(None, "convolutions per head")
    head_norm: bool | None = training.setting(None, "group norms in the towers and the FPN")
    transform: str = training.setting(
        "moment", "from points to boxes", ("moment", "minmax", "partial_minmax")
    )


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone, pyramid and head, compiled."""
    # A short run from random weights, whose first steps would find nothing with the paper's head.
    from_noise = settings.experiment == "small" and not training.is_pretrained(settings)
    # Pretrained batch norms are not trained on a few images a device.
    fixed: dict[str, Any] = {"frozen_stages": 1, "fixed_batch_norm": True}
    backbone = pyramid = training.build_backbone(
        settings, **(fixed if training.is_pretrained(settings) else {})
    )
    if isinstance(backbone, backbones.CEDNetBackbone):
        pyramid = necks.DetectionPyramid(backbone, settings.width)
    elif not backbone.is_pyramid:
        pyramid = necks.FeaturePyramid(
            *(backbone, settings.width, 3, 7),
            extra_levels="conv_on_c5",
            group_norm=settings.head_norm,
        )
    model = models.RepPoints(
        pyramid,
        len(train.class_names),
        head_depth=settings.head_depth,
        transform=settings.transform,
        head_norm=settings.head_norm,
        head_initializer="he_normal" if from_noise else None,
    )
    model.compile(
        training.make_optimizer(
            settings, model, make_schedule(settings), head_decay=settings.weight_decay
        )
    )
    return model


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The paper drops the rate twice."""
    return training.make_schedule(settings, EXPERIMENTS[settings.experiment].drops)


def augmentation(settings: Settings, image_size: int) -> list:
    """Flips; large-scale jitter and crop where the scales are not 1."""
    scales = (settings.scale_min, settings.scale_max)
    return data.coco_augmentation(image_size, scale_range=scales, copy_paste=settings.copy_paste)


def preprocessing(settings: Settings) -> training.Preprocessing:
    """The paper tests at 800/1333; others fit images into their square."""
    published = protocols.TESTED_AT_800.get(settings.experiment)
    return training.detection_preprocessing(settings, published)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_reppoints",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    meaning={"width": flags.OF_A_NECK},
    numbers={"head_depth": flags.Number(least=1)},
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
