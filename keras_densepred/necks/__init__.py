"""Necks: from a backbone's pyramid to the maps that heads run on."""

from keras_densepred.necks.bifpn import BiFPN
from keras_densepred.necks.fpn import FeaturePyramid
from keras_densepred.necks.group_norm import ProjectedLevels
from keras_densepred.necks.pan import CSPPathAggregation
from keras_densepred.necks.projection import DetectionPyramid
from keras_densepred.necks.yolo import YOLO_NECKS

__all__ = [
    "YOLO_NECKS",
    "BiFPN",
    "CSPPathAggregation",
    "DetectionPyramid",
    "FeaturePyramid",
    "ProjectedLevels",
]
