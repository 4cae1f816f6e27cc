"""Deformable DETR and Mask2Former on COCO, with the settings of CEDNet's authors by name.

Deformable DETR ("Deformable DETR: Deformable Transformers for End-to-End Object Detection", and
CEDNet's Table 2a): 300 queries, 50 epochs, batch 32, AdamW 2e-4 with sampling offsets and reference
points at a tenth of the rate, gradients clipped to 0.1, DETR's resizing and crops, tested at
800/1333. CEDNet gives P3 to P6 itself; other backbones get a projection, a tenth of the rate and
the same decay everywhere. Mask2Former: 100 queries with masks, 50 epochs, batch 16, AdamW 1e-4,
clipped to 0.01, large-scale jitter 0.1-2.0 at 1024 px.

    python recipes/coco_detr.py                                          # built-in shapes
    python recipes/coco_detr.py --data-dir MY_IMAGES --output runs/mine
    python recipes/coco_detr.py --data-dir MY_IMAGES --detector mask2former
    python recipes/coco_detr.py --data-dir COCO --output runs/detr       # the paper's settings
    torchrun --nproc-per-node=8 recipes/coco_detr.py ...                 # 8 GPUs with PyTorch

Settings left open come from `--experiment`, by default that of the backbone's family from 20,000
training images on, and on fewer that of a short run from random weights: queries start at the
encoder's best tokens and boxes are refined layer by layer (`mixed`), or at the likeliest centres of
objects (Mask2Former, `centres`). Killed at any moment, the same command continues exactly.

Expected: AP 0.44, AP50 0.77 after 14 minutes on 205 pictures of blood cells (two CPU cores with
AVX-512, JAX, 256 px); Mask2Former on 75 of nuclei mask AP50 0.53 after 23 (two with AVX2).
Status: COCO not yet run.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import backbones, data, models, necks, training
from keras_densepred.training import AtLeast, ByArchitecture, Experiment, flags, protocols

if TYPE_CHECKING:
    import keras

HEAD_DECAY = 1e-4  # Deformable DETR: of everything but CEDNet, biases and norms included
SLOW = ("sampling_offsets", "reference_points")  # weights that learn at a tenth of the rate
EMBEDDINGS = ("query_embed", "query_feat", "level_embed")  # Mask2Former's that do not decay
DROPS = {"deformable_detr": (40 / 50,), "mask2former": (327_778 / 368_750, 355_092 / 368_750)}
SIZES = {"deformable_detr": 1344, "mask2former": 1024}  # 1333 and what levels divide; the crop
SELECTIONS = {  # where queries come from
    "deformable_detr": ("learned", "two_stage", "mixed"),
    "mask2former": ("learned", "centres"),
}
JITTER = flags.where(
    "has no effect beside DETR's own crops",
    lambda settings: settings.detector == "mask2former" or settings.experiment == "small",
    asks=("experiment",),
)
NO_PADDING = "pads images, and a transformer must know where they end"
CLIP = {"deformable_detr": 0.1, "mask2former": 0.01}  # norm of the whole gradient


def _by_detector(deformable_detr: Any, mask2former: Any) -> Any:
    def choose(plan: Any) -> Any:
        value = mask2former if plan.detector == "mask2former" else deformable_detr
        return value(plan) if callable(value) else value

    return choose


_PUBLISHED: dict[str, Any] = {
    "image_size": lambda plan: SIZES[plan.detector],
    "batch_size": _by_detector(32, 16),
    "epochs": 50,
    "scale_min": 0.1,  # of Mask2Former's jitter
    "scale_max": 2.0,
    "queries": _by_detector(300, 100),
    "query_selection": "learned",
    "box_refine": False,
    "dropout": _by_detector(0.1, 0.0),
    "width": 256,
    "points": 12_544,
    "encoder_layers": 6,
    "decoder_layers": _by_detector(6, 9),
    "optimizer": "adamw",
    "learning_rate": _by_detector(2e-4, 1e-4),
    "weight_decay": _by_detector(1e-4, 0.05),
    "backbone_rate": 0.1,
    "schedule": "steps",
    "warmup_steps": 0,
    "evaluate_every": 1,
}
EXPERIMENTS = {
    "cednet": Experiment(
        "CEDNet on COCO, the authors' configs",
        {
            **_PUBLISHED,
            "preset": "cednet_next_tiny",
            "drop_path": protocols.cednet_drop_path(tiny=0.2, small=0.3, base=0.3),
            "weight_decay": _by_detector(
                ByArchitecture({"cednet_next_base": 1e-4, "cednet_resnet50": 1e-4}, 0.05), 0.05
            ),
            "layer_decay": _by_detector(
                ByArchitecture({"cednet_next_tiny": 0.5, "cednet_next_small": 0.7}, 1.0), 1.0
            ),
            "backbone_rate": _by_detector(
                ByArchitecture({"cednet_next_tiny": 1.0, "cednet_next_small": 1.0}, 0.1), 0.1
            ),
        },
        families=("CEDNetBackbone",),
    ),
    "convnext": Experiment(
        "ConvNeXt, CEDNet's baseline; 8 encoder layers by the published parameters",
        {
            **_PUBLISHED,
            "preset": "convnext_tiny",
            "encoder_layers": _by_detector(8, 6),
            "drop_path": ByArchitecture({"convnext_tiny": 0.4, "convnext_small": 0.6}, 0.6),
            "layer_scale": 1.0,
        },
        families=("ConvNeXtBackbone",),
    ),
    "resnet": Experiment(
        "Deformable DETR's own ResNet-50, and any other network",
        {**_PUBLISHED, "preset": "resnet50"},
        families=("PyramidBackbone",),
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {
            **protocols.FEW_IMAGES,
            "epochs": AtLeast(12, steps=700),
            "queries": _by_detector(protocols.queries(50), protocols.queries(100)),
            "query_selection": _by_detector("mixed", "centres"),
            "box_refine": _by_detector(True, False),
            "dropout": 0.0,
            "width": 128,
            "points": 512,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "backbone_rate": 1.0,
        },
        on_shapes={"image_size": 96, "epochs": AtLeast(5, steps=700)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings(training.PyramidDetectionSettings):
    """What can be set; None means that the experiment decides."""

    detector: str = training.setting("deformable_detr", "which detector", tuple(DROPS))
    queries: int | None = training.setting(None, "most objects that can be found in an image")
    encoder_layers: int | None = training.setting(None, "of the encoder, or pixel decoder")
    decoder_layers: int | None = training.setting(None, "of the decoder")
    query_selection: str | None = training.setting(
        None, "where queries come from", tuple(dict.fromkeys(sum(SELECTIONS.values(), ())))
    )
    box_refine: bool | None = training.setting(None, "boxes refined layer by layer")
    points: int | None = training.setting(None, "of each mask that Mask2Former learns from")
    dropout: float | None = training.setting(None, "in the transformer")
    backbone_rate: float | None = training.setting(
        None, "share of the rate that the backbone learns at", group="optimizer"
    )

    @property
    def has_masks(self) -> bool:
        return self.detector == "mask2former"


def build_model(settings: Settings, train: Any) -> keras.Model:
    """Backbone, levels of one width and transformer, compiled."""
    # Pretrained batch norms are not trained on a few images a device.
    fixed = {"fixed_batch_norm": True} if training.is_pretrained(settings) else {}
    backbone = training.build_backbone(settings, **fixed)
    build = _mask2former if settings.detector == "mask2former" else _deformable_detr
    model = build(settings, backbone, len(train.class_names))
    optimizer = training.make_optimizer(
        settings,
        model,
        make_schedule(settings),
        head_decay=settings.weight_decay if settings.detector == "mask2former" else HEAD_DECAY,
        rules=_rules(settings, model),
        global_clipnorm=CLIP[settings.detector],
    )
    model.compile(optimizer)
    return model


def _deformable_detr(settings: Settings, backbone: Any, num_classes: int) -> keras.Model:
    """On P3 to P6: CEDNet's own, or projected from what another network has."""
    pyramid = backbone
    if isinstance(backbone, backbones.CEDNetBackbone):
        pyramid = necks.DetectionPyramid(backbone, settings.width, max_level=6)
    elif not backbone.is_pyramid:
        pyramid = necks.ProjectedLevels(backbone, settings.width)
    return models.DeformableDETR(
        pyramid,
        num_classes,
        feed_forward_width=4 * settings.width,
        dropout=settings.dropout,
        box_refine=settings.box_refine,
        **_transformer(settings),
    )


