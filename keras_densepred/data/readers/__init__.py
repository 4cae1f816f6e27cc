"""Readers: files, folders and TensorFlow Datasets to records, and what a data set holds."""

from keras_densepred.data.readers.anchor_shapes import box_shapes, cluster_anchors
from keras_densepred.data.readers.class_folders import (
    ImageFolder,
    find_class_folders,
    find_class_test,
)
from keras_densepred.data.readers.class_summary import ClassSummary, require_same_class_names
from keras_densepred.data.readers.coco import CocoDataset, find_coco_splits, require_same_classes
from keras_densepred.data.readers.known_masks import (
    Ade20kSegmentation,
    CityscapesSegmentation,
    CocoStuffSegmentation,
)
from keras_densepred.data.readers.mask_files import load_mask
from keras_densepred.data.readers.mask_folders import (
    MaskFolder,
    find_segmentation_splits,
    find_segmentation_test,
)
from keras_densepred.data.readers.mask_summary import SegmentationSummary, summarize_masks
from keras_densepred.data.readers.readable import readable_items, require_readable
from keras_densepred.data.readers.summary import DatasetSummary, summarize
from keras_densepred.data.readers.tfds import TfdsClassification, TfdsDetection
from keras_densepred.data.readers.tfds_masks import TfdsSegmentation, find_tfds_segmentation
from keras_densepred.data.readers.trainable import require_trainable_data
from keras_densepred.data.readers.voc import VOC_CLASS_NAMES, SbdSegmentation, VocSegmentation
from keras_densepred.data.readers.voc_boxes import VocDetection
from keras_densepred.data.readers.yolo import YoloDataset

__all__ = [
    "VOC_CLASS_NAMES",
    "Ade20kSegmentation",
    "CityscapesSegmentation",
    "ClassSummary",
    "CocoDataset",
    "CocoStuffSegmentation",
    "DatasetSummary",
    "ImageFolder",
    "MaskFolder",
    "SbdSegmentation",
    "SegmentationSummary",
    "TfdsClassification",
    "TfdsDetection",
    "TfdsSegmentation",
    "VocDetection",
    "VocSegmentation",
    "YoloDataset",
    "box_shapes",
    "cluster_anchors",
    "find_class_folders",
    "find_class_test",
    "find_coco_splits",
    "find_segmentation_splits",
    "find_segmentation_test",
    "find_tfds_segmentation",
    "load_mask",
    "readable_items",
    "require_readable",
    "require_same_class_names",
    "require_same_classes",
    "require_trainable_data",
    "summarize",
    "summarize_masks",
]
