"""Training protocols that several recipes share, each with its source."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_densepred.training.experiments import (
    ByArchitecture,
    Epochs,
    Experiment,
    PerBatch,
    Plan,
)

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)

BICSNET_FAMILIES = ("BiCSNetBackbone", "BiCSNetLiteBackbone")


def cednet_drop_path(tiny: float, small: float, base: float) -> ByArchitecture:
    """CEDNet's drop path rates, by network; its Swin and CSwin forms have the same everywhere."""
    forms_of_tiny = ("", "_unet", "_hourglass", "_fpn")
    return ByArchitecture(
        {
            **{f"cednet_next_tiny{form}": tiny for form in forms_of_tiny},
            "cednet_next_small": small,
            "cednet_next_base": base,
            "cednet_swin_tiny": 0.1,
            "cednet_cswin_tiny": 0.2,
        },
        otherwise=0.0,
    )


# Sides of the training images of experiments that test at 800/1333 px, CEDNet's being crops.
TESTED_AT_800 = {"cednet": 1024, "convnext": 1024, "msfm": 1088}


def cednet_on_coco(**settings: Any) -> Experiment:
    """CEDNet's detectors on COCO, by the paper and the authors' MMDetection configs.

    Args:
        **settings: what a detector adds or has otherwise.
    """
    return Experiment(
        "CEDNet on COCO, the authors' configs",
        {
            "preset": "cednet_next_tiny",
            "image_size": TESTED_AT_800["cednet"],
            "batch_size": 16,
            "epochs": 36,
            "scale_min": 0.1,
            "scale_max": 2.0,
            "copy_paste": True,
            "width": 256,
            "optimizer": "adamw",
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "schedule": "steps",
            "warmup_steps": 500,
            "layer_decay": 0.95,
            "evaluate_every": 1,
            **settings,
        },
        families=("CEDNetBackbone",),
        drops=(27 / 36, 33 / 36),
    )


def convnext_on_coco(**settings: Any) -> Experiment:
    """ConvNeXt with an FPN, CEDNet's opponent, trained as CEDNet is.

    Drop path and start of the layer scale are those of ConvNeXt's own MMDetection configs, which
    share CEDNet's schedule and rates; CEDNet's paper gives none.

    Args:
        **settings: what a detector adds or has otherwise.
    """
    like_cednet = cednet_on_coco(
        **{
            "preset": "convnext_tiny",
            "drop_path": ByArchitecture(
                {
                    "convnext_tiny": 0.4,
                    "convnext_small": 0.6,
                    "convnext_base": 0.7,
                    "convnext_large": 0.7,
                    "convnext_xlarge": 0.8,
                },
                otherwise=0.0,
            ),
            "layer_scale": 1.0,
            **settings,
        }
    )
    source = "ConvNeXt with an FPN, CEDNet's baseline, trained as CEDNet"
    return dataclasses.replace(like_cednet, source=source, families=("ConvNeXtBackbone",))


# BiCSNet, section V-A, strategy A. The paper trains its detectors from random weights.
BICSNET_ON_COCO: dict[str, Any] = {
    "preset": "bicsnet_48",
    "image_size": 640,
    "batch_size": 128,
    "epochs": 350,
    "scale_min": 0.5,
    "scale_max": 2.0,
    "copy_paste": False,
    "drop_path": 0.0,
    "optimizer": "sgd",
    "learning_rate": PerBatch(0.16, 128),
    "weight_decay": 4e-5,
    "schedule": "steps",
    "warmup_steps": Epochs(2),
    "evaluate_every": 10,
}

# MSFM, section 4, which is MMDetection's 1x schedule. The frame differs: images fit into a square
# of 1088 px (photos of 4:3 have a short side of 816 in it, for the paper's 800).
MSFM_ON_COCO: dict[str, Any] = {
    "preset": "msfm_resnet50",
    "image_size": TESTED_AT_800["msfm"],
    "batch_size": 16,
    "epochs": 12,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "copy_paste": False,
    "width": 256,
    "optimizer": "sgd",
    "learning_rate": PerBatch(0.02, 16),
    "weight_decay": 1e-4,
    "schedule": "steps",
    "warmup_steps": 500,
    "evaluate_every": 1,
}
MSFM_DROPS = (8 / 12, 11 / 12)

# Ours, for some hundred to some thousand images and random weights.
FEW_IMAGES: dict[str, Any] = {
    "image_size": 512,
    "batch_size": 8,
    "scale_min": 0.6,
    "scale_max": 1.4,
    "copy_paste": False,
    "width": 64,
    "optimizer": "adamw",
    "learning_rate": 1.5e-3,
    "ema": 0.99,
}


def queries(least: int) -> Callable[[Plan], int]:
    """Queries for few images: at most 300, and of those as many as the fullest image has objects.

    COCO counts the surest 100 only, but where queries are missing objects count as background.

    Args:
        least: for images with few objects.
    """
    return lambda plan: min(300, max(least, -(-plan.most_objects // 50) * 50))
