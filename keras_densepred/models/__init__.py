"""What trains: classifiers, detectors and segmenters, on KerasHub and KerasCV, and their parts.

`RetinaNetKerasCV`, `YOLOV8KerasCV` and `DeepLabV3PlusKerasCV` need KerasCV (and so TensorFlow);
they are imported when first asked for.
"""

import importlib
from typing import Any

from keras_densepred.models.classifier import Classifier
from keras_densepred.models.classifiers.cednet import CEDNetImageClassifier
from keras_densepred.models.classifiers.pooled import (
    BiCSNetImageClassifier,
    CSPNetImageClassifier,
    PooledImageClassifier,
)
from keras_densepred.models.classifiers.registry import (
    classifier_class,
    image_classifier,
    register_classifier,
)
from keras_densepred.models.decoding import NonMaxSuppression, TopDetections
from keras_densepred.models.deeplab.keras_hub import DeepLabV3KerasHub
from keras_densepred.models.deeplab.model import ATROUS_RATES, DeepLabV3
from keras_densepred.models.dense.model import TaskAlignedDetector
from keras_densepred.models.dense.sizes import DENSE_SIZES, DenseSize, dense_detector
from keras_densepred.models.detector import DenseDetector, Detector
from keras_densepred.models.detr.model import DeformableDETR
from keras_densepred.models.detr.transformer import DetectionTransformer
from keras_densepred.models.inference.folding import FoldedDetector, fold_batch_norm
from keras_densepred.models.inference.optimized import optimize
from keras_densepred.models.inference.windows import PAPER_SCALES, multi_scale, sliding_window
from keras_densepred.models.mask2former.model import Mask2Former
from keras_densepred.models.mask2former.segmenter import Mask2FormerSegmenter
from keras_densepred.models.rcnn import (
    CascadeMaskRCNN,
    CascadeRCNN,
    FasterRCNN,
    GridRCNN,
    MaskRCNN,
)
from keras_densepred.models.reppoints.model import RepPoints
from keras_densepred.models.retinanet.head import PredictionHead
from keras_densepred.models.retinanet.keras_hub import RetinaNetKerasHub
from keras_densepred.models.retinanet.losses import BoxGIoULoss, BoxL1Loss, SigmoidFocalLoss
from keras_densepred.models.retinanet.model import RetinaNet
from keras_densepred.models.segmenter import IgnoreCrossentropy, Segmenter
from keras_densepred.models.upernet.model import UPERNET_HEADS, UperNet
from keras_densepred.models.yolo.model import YOLOv3Detector
from keras_densepred.models.yolo.settings import YOLO_ANCHORS, YOLO_LOSSES, YOLOLoss
from keras_densepred.necks.yolo import YOLO_NECKS

__all__ = [
    "ATROUS_RATES",
    "DENSE_SIZES",
    "PAPER_SCALES",
    "UPERNET_HEADS",
    "YOLO_ANCHORS",
    "YOLO_LOSSES",
    "YOLO_NECKS",
    "BiCSNetImageClassifier",
    "BoxGIoULoss",
    "BoxL1Loss",
    "CEDNetImageClassifier",
    "CSPNetImageClassifier",
    "CascadeMaskRCNN",
    "CascadeRCNN",
    "Classifier",
    "DeepLabV3",
    "DeepLabV3KerasHub",
    "DeepLabV3PlusKerasCV",
    "DeformableDETR",
    "DenseDetector",
    "DenseSize",
    "DetectionTransformer",
    "Detector",
    "FasterRCNN",
    "FoldedDetector",
    "GridRCNN",
    "IgnoreCrossentropy",
    "Mask2Former",
    "Mask2FormerSegmenter",
    "MaskRCNN",
    "NonMaxSuppression",
    "PooledImageClassifier",
    "PredictionHead",
    "RepPoints",
    "RetinaNet",
    "RetinaNetKerasCV",
    "RetinaNetKerasHub",
    "Segmenter",
    "SigmoidFocalLoss",
    "TaskAlignedDetector",
    "TopDetections",
    "UperNet",
    "YOLOLoss",
    "YOLOV8KerasCV",
    "YOLOv3Detector",
    "classifier_class",
    "dense_detector",
    "fold_batch_norm",
    "image_classifier",
    "multi_scale",
    "optimize",
    "register_classifier",
    "sliding_window",
]


_KERAS_CV = {
    "DeepLabV3PlusKerasCV": "keras_densepred.models.deeplab.keras_cv",
    "RetinaNetKerasCV": "keras_densepred.models.retinanet.keras_cv",
    "YOLOV8KerasCV": "keras_densepred.models.yolo.keras_cv",
}


def __getattr__(name: str) -> Any:
    if name in _KERAS_CV:
        return getattr(importlib.import_module(_KERAS_CV[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
