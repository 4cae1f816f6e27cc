"""The families of the papers: what stands on a backbone in a row, and how its paper counts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_densepred.analysis import detr_costs
from keras_densepred.analysis.model_table.figures import ROWS
from keras_densepred.analysis.model_table.two_stage import countable
from keras_densepred.backbones import (
    BiCSNetBackbone,
    BiCSNetLiteBackbone,
    CEDNetBackbone,
    PyramidBackbone,
    backbone_families,
)
from keras_densepred.models import (
    BiCSNetImageClassifier,
    CascadeMaskRCNN,
    CascadeRCNN,
    CEDNetImageClassifier,
    CSPNetImageClassifier,
    DeepLabV3,
    DeformableDETR,
    FasterRCNN,
    GridRCNN,
    MaskRCNN,
    RepPoints,
    RetinaNetKerasHub,
    UperNet,
    YOLOv3Detector,
)
from keras_densepred.models.dense.sizes import DENSE_SIZES, on_backbone
from keras_densepred.necks import DetectionPyramid, FeaturePyramid


@dataclasses.dataclass(frozen=True)
class Family:
    """The backbones of a paper.

    Attributes:
        name: as the paper writes it.
        heads: name of a head in `ROWS` to what puts it on a backbone.
        counts_norms: whether the paper's FLOPs count each normalised element as one, too.
        counts_as_darknet: whether the paper's figures are Darknet's, see `analysis.darknet_costs`.
    """

    name: str
    heads: Mapping[str, Callable[[Any], keras.Model]] = dataclasses.field(default_factory=dict)
    counts_norms: bool = False
    counts_as_darknet: bool = False


def _cednet_imagenet(backbone: CEDNetBackbone) -> keras.Model:
    model = CEDNetImageClassifier(backbone, num_classes=1000)
    return keras.Model(model.input, model.outputs[-1])  # the head that predicts


def _cednet_retinanet(backbone: CEDNetBackbone) -> keras.Model:
    return RetinaNetKerasHub(DetectionPyramid(backbone), num_classes=80)


def _upernet(backbone: PyramidBackbone) -> keras.Model:
    return UperNet(backbone, num_classes=150)


def _bicsnet_retinanet(backbone: BiCSNetBackbone | BiCSNetLiteBackbone) -> keras.Model:
    separable = isinstance(backbone, BiCSNetLiteBackbone)
    return RetinaNetKerasHub(backbone, num_classes=91, head_norm=True, head_separable=separable)


def _cednet_two_stage(detector: type, **options: Any) -> Callable[[Any], keras.Model]:
    def build(backbone: CEDNetBackbone) -> keras.Model:
        pyramid = DetectionPyramid(backbone, min_level=2, max_level=6)
        return countable(detector(pyramid, num_classes=80, **options))

    return build


def _resnet_two_stage(detector: type, **options: Any) -> Callable[[Any], keras.Model]:
    return lambda backbone: countable(detector(backbone, num_classes=80, **options))


def _cednet_detr(backbone: CEDNetBackbone) -> keras.Model:
    pyramid = DetectionPyramid(backbone, max_level=6)
    return detr_costs.countable(DeformableDETR(pyramid, num_classes=80))


def _fpn_retinanet(backbone: PyramidBackbone) -> keras.Model:
    pyramid = FeaturePyramid(backbone, 256, 3, 7, extra_levels="conv_on_c5")
    return RetinaNetKerasHub(pyramid, num_classes=80)


def _bicsnet_mask(backbone: BiCSNetBackbone) -> keras.Model:
    units = 1024 if backbone.output_width == 256 else 512
    return countable(
        MaskRCNN(
            backbone, num_classes=91, head_convs=4, head_fcs=1, head_norm=True, head_width=units
        )
    )


_NECKS = {
    "YOLOv3-tiny": "tiny",
    "PRN": "prn",
    "PRN-3l": "prn_3l",
    "CEM": "cem",
    "CEM (SAM)": "cem_sam",
    "GFM": "gfm",
    "EFM": "efm",
    "EFM (SAM)": "efm_sam",
    "EFM (SPP)": "efm_spp",
    "PANet-SPP": "panet_spp",
}


def _yolo(neck: str) -> Callable[[Any], keras.Model]:
    return lambda backbone: YOLOv3Detector(backbone, num_classes=80, neck=neck)


def _dense(size: str) -> Callable[[Any], keras.Model]:
    return lambda backbone: on_backbone(DENSE_SIZES[size], backbone, num_classes=80)


_CASCADE_MASK: dict[str, Any] = {
    "head_convs": 4,
    "head_fcs": 1,
    "head_norm": True,
    "class_agnostic": False,
    "box_loss": "giou",
}
FAMILIES = {
    "cednet": Family(
        "CEDNet",
        {
            "ImageNet": _cednet_imagenet,
            "RetinaNet": _cednet_retinanet,
            "Mask R-CNN": _cednet_two_stage(MaskRCNN),
            "Cascade Mask R-CNN": _cednet_two_stage(CascadeMaskRCNN, **_CASCADE_MASK),
            "Deformable DETR": _cednet_detr,
            "UperNet": _upernet,
            "CEDHead": lambda backbone: UperNet(backbone, num_classes=150, head="ced"),
        },
    ),
    "bicsnet": Family(
        "BiCSNet",
        {
            "RetinaNet": _bicsnet_retinanet,
            "ImageNet": lambda backbone: BiCSNetImageClassifier(backbone, num_classes=1000),
            "iNaturalist": lambda backbone: BiCSNetImageClassifier(backbone, num_classes=8142),
            "Mask R-CNN": _bicsnet_mask,
            "DeepLabv3": lambda backbone: DeepLabV3(backbone, num_classes=21),
        },
        counts_norms=True,
    ),
    "cspnet": Family(
        "CSPNet",
        {
            "ImageNet": lambda backbone: CSPNetImageClassifier(backbone, num_classes=1000),
            **{name: _yolo(neck) for name, neck in _NECKS.items()},
            **{f"dense detector, {size}": _dense(size) for size in DENSE_SIZES},
        },
        counts_as_darknet=True,
    ),
    "convnext": Family(
        "ConvNeXt with FPN",
        {
            "RetinaNet": _fpn_retinanet,
            "Mask R-CNN": _resnet_two_stage(MaskRCNN),
            "Cascade Mask R-CNN": _resnet_two_stage(CascadeMaskRCNN, **_CASCADE_MASK),
            "Deformable DETR": lambda backbone: detr_costs.countable(DeformableDETR(backbone, 80)),
            "UperNet": _upernet,
        },
    ),
    "resnet": Family(
        "ResNet with MSFM",
        {
            "RetinaNet": _fpn_retinanet,
            "RepPoints": lambda backbone: RepPoints(backbone, num_classes=80),
            "Faster R-CNN": _resnet_two_stage(FasterRCNN),
            "Cascade R-CNN": _resnet_two_stage(CascadeRCNN),
            "Mask R-CNN": _resnet_two_stage(MaskRCNN),
            "Grid R-CNN": _resnet_two_stage(GridRCNN),
        },
    ),
}


def registered_backbones() -> dict[str, list[type[PyramidBackbone]]]:
    """The registered classes with presets, by the key of their family.

    A class belongs to the paper whose rows have one of its presets; one that is in no paper is a
    family by itself, under its own name.
    """
    groups: dict[str, list[type[PyramidBackbone]]] = {key: [] for key in FAMILIES}
    for backbone_class in backbone_families():
        presets = backbone_class.architecture_presets().keys()
        if presets:
            keys = (key for key, rows in ROWS.items() if presets & {row.preset for row in rows})
            groups.setdefault(next(keys, backbone_class.__name__), []).append(backbone_class)
    return groups
