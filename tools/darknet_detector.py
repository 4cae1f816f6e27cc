"""A whole detector of Darknet's: weights, configuration and class names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from keras_densepred import backbones, convert, models

IMAGE_SIZE = 416


@dataclasses.dataclass(frozen=True)
class DarknetDetector:
    """What a weights file and its companions make.

    Attributes:
        model: the detector, compiled.
        category_ids: of each label.
        class_names: of each label.
        image_size: side in pixels of the square that images are stretched to, as in Darknet.
        is_checked: whether a configuration was compared with the network.
    """

    model: models.YOLOv3Detector
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    image_size: int
    is_checked: bool


def load_detector(
    weights: str | os.PathLike[str],
    preset: str,
    neck: str,
    cfg: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    num_classes: int = 80,
    **options: Any,
) -> DarknetDetector:
    """Loads a Darknet detector's `.weights` file.

    Args:
        weights: the file.
        preset: of the backbone, one with Darknet's order of convolutions, such as
            `"csp_resnext_50"` or `"yolov3_tiny"`.
        neck: a name of `YOLO_NECKS`, such as `"panet_spp"`, `"tiny"` or `"prn"`.
        cfg: the configuration; by default the `.cfg` file of the weights' name beside them, if
            there is one. Classes, anchors and image size come from it, and its convolutions are
            compared with the network's one by one.
        names: the file of class names; by default the only `.names` file beside the weights, if
            there is one.
        num_classes: C, without a configuration.
        **options: of `YOLOv3Detector`, such as `loss="ciou"`, where the configuration does not
            tell.

    Returns:
        The detector and what is known of its classes and images.

    Raises:
        ValueError: if a file is missing or of another network, or the names are not as many as the
            classes.
    """
    weights = Path(weights)
    cfg = _companion(weights.with_suffix(".cfg"), cfg)
    beside = sorted(weights.parent.glob("*.names"))
    names = _companion(beside[0] if len(beside) == 1 else None, names)
    sections = convert.darknet_cfg.read_cfg(cfg) if cfg else None
    settings = convert.darknet_cfg.yolo_settings(sections, cfg) if cfg and sections else None
    if cfg and settings is None:
        raise ValueError(f"{cfg} has no [yolo] section: convert it without --detector.")
    if settings is not None:
        num_classes = settings.num_classes
    ids, class_names = convert.darknet.read_names(names) if names else _numbered(num_classes)
    if len(class_names) != num_classes:
        raise ValueError(
            f"{names} has {len(class_names)} names, and the network {num_classes} classes: give "
            "the names file that belongs to it."
        )
    backbone = backbones.load_backbone(preset)
    if settings is not None:
        levels = ("P3", "P4", "P5")[-len(settings.masks) :]
        options = {
            **options,
            "anchors": settings.anchors,
            "masks": dict(zip(levels, settings.masks, strict=True)),
        }
    model = models.YOLOv3Detector(backbone, num_classes, neck=neck, **options)
    if cfg and sections is not None:
        convert.darknet_cfg.require_same_network(model, sections, cfg)
    convert.darknet.load_weights(model, weights)
    model.compile()
    size = settings.image_size if settings else IMAGE_SIZE
    return DarknetDetector(model, ids, class_names, size, cfg is not None)


def _companion(default: Path | None, given: str | os.PathLike[str] | None) -> Path | None:
    if given is None:
        return default if default is not None and default.is_file() else None
    if not Path(given).is_file():
        raise ValueError(f"There is no file {given}: give the path of one, or leave it out.")
    return Path(given)


def _numbered(num_classes: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    ids = tuple(range(1, num_classes + 1))
    return ids, tuple(f"class {number}" for number in ids)
