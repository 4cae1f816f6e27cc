"""Backbones: images to a pyramid of feature maps."""

from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.detection_pyramid import DetectionPyramid
from keras_densepred.backbones.families import built_in_preset, built_in_presets, load_backbone
from keras_densepred.backbones.feature_pyramid import FeaturePyramid
from keras_densepred.backbones.pyramid_backbone import FeatureInfo, PyramidBackbone
from keras_densepred.backbones.resnet import ResNetBackbone

__all__ = [
    "BiCSNetBackbone",
    "BiCSNetLiteBackbone",
    "CEDNetBackbone",
    "DetectionPyramid",
    "FeatureInfo",
    "FeaturePyramid",
    "PyramidBackbone",
    "ResNetBackbone",
    "built_in_preset",
    "built_in_presets",
    "load_backbone",
]
