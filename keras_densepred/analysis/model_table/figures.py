"""What the papers print of their models: the rows of the model table.

A preset that no paper reports needs no row: it is counted alone, as a backbone.
"""

import dataclasses
from typing import Any

from keras_densepred.models.dense.sizes import DENSE_SIZES


@dataclasses.dataclass(frozen=True)
class Row:
    """One model as a paper reports it.

    Attributes:
        preset: our preset of its backbone; for a network that is not built, the paper's name.
        head: what is on the backbone.
        image_size: height and width in pixels.
        parameters: the paper's, in millions, as it prints it; None if it does not.
        multiply_adds: the paper's, in units of 1e9, likewise.
        config: arguments of the backbone that differ from the preset's.
        reason: why ours is another number, if it is known.
        conv_only: do not count norms though the family does.
        basis: where the network comes from, if not from the paper's own description: see
            `model_table`.
        trainable: compare all trainable parameters though the family's are Darknet's.
    """

    preset: str
    head: str
    image_size: tuple[int, int]
    parameters: str | None = None
    multiply_adds: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""
    conv_only: bool = False
    basis: str = ""
    trainable: bool = False


_IMAGENET = (224, 224)
_COCO = (800, 1280)
_ADE20K = (512, 2048)
_ONE_MORE_STAGE = {"final_decoder": True}
_DECODER = (
    "The paper's figures hold with the last decoder ({}), which the head, on C5, does not read; "
    "the authors' code drops it."
)
_TRUNCATED = "The paper cuts digits off: the authors' code has 33.57M."

_TABLE_3 = (
    "Table III: with backbone and RPN taken off, the paper leaves the RoI heads 161G (48), 165G "
    "(94) and 206G (140), while Model Garden's cost 182G; no one head fits."
)
_TABLE_5 = (
    "Table V: 41M and 63M exceed any 256-channel ASPP head on these backbones by 15M to 19M, which "
    "48's FLOPs do not show; 94's 82G would need a head three times as costly as 48's."
)
_TABLE_2 = (
    "Tables II and VI contradict each other for 94 and 140: less the head, Table II leaves 7.1G "
    "and 8.9G at 224 px, where Table VI says 6.6G and 8.7G. The fit keeps Table VI."
)
_INAT = (
    "The 8142-class layer adds 1.84M and 0.002G to the ImageNet model's 22.5M and 3.4G, which "
    "makes neither 24.0M nor 3.5G."
)
_LITE = (
    "The paper prints no multipliers for its Lite models: these are SpineNet-mobile's 49XS and 49S."
)

_UNKNOWN = (
    "The paper does not tell this network's layers; ours, in its style, come near its figures."
)
_CONTRADICTION = (
    "0.886 contradicts the paper's own detection rows, which imply 0.836 (ours +1.3 %)."
)
_COUNTER = (
    "In the paper's counter the plain network has 8.77 where its convolutions have 8.53; by that "
    "ours is about 7.16."
)
_ENCODER = (
    "The released configuration has 6 encoder layers; with 8, which the paper's numbers tell "
    "(inferred), ours has {}M and, by its counter, {}G."
)
_BASELINE = "A baseline of the paper, outside of this package."


def _cspnet(preset, size, parameters=None, bflops=None, basis="FIRM", **known) -> Row:
    return Row(preset, "ImageNet", (size, size), parameters, bflops, basis=basis, **known)


def _csp_peleenets() -> tuple[Row, ...]:
    """Table 1's middle rows: by fusion, for gamma 0.75, 0.5, 0.25."""
    rows = []
    for name, bflops, basis in (
        ("csp_peleenet{}", ("0.800", "0.888", "0.986"), "FIRM"),
        ("csp_peleenet_fusion_last{}", ("0.716", "0.804", "0.902"), "FIRM"),
        ("csp_peleenet_fusion_first{}", ("0.649", "0.755", "0.861"), "DECODED"),
    ):
        for gamma, paper in zip((75, 50, 25), bflops, strict=True):
            base = name == "csp_peleenet{}" and gamma == 50
            preset = name.format("" if base else f"_gamma{gamma}")
            rows.append(_cspnet(preset, 224, "2.83" if base else None, paper, basis))
    return tuple(rows)


_MASK_TINY = "The paper cuts digits off: the authors' code has 49.74M."
_FROZEN = {"frozen_stages": 1}  # the MSFM paper counts what trains

_FILE = "The paper counts the numbers in the file, norms and biases included."


