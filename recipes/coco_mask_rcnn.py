"""Faster, Mask, Cascade and Grid R-CNN on COCO, with the papers' settings by name.

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

Settings left open come from `--experiment`, by default that of the backbone's family from 20,000
training images on, and on fewer that of a short run from random weights. Killed at any moment, the
same command continues exactly. RESNET50 is a preset directory made of KerasHub's or timm's weights
by `convert.resnet`.

Expected: on 75 microscope pictures of cell nuclei mask AP50 0.76 in 20 minutes on two busy CPU
cores (256 px, JAX).
Status: COCO not yet run. MSFM's frame differs: a batch has one shape here, so images are fitted
into a square of 1088 px (photos of 4:3 have a short side of 816 in it, for the paper's 800).
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, necks, training
from keras_densepred.training import AtLeast, ByArchitecture, Experiment, flags, protocols

if TYPE_CHECKING:
    import keras

HEAD_DECAY = 1e-4  # with AdamW, of what the backbone's rules do not name (CEDNet's configs)
DETECTORS = {
    "faster": "FasterRCNN",
    "mask": "MaskRCNN",
    "cascade": "CascadeRCNN",
    "cascade_mask": "CascadeMaskRCNN",
    "grid": "GridRCNN",
}
# Four convolutions and one matrix with batch norms, where the others have two matrices.
CONVOLUTIONAL_HEADS = {"head_convs": 4, "head_fcs": 1, "head_norm": True}


def _cascade(plan: Any) -> bool:
    return plan.detector.startswith("cascade")


_cascade_decay = ByArchitecture(
    dict.fromkeys(("cednet_next_small", "cednet_next_base", "cednet_cswin_tiny"), 0.7),
    otherwise=0.6,
)
_convnext_decay = ByArchitecture(
    dict.fromkeys(("convnext_tiny", "convnext_small"), 0.7), otherwise=0.8
)
EXPERIMENTS = {
    "cednet": protocols.cednet_on_coco(
        drop_path=protocols.cednet_drop_path(tiny=0.2, small=0.3, base=0.4),
        learning_rate=lambda plan: 2e-4 if _cascade(plan) else 1e-4,
        layer_decay=lambda plan: _cascade_decay(plan) if _cascade(plan) else 0.95,
    ),
    "convnext": protocols.convnext_on_coco(
        learning_rate=lambda plan: 2e-4 if _cascade(plan) else 1e-4,
        layer_decay=lambda plan: _convnext_decay(plan) if _cascade(plan) else 0.95,
    ),
    "bicsnet": Experiment(
        "BiCSNet, section V-A, strategy A",
        {
            **protocols.BICSNET_ON_COCO,
            "width": 256,
            "anchor_scale": ByArchitecture({"bicsnet_140": 4.0}, otherwise=3.0),
        },
        families=protocols.BICSNET_FAMILIES,
        drops=(320 / 350, 340 / 350),
    ),
    "msfm": Experiment(
        "MSFM, and MMDetection's 1x schedule",
        protocols.MSFM_ON_COCO,
        families=("PyramidBackbone",),
        drops=protocols.MSFM_DROPS,
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            **protocols.FEW_IMAGES,
            "epochs": AtLeast(12, steps=400),
            "anchor_scale": 4.0,
            "weight_decay": 0.05,
        },
        on_shapes={"image_size": 96, "epochs": AtLeast(5, steps=400)},
        drops=(8 / 12, 11 / 12),
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.PyramidDetectionSettings):
    """What can be set; None means that the experiment decides."""

    detector: str = training.setting("mask", "which detector", tuple(DETECTORS))
    dynamic: bool = training.setting(False, "Dynamic R-CNN's training, for faster and mask")
    anchor_scale: float | None = training.setting(None, "anchor side over stride")

    @property
    def has_masks(self) -> bool:
        return self.detector.endswith("mask")


def build_model(settings: Settings, train: Any) -> models.FasterRCNN:
    """Backbone, pyramid and heads, compiled."""
    # Pretrained batch norms are not trained on a few images a device.
    fixed: dict[str, Any] = {"frozen_stages": 1, "fixed_batch_norm": True}
    backbone = training.build_backbone(
        settings, **(fixed if training.is_pretrained(settings) else {})
    )
    pyramid, heads = _pyramid(settings, backbone)
    if settings.experiment == "small":
        heads |= {"head_width": 256, "samples": 64, "num_proposals": 300}
        if settings.detector == "grid":
            heads |= {"grid_convs": 4, "grid_width": 16}
    model = getattr(models, DETECTORS[settings.detector])(
        pyramid,
        len(train.class_names),
        anchor_scale=settings.anchor_scale,
        dynamic=settings.dynamic,
        sync_batch_norm=True,
        **heads,
    )
    model.compile(
        training.make_optimizer(settings, model, make_schedule(settings), head_decay=HEAD_DECAY)
    )
    return model


def _pyramid(settings: Settings, backbone: Any) -> tuple[Any, dict[str, Any]]:
    """What the heads stand on, and how the backbone's paper builds them."""
    if isinstance(backbone, (backbones.CEDNetBackbone, backbones.ConvNeXtBackbone)):
        if isinstance(backbone, backbones.CEDNetBackbone):
            pyramid = necks.DetectionPyramid(backbone, settings.width, min_level=2, max_level=6)
        else:
            pyramid = necks.FeaturePyramid(backbone, settings.width)
        if not settings.detector.startswith("cascade"):
            return pyramid, {}
        return pyramid, {**CONVOLUTIONAL_HEADS, "class_agnostic": False, "box_loss": "giou"}
    if backbone.is_pyramid:
        is_bicsnet = isinstance(
            backbone, (backbones.BiCSNetBackbone, backbones.BiCSNetLiteBackbone)
        )
        return backbone, dict(CONVOLUTIONAL_HEADS) if is_bicsnet else {}
    return necks.FeaturePyramid(backbone, settings.width), {}


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The papers drop the rate twice; BiCSNet's warm-up starts from zero."""
    drops = EXPERIMENTS[settings.experiment].drops
    warmup_factor = 0.0 if settings.experiment == "bicsnet" else 0.001
    return training.make_schedule(settings, drops, warmup_factor=warmup_factor)


def augmentation(settings: Settings, image_size: int) -> list:
    """Large-scale jitter, crop, flip; CEDNet's copy-paste."""
    scales = (settings.scale_min, settings.scale_max)
    return data.coco_augmentation(image_size, scale_range=scales, copy_paste=settings.copy_paste)


def preprocessing(settings: Settings) -> training.Preprocessing:
    """CEDNet, ConvNeXt and MSFM test at 800/1333; others fit images into their square."""
    published = protocols.TESTED_AT_800.get(settings.experiment)
    return training.detection_preprocessing(settings, published)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_mask_rcnn",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    defaults={"anchor_scale": 8.0},
    meaning={"dynamic": flags.only("detector", "faster", "mask"), "width": flags.OF_A_NECK},
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
