"""RetinaNet on COCO, with each family's published settings by name; an FPN for those that need one.

CEDNet ("CEDNet: a cascade encoder-decoder network for dense prediction", and its code): 36 epochs,
batch 16, AdamW 1e-4 with layer-wise decay, large-scale jitter 0.1-2.0 at 1024 px with rectangle
copy-paste, tested at 800/1333. BiCSNet (section V-A), from random weights: 350 epochs of strategy A
or 500 of B, batch 128, SGD 0.16, batch norms in the heads, 640 to 1280 px by network; B adds
stochastic depth, swish and a wider jitter. MSFM (Table 4): ResNet with modules, FPN with P6 from
C5, 12 epochs, batch 16, SGD 0.01, images of 800 to 1333 px.

    python recipes/coco_retinanet.py                                      # built-in shapes
    python recipes/coco_retinanet.py --data-dir MY_IMAGES --image-size 512 --output runs/mine
    python recipes/coco_retinanet.py --data-dir COCO --output runs/coco   # CEDNet's settings
    python recipes/coco_retinanet.py --data-dir COCO --experiment bicsnet_b --output runs/bicsnet
    python recipes/coco_retinanet.py --data-dir MY_IMAGES --preset resnet_50_imagenet
    torchrun --nproc-per-node=8 recipes/coco_retinanet.py ...             # 8 GPUs with PyTorch

Settings left open come from `--experiment`, by default that of the backbone's family from 20,000
training images on, and on fewer that of a short run from random weights. Killed at any moment, the
same command continues exactly.

Expected: on 205 pictures of blood cells AP 0.53, AP50 0.85 after ten minutes on two CPU cores
(JAX, 256 px, `--minutes 10.6`). On the built-in shapes AP 0.37, AP50 0.71 in six minutes of one.
Status: COCO not yet run (CEDNet starts from ImageNet weights that were never published).
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, necks, training
from keras_densepred.training import AtLeast, ByArchitecture, Experiment, PerBatch, protocols

if TYPE_CHECKING:
    import keras

HEADS = {"ours": "RetinaNet", "keras_hub": "RetinaNetKerasHub", "keras_cv": "RetinaNetKerasCV"}
HEAD_DECAY = 1e-4  # with AdamW, of what the backbone's rules do not name (CEDNet's configs)

_BICSNET: dict[str, Any] = {
    **protocols.BICSNET_ON_COCO,
    "image_size": ByArchitecture(  # BiCSNet, Table I, and the sizes of its Lite form
        {
            "bicsnet_48l": 896,
            "bicsnet_94": 1024,
            "bicsnet_140": 1280,
            "bicsnet_lite0": 256,
            "bicsnet_lite1": 384,
            "bicsnet_lite2": 384,
            "bicsnet_lite3": 512,
        },
        otherwise=640,
    ),
    "head_depth": 4,
    "focal_gamma": 1.5,
    "anchor_scale": ByArchitecture({"bicsnet_140": 4.0}, otherwise=3.0),  # section V-A
}
_CEDNET = protocols.cednet_on_coco(
    drop_path=protocols.cednet_drop_path(tiny=0.2, small=0.3, base=0.3),
    head_depth=4,
    focal_gamma=2.0,
)
EXPERIMENTS = {
    "cednet": _CEDNET,
    "convnext": protocols.convnext_on_coco(head_depth=4, focal_gamma=2.0),
    "msfm": Experiment(
        "MSFM, Table 4, and MMDetection's 1x schedule",
        {
            **protocols.MSFM_ON_COCO,
            "learning_rate": PerBatch(0.01, 16),  # MMDetection's of RetinaNet; the paper has none
            "head_depth": 4,
            "focal_gamma": 2.0,
        },
        families=("ResNetBackbone",),
        drops=protocols.MSFM_DROPS,
    ),
    "bicsnet_b": Experiment(
        "BiCSNet, section V-A, strategy B",
        {
            **_BICSNET,
            "epochs": 500,
            "scale_min": 0.1,
            "activation": "swish",
            "drop_path": 0.2,  # SpineNet's; the paper gives none
        },
        families=protocols.BICSNET_FAMILIES,
        drops=(470 / 500, 490 / 500),
    ),
    "bicsnet_a": Experiment(
        "BiCSNet, section V-A, strategy A",
        {**_BICSNET, "activation": "relu"},
        drops=(320 / 350, 340 / 350),
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            **protocols.FEW_IMAGES,
            "epochs": AtLeast(12, steps=700),
            "head_depth": 1,
            "anchor_scale": 3.0,  # objects are smaller than in COCO's images of 800 px
            "box_loss": "giou",
            "drop_path": _CEDNET.settings["drop_path"],
            "weight_decay": lambda plan: 4e-5 if plan.optimizer == "sgd" else 0.05,
            "layer_decay": lambda plan: 0.95 if plan.pretrained else 1.0,
            "focal_gamma": 2.0,
        },
        on_shapes={"image_size": 96, "epochs": AtLeast(5, steps=700)},  # 1000 steps
        drops=_CEDNET.drops,
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.PyramidDetectionSettings):
    """What can be set; None means that the experiment decides."""

    head: str | None = training.head_setting(tuple(HEADS))
    head_depth: int | None = training.setting(None, "convolutions per head")
    activation: str | None = training.setting(None, "of BiCSNet and its heads", ("relu", "swish"))
    focal_gamma: float | None = training.setting(
        None, "exponent of the focal loss", group="optimizer"
    )
    assigner: str = training.setting("max_iou", "which anchors learn", ("max_iou", "atss"))
    box_loss: str | None = training.setting(None, "of the boxes", ("l1", "giou"))
    anchor_scale: float | None = training.setting(None, "anchor side over stride")


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone, pyramid and heads, compiled."""
    pretrained = training.is_pretrained(settings)
    # Pretrained batch norms are not trained on a few images a device.
    fixed: dict[str, Any] = {"fixed_batch_norm": True} if pretrained else {}
    if pretrained and settings.experiment == "msfm":
        fixed["frozen_stages"] = 1
    backbone = pyramid = training.build_backbone(settings, **fixed)
    options: dict[str, Any] = {}
    fuse_nothing = (backbones.ConvNeXtBackbone, backbones.HostBackbone, backbones.ResNetBackbone)
    if isinstance(backbone, fuse_nothing):
        pyramid = necks.FeaturePyramid(backbone, settings.width, 3, 7, extra_levels="conv_on_c5")
    elif isinstance(backbone, backbones.CEDNetBackbone) or not backbone.is_pyramid:
        pyramid = necks.DetectionPyramid(backbone, width=settings.width)
        options["head_initializer"] = None if pretrained else "he_normal"
    elif isinstance(backbone, (backbones.BiCSNetBackbone, backbones.BiCSNetLiteBackbone)):
        options = {  # BiCSNet, section V-A
            "head_width": settings.width,
            "head_norm": True,
            "head_activation": backbone.activation,
            "head_separable": isinstance(backbone, backbones.BiCSNetLiteBackbone),
        }
    model = getattr(models, HEADS[settings.head])(
        pyramid,
        len(train.class_names),
        head_depth=settings.head_depth,
        anchor_scale=settings.anchor_scale,
        assigner=settings.assigner,
        **options,
    )
    model.compile(
        training.make_optimizer(settings, model, make_schedule(settings), head_decay=HEAD_DECAY),
        box_loss=models.BoxGIoULoss() if settings.box_loss == "giou" else models.BoxL1Loss(),
        classification_loss=models.SigmoidFocalLoss(gamma=settings.focal_gamma),
    )
    return model


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The papers drop the rate twice; BiCSNet's warm-up starts from zero."""
    drops = EXPERIMENTS[settings.experiment].drops
    warmup_factor = 0.0 if settings.experiment.startswith("bicsnet") else 0.001
    return training.make_schedule(settings, drops, warmup_factor=warmup_factor)


def augmentation(settings: Settings, image_size: int) -> list:
    """Large-scale jitter, crop, flip; CEDNet's copy-paste."""
    return data.coco_augmentation(
        image_size,
        scale_range=(settings.scale_min, settings.scale_max),
        copy_paste=settings.copy_paste,
    )


def _anchor_scale_before(recorded: Mapping[str, Any]) -> float:
    """What runs had before it could be set: the paper's with BiCSNet, RetinaNet's otherwise."""
    preset = str(recorded.get("preset"))
    return 3.0 if preset.startswith("bicsnet") and preset != "bicsnet_140" else 4.0


def preprocessing(settings: Settings) -> training.Preprocessing:
    """CEDNet, ConvNeXt and MSFM test at 800/1333; others fit images into their square."""
    published = protocols.TESTED_AT_800.get(settings.experiment)
    return training.detection_preprocessing(settings, published)


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_retinanet",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    defaults={"head": "keras_hub", "anchor_scale": 4.0, "box_loss": "l1"},
    before={"anchor_scale": _anchor_scale_before},
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