def _csp_detectors() -> tuple[Row, ...]:
    """Tables 3 and 4, and figure 8."""
    rows = (
        ("peleenet", "PRN", 416, "3.16", "4.04", "FIRM", _FILE),
        ("peleenet", "PRN-3l", 416, "3.36", "5.03", "FIRM", _FILE),
        ("csp_peleenet", "PRN", 416, None, "3.590", "FIRM", ""),
        ("csp_peleenet", "PRN-3l", 416, None, "4.586", "FIRM", ""),
        ("csp_peleenet", "CEM", 416, None, "4.049", "DECODED", ""),
        ("csp_peleenet", "CEM (SAM)", 416, None, "4.165", "DECODED", ""),
        ("csp_peleenet", "GFM", 416, None, "4.605", "CALIBRATED", ""),
        ("csp_peleenet", "EFM", 416, None, "4.868", "DECODED", ""),
        ("csp_peleenet", "EFM (SAM)", 416, "4.31", "5.068", "DECODED", ""),
        ("csp_peleenet", "EFM (SAM)", 512, "4.31", "7.68", "DECODED", ""),
        ("csp_peleenet", "EFM (SPP)", 416, None, "4.863", "DECODED", ""),
        ("csp_peleenet_ref", "EFM (SAM)", 320, "5.67", "3.43", "CALIBRATED", _UNKNOWN),
        ("csp_densenet_ref", "EFM (SAM)", 320, "5.05", "2.89", "CALIBRATED", _UNKNOWN),
        ("csp_peleenet_ref", "PRN-3l", 320, "4.79", "3.15", "CALIBRATED", _UNKNOWN),
        ("csp_peleenet_ref", "PRN", 320, "4.59", "2.56", "CALIBRATED", _UNKNOWN),
        ("csp_densenet_ref", "PRN", 320, "3.97", "2.01", "CALIBRATED", _UNKNOWN),
        ("csp_densenet_b_ref", "PRN", 320, "1.87", "1.59", "CALIBRATED", _UNKNOWN),
        *(
            ("csp_resnext_50", "PANet-SPP", size, "56.9", bflops, "FIRM", "")
            for size, bflops in ((320, "27.9"), (416, "47.1"), (512, "71.3"), (608, "100.6"))
        ),
        ("yolov3_tiny", "YOLOv3-tiny", 416, None, None, "FIRM", ""),
        ("yolov3_tiny_prn", "PRN", 416, None, None, "FIRM", ""),
    )
    return tuple(
        Row(preset, head, (size, size), parameters, bflops, basis=basis, reason=reason)
        for preset, head, size, parameters, bflops, basis, reason in rows
    )


