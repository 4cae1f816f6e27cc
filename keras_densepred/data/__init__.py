"""Readers, augmentation, the built-in shapes data set, and batches from them."""

from keras_densepred.data.anchor_shapes import box_shapes, cluster_anchors
from keras_densepred.data.augment.classification import (
    ImageFlip,
    RandomErasing,
    RandomResizedCrop,
    evaluation_crop,
    imagenet_augmentation,
)
from keras_densepred.data.augment.darknet import (
    JitterColors,
    JitterWindow,
    Mosaic,
    RandomSizes,
    resize_images,
    yolo_augmentation,
)
from keras_densepred.data.augment.mixing import Mixing
from keras_densepred.data.augment.objects import (
    Combine,
    CopyPaste,
    DropTinyBoxes,
    FixedSizeCrop,
    LargeScaleJitter,
    MaskCopyPaste,
    PadToSize,
    RandomFlip,
    RectangleCopyPaste,
    ResizeToFit,
    coco_augmentation,
)
from keras_densepred.data.augment.rand_augment import RandAugment
from keras_densepred.data.augment.semantic import (
    PhotometricDistortion,
    RandomScaleCrop,
    segmentation_augmentation,
)
from keras_densepred.data.batches.classification import eval_class_batches, train_class_batches
from keras_densepred.data.batches.evaluation import EvalBatches, eval_batches
from keras_densepred.data.batches.semantic import eval_mask_batches, train_mask_batches
from keras_densepred.data.batches.stream import BatchStream, train_batches
from keras_densepred.data.image_files import ImageError, load_image
from keras_densepred.data.readers.class_folders import ImageFolder, find_class_folders
from keras_densepred.data.readers.classes import ClassSummary, require_same_class_names
from keras_densepred.data.readers.coco import CocoDataset, find_coco_splits, require_same_classes
from keras_densepred.data.readers.mask_files import load_mask
from keras_densepred.data.readers.mask_folders import MaskFolder, find_segmentation_splits
from keras_densepred.data.readers.mask_summary import SegmentationSummary, summarize_masks
from keras_densepred.data.readers.objects import DatasetError
from keras_densepred.data.readers.open import open_detection
from keras_densepred.data.readers.summary import DatasetSummary, summarize
from keras_densepred.data.readers.tfds import TfdsClassification, TfdsDetection
from keras_densepred.data.readers.tfds_masks import TfdsSegmentation, find_tfds_segmentation
from keras_densepred.data.readers.voc import VOC_CLASS_NAMES, SbdSegmentation, VocSegmentation
from keras_densepred.data.records import IGNORE_LABEL, LabelledImage, Record
from keras_densepred.data.shapes.classification import ShapesClassification
from keras_densepred.data.shapes.detection import ShapesDataset
from keras_densepred.data.shapes.semantic import ShapesSegmentation

__all__ = [
    "IGNORE_LABEL",
    "VOC_CLASS_NAMES",
    "BatchStream",
    "ClassSummary",
    "CocoDataset",
    "Combine",
    "CopyPaste",
    "DatasetError",
    "DatasetSummary",
    "DropTinyBoxes",
    "EvalBatches",
    "FixedSizeCrop",
    "ImageError",
    "ImageFlip",
    "ImageFolder",
    "JitterColors",
    "JitterWindow",
    "LabelledImage",
    "LargeScaleJitter",
    "MaskCopyPaste",
    "MaskFolder",
    "Mixing",
    "Mosaic",
    "PadToSize",
    "PhotometricDistortion",
    "RandAugment",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "RandomScaleCrop",
    "RandomSizes",
    "Record",
    "RectangleCopyPaste",
    "ResizeToFit",
    "SbdSegmentation",
    "SegmentationSummary",
    "ShapesClassification",
    "ShapesDataset",
    "ShapesSegmentation",
    "TfdsClassification",
    "TfdsDetection",
    "TfdsSegmentation",
    "VocSegmentation",
    "box_shapes",
    "cluster_anchors",
    "coco_augmentation",
    "eval_batches",
    "eval_class_batches",
    "eval_mask_batches",
    "evaluation_crop",
    "find_class_folders",
    "find_coco_splits",
    "find_segmentation_splits",
    "find_tfds_segmentation",
    "imagenet_augmentation",
    "load_image",
    "load_mask",
    "open_detection",
    "require_same_class_names",
    "require_same_classes",
    "resize_images",
    "segmentation_augmentation",
    "summarize",
    "summarize_masks",
    "train_batches",
    "train_class_batches",
    "train_mask_batches",
    "yolo_augmentation",
]