def _mask2former(settings: Settings, backbone: Any, num_classes: int) -> keras.Model:
    """On the backbone's own P2 to P5."""
    return models.Mask2Former(
        backbone,
        num_classes,
        encoder_hidden=4 * settings.width,
        decoder_hidden=8 * settings.width,
        num_points=settings.points,
        max_detections=max(100, settings.queries),  # COCO counts 100
        **_transformer(settings),
    )


def _transformer(settings: Settings) -> dict[str, Any]:
    """What both detectors are told."""
    return {
        "num_queries": settings.queries,
        "query_selection": settings.query_selection,
        "width": settings.width,
        # One for 32 channels, as in the papers, or as many as divide the width.
        "num_heads": math.gcd(settings.width, max(1, settings.width // 32)),
        "encoder_layers": settings.encoder_layers,
        "decoder_layers": settings.decoder_layers,
    }


def _rules(settings: Settings, model: keras.Model) -> dict[str, tuple[float, float]]:
    """Rates and decays of `AdamW` for what `--layer-decay` does not speak of."""
    rules: dict[str, tuple[float, float]] = {}
    if settings.layer_decay == 1.0:
        given = (settings.backbone_rate, settings.weight_decay)
        rules = dict.fromkeys((weight.path for weight in model.plain_backbone.weights), given)
    outside = [weight.path for weight in model.weights if weight.path not in rules]
    if settings.detector == "mask2former":
        not_decayed = (p for p in outside if "norm" in p or p.split("/")[-1] in EMBEDDINGS)
        return {**rules, **dict.fromkeys(not_decayed, (1.0, 0.0))}
    slow = (path for path in outside if any(name in path for name in SLOW))
    # In a short run, from random weights, they would hardly move.
    rate = 1.0 if settings.experiment == "small" else 0.1
    return {**rules, **dict.fromkeys(slow, (rate, HEAD_DECAY))}


def make_schedule(settings: Settings) -> keras.optimizers.schedules.LearningRateSchedule:
    """The papers drop the rate near the end, without a warm-up."""
    return training.make_schedule(settings, DROPS[settings.detector])


def augmentation(settings: Settings, image_size: int) -> list:
    """DETR's resizing and crops at the papers' sizes; else large-scale jitter, crop, flip."""
    if settings.detector == "deformable_detr" and settings.experiment != "small":
        return data.detr_augmentation(image_size * 1333 // 1344)
    scales = (settings.scale_min, settings.scale_max)
    return data.coco_augmentation(image_size, scale_range=scales, copy_paste=settings.copy_paste)


def preprocessing(settings: Settings) -> training.Preprocessing:
    """The papers test at 800/1333; others fit images into their square."""
    published = None if settings.experiment == "small" else SIZES[settings.detector]
    return training.detection_preprocessing(settings, published)


def check(settings: Settings, train: Any, cluster: Any) -> None:
    """Says how many objects cannot be found."""
    if (most := data.most_boxes(train)) > settings.queries:
        cluster.say(f"An image has {most} objects; --queries {settings.queries} finds no more.")


if __name__ == "__main__":
    training.answer_flags(Settings, __doc__, EXPERIMENTS)  # before Keras is imported

RECIPE = training.Detection(
    "coco_detr",
    __doc__,
    Settings,
    EXPERIMENTS,
    build_model,
    augmentation,
    preprocessing,
    defaults={"copy_paste": False},
    check=check,
    meaning={
        "points": flags.only("detector", "mask2former"),
        "query_selection": flags.one_of("query_selection", "detector", SELECTIONS),
        "copy_paste": flags.where(NO_PADDING, lambda settings: False),
        **dict.fromkeys(("box_refine", "dropout"), flags.only("detector", "deformable_detr")),
        **dict.fromkeys(("scale_min", "scale_max"), JITTER),
    },
    numbers={"width": flags.Number(multiple=4)},
)
main = RECIPE.main

if __name__ == "__main__":
    training.run_script(main)