ROWS = {
    "cednet": (
        Row("cednet_next_tiny", "ImageNet", _IMAGENET, "34", "5.7"),
        Row(
            "cednet_next_small",
            "ImageNet",
            _IMAGENET,
            "55",
            "9.8",
            reason="9.8G is the authors' code with the heads of all four stages (9.81G), 55M no "
            "reading of it: 56.2M with one head, 53.1M without.",
        ),
        Row("cednet_next_base", "ImageNet", _IMAGENET, "95", "16.2"),
        Row(
            "cednet_next_tiny_unet",
            "ImageNet",
            _IMAGENET,
            "34",
            "5.7",
            reason=_DECODER.format("34.08M and 5.71G"),
        ),
        Row(
            "cednet_next_tiny_hourglass",
            "ImageNet",
            _IMAGENET,
            "34",
            "5.7",
            reason=_DECODER.format("34.09M and 5.79G"),
        ),
        Row("cednet_next_tiny", "RetinaNet", _COCO, "39", "255"),
        Row("cednet_next_small", "RetinaNet", _COCO, "61", "335"),
        Row("cednet_next_base", "RetinaNet", _COCO),
        Row("cednet_next_tiny_unet", "RetinaNet", _COCO, "39", "255"),
        Row("cednet_next_tiny_hourglass", "RetinaNet", _COCO, "39", "255"),
        Row("cednet_swin_tiny", "RetinaNet", _COCO, "37"),
        Row("cednet_cswin_tiny", "RetinaNet", _COCO, "33", reason=_TRUNCATED),
        Row("cednet_resnet50", "RetinaNet", _COCO, "39"),
        Row("cednet_next_tiny", "Mask R-CNN", _COCO, "49", "274", reason=_MASK_TINY),
        Row("cednet_next_small", "Mask R-CNN", _COCO, "72", "355"),
        Row("cednet_next_tiny", "Cascade Mask R-CNN", _COCO, "87", "753"),
        Row("cednet_next_small", "Cascade Mask R-CNN", _COCO, "110", "833"),
        Row("cednet_next_tiny", "Deformable DETR", _COCO, "43", "223"),
        Row("cednet_next_small", "Deformable DETR", _COCO, "65", "304"),
        Row("cednet_next_tiny", "UperNet", _ADE20K, "61", "962"),
        Row("cednet_next_small", "UperNet", _ADE20K, "83", "1045"),
        Row("cednet_next_base", "UperNet", _ADE20K, "123", "1184"),
        Row("cednet_next_tiny", "CEDHead", _ADE20K, config=_ONE_MORE_STAGE),
        Row("cednet_next_small", "CEDHead", _ADE20K, config=_ONE_MORE_STAGE),
    ),
    "bicsnet": (
        Row("bicsnet_48s", "RetinaNet", (640, 640), None, "33.6"),
        Row(
            "bicsnet_48",
            "RetinaNet",
            (640, 640),
            "32",
            "84.8",
            reason="22.5M with ImageNet's 1000-class layer (Table VI) makes 28.9M with RetinaNet's "
            "head, not Table IV's 32M.",
        ),
        Row("bicsnet_48l", "RetinaNet", (896, 896), None, "166.3"),
        Row("bicsnet_94", "RetinaNet", (1024, 1024), None, "293.8", reason=_TABLE_2),
        Row("bicsnet_140", "RetinaNet", (1280, 1280), None, "520.1", reason=_TABLE_2),
        Row("bicsnet_48", "ImageNet", _IMAGENET, "22.5", "3.4"),
        Row("bicsnet_94", "ImageNet", _IMAGENET, "41.2", "6.6"),
        Row("bicsnet_140", "ImageNet", _IMAGENET, "57.5", "8.7"),
        Row("bicsnet_48", "iNaturalist", _IMAGENET, "24.0", "3.5", reason=_INAT),
        Row("bicsnet_94", "iNaturalist", _IMAGENET, "43.1", "6.6"),
        Row("bicsnet_140", "iNaturalist", _IMAGENET, "59.3", "8.7"),
        Row("bicsnet_48s", "Mask R-CNN", (640, 640), None, "58.3", reason=_TABLE_3),
        Row("bicsnet_48", "Mask R-CNN", (640, 640), None, "193.9", reason=_TABLE_3),
        Row("bicsnet_94", "Mask R-CNN", (1024, 1024), None, "313.7", reason=_TABLE_3),
        Row("bicsnet_140", "Mask R-CNN", (1280, 1280), None, "506.2", reason=_TABLE_3),
        Row("bicsnet_48", "DeepLabv3", (512, 512), "41", "33", reason=_TABLE_5),
        Row("bicsnet_94", "DeepLabv3", (512, 512), "63", "82", reason=_TABLE_5),
        *(
            Row(
                f"bicsnet_lite{number}",
                "RetinaNet",
                (size, size),
                parameters,
                multiply_adds,
                reason=_LITE if number < 2 else "",
                conv_only=True,
            )
            for number, size, parameters, multiply_adds in (
                (0, 256, "1.11", "0.18"),
                (1, 384, "1.31", "0.53"),
                (2, 384, "2.99", "1.01"),
                (3, 512, "3.69", "2.50"),
            )
        ),
    ),
    "cspnet": (
        _cspnet("peleenet", 224, "2.79", "1.017"),
        _cspnet("peleenext", 224, None, "0.837"),
        _cspnet("sparse_peleenet", 224, "2.39", "0.904"),
        *_csp_peleenets(),
        _cspnet("csp_peleenet_swish", 224, "2.83", "0.888"),
        _cspnet("se_peleenet_swish", 224, "2.81", "1.017", "CALIBRATED"),
        _cspnet("se_csp_peleenet_swish", 224, "2.85", "0.888", "CALIBRATED"),
        _cspnet("csp_peleenet_ref", 224, "4.10", "1.103", "CALIBRATED"),
        _cspnet("csp_peleenet_b_ref", 224, "2.01", "0.897", "CALIBRATED", reason=_UNKNOWN),
        _cspnet("csp_densenet_ref", 224, "3.48", "0.886", "CALIBRATED", reason=_CONTRADICTION),
        _cspnet("csp_densenet_b_ref", 224, "1.38", "0.631", "CALIBRATED", reason=_UNKNOWN),
        _cspnet("csp_resnet_10", 256, "2.73", "1.905", "CALIBRATED", reason=_UNKNOWN),
        _cspnet("csp_resnext_50", 256, "20.50", "7.93"),
        _cspnet("csp_resnet_50", 256, "21.57", "8.97"),
        _cspnet("csp_darknet_53", 256, "27.61", "13.07"),
        _cspnet(
            "densenet_201_elastic",
            224,
            "19.48",
            "8.77",
            "DECODED",
            trainable=True,
            reason=_COUNTER,
        ),
        _cspnet(
            "csp_densenet_201_elastic",
            224,
            "20.17",
            "7.13",
            "CALIBRATED",
            trainable=True,
            reason=_COUNTER,
        ),
        _cspnet("csp_resnext_50_timm", 256, basis=""),
        _cspnet("csp_resnet_50_timm", 256, basis=""),
        _cspnet("csp_darknet_53_timm", 256, basis=""),
        *_csp_detectors(),
        *(Row(row.preset, "backbone", _IMAGENET, trainable=True) for row in DENSE_SIZES.values()),
        *(
            Row(row.preset, f"dense detector, {size}", (640, 640), trainable=True)
            for size, row in DENSE_SIZES.items()
        ),
        _cspnet("ResNet-10", 256, "5.24", "2.273", basis="", reason=_BASELINE),
        _cspnet("ResNeXt-50", 256, "22.19", "10.11", basis="", reason=_BASELINE),
        _cspnet("Darknet Ref", 256, "7.31", "0.96", basis="", reason=_BASELINE),
        _cspnet("EfficientNet-B0", 224, "4.81", "0.915", basis="", reason=_BASELINE),
    ),
    # CEDNet's tables 1 to 3, of which it is the baseline.
    "convnext": (
        Row("convnext_tiny", "RetinaNet", _COCO, "39", "243"),
        Row("convnext_small", "RetinaNet", _COCO, "60", "329"),
        Row("convnext_tiny", "Mask R-CNN", _COCO, "48", "262"),
        Row("convnext_small", "Mask R-CNN", _COCO, "70", "348"),
        Row("convnext_tiny", "Cascade Mask R-CNN", _COCO, "86", "741"),
        Row("convnext_small", "Cascade Mask R-CNN", _COCO, "108", "827"),
        Row("convnext_base", "Cascade Mask R-CNN", _COCO, "146", "964"),
        Row("convnext_tiny", "UperNet", _ADE20K, "60", "939"),
        Row("convnext_small", "UperNet", _ADE20K, "82", "1027"),
        Row("convnext_base", "UperNet", _ADE20K, "122", "1170"),
        Row(
            *("convnext_tiny", "Deformable DETR", _COCO, "42", "231"),
            reason=_ENCODER.format("42.4", "231.2"),
        ),
        Row(
            *("convnext_small", "Deformable DETR", _COCO, "64", "317"),
            reason=_ENCODER.format("64.1", "317.5"),
        ),
    ),
    "resnet": tuple(
        Row(preset, head, (800, 1333), parameters, config=_FROZEN)
        for preset, head, parameters in (
            ("resnet50", "Faster R-CNN", "41.5"),
            ("msfm_resnet50", "Faster R-CNN", "43.9"),
            ("resnet50_dcn", "Faster R-CNN", "42.1"),
            ("msfm_resnet50_dcn", "Faster R-CNN", "44.4"),
            ("resnet50", "RetinaNet", "37.7"),
            ("msfm_resnet50", "RetinaNet", "40.1"),
            ("resnet50", "RepPoints", "36.6"),
            ("msfm_resnet50", "RepPoints", "38.9"),
            ("resnet50", "Cascade R-CNN", "69.2"),
            ("msfm_resnet50", "Cascade R-CNN", "71.5"),
            ("resnet50", "Mask R-CNN", "44.2"),
            ("msfm_resnet50", "Mask R-CNN", "46.5"),
            ("resnet50", "Grid R-CNN", "64.3"),
            ("msfm_resnet50", "Grid R-CNN", "66.7"),
            ("resnet101", "Faster R-CNN", "60.5"),
            ("msfm_resnet101", "Faster R-CNN", "65.8"),
            ("msfm_resnet101", "Cascade R-CNN", "93.4"),
        )
    ),
}
