"""Readers, augmentation, the built-in shapes data set, and batches from them."""

from keras_densepred.data.augment import (
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
from keras_densepred.data.class_augment import (
    ImageFlip,
    RandomErasing,
    RandomResizedCrop,
    imagenet_augmentation,
)
from keras_densepred.data.class_stream import eval_class_batches, train_class_batches
from keras_densepred.data.classes import ClassSummary, require_same_class_names
from keras_densepred.data.coco import CocoDataset, find_coco_splits, require_same_classes
from keras_densepred.data.eval_passes import EvalBatches, eval_batches
from keras_densepred.data.image_folder import ImageFolder, find_class_folders
from keras_densepred.data.images import ImageError, load_image
from keras_densepred.data.mixing import Mixing
from keras_densepred.data.objects import DatasetError
from keras_densepred.data.rand_augment import RandAugment
from keras_densepred.data.records import IGNORE_LABEL, LabelledImage, Record
from keras_densepred.data.shapes import ShapesDataset
from keras_densepred.data.shapes_classes import ShapesClassification
from keras_densepred.data.summary import DatasetSummary, summarize
from keras_densepred.data.tfds import TfdsClassification, TfdsDetection
from keras_densepred.data.train_stream import BatchStream, train_batches

__all__ = [
    "IGNORE_LABEL",
    "BatchStream",
    "ClassSummary",
    "CocoDataset",
    "CopyPaste",
    "DatasetError",
    "DatasetSummary",
    "DropTinyBoxes",
    "EvalBatches",
    "FixedSizeCrop",
    "ImageError",
    "ImageFlip",
    "ImageFolder",
    "LabelledImage",
    "LargeScaleJitter",
    "MaskCopyPaste",
    "Mixing",
    "PadToSize",
    "RandAugment",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "Record",
    "RectangleCopyPaste",
    "ResizeToFit",
    "ShapesClassification",
    "ShapesDataset",
    "TfdsClassification",
    "TfdsDetection",
    "coco_augmentation",
    "eval_batches",
    "eval_class_batches",
    "find_class_folders",
    "find_coco_splits",
    "imagenet_augmentation",
    "load_image",
    "require_same_class_names",
    "require_same_classes",
    "summarize",
    "train_batches",
    "train_class_batches",
]
