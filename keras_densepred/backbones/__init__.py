"""Backbones: images to a pyramid of feature maps."""

from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.csp_densenet import CSPDenseNetBackbone, PeleeNetBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone, CSPStage
from keras_densepred.backbones.detection_pyramid import DetectionPyramid
from keras_densepred.backbones.elastic_densenet import ElasticDenseNetBackbone
from keras_densepred.backbones.families import built_in_preset, built_in_presets, load_backbone
from keras_densepred.backbones.feature_pyramid import FeaturePyramid
from keras_densepred.backbones.pyramid_backbone import FeatureInfo, PyramidBackbone
from keras_densepred.backbones.resnet import ResNetBackbone

__all__ = [
    "BiCSNetBackbone",
    "BiCSNetLiteBackbone",
    "CEDNetBackbone",
    "CSPDenseNetBackbone",
    "CSPNetBackbone",
    "CSPStage",
    "DetectionPyramid",
    "ElasticDenseNetBackbone",
    "FeatureInfo",
    "FeaturePyramid",
    "PeleeNetBackbone",
    "PyramidBackbone",
    "ResNetBackbone",
    "built_in_preset",
    "built_in_presets",
    "load_backbone",
]
