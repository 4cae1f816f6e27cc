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
from keras_densepred.data.coco import CocoDataset, find_coco_splits, require_same_classes
from keras_densepred.data.eval_passes import EvalBatches, eval_batches
from keras_densepred.data.images import ImageError, load_image
from keras_densepred.data.objects import DatasetError
from keras_densepred.data.records import IGNORE_LABEL, Record
from keras_densepred.data.shapes import ShapesDataset
from keras_densepred.data.summary import DatasetSummary, summarize
from keras_densepred.data.tfds import TfdsDetection
from keras_densepred.data.train_stream import BatchStream, train_batches

__all__ = [
    "IGNORE_LABEL",
    "BatchStream",
    "CocoDataset",
    "CopyPaste",
    "DatasetError",
    "DatasetSummary",
    "DropTinyBoxes",
    "EvalBatches",
    "FixedSizeCrop",
    "ImageError",
    "LargeScaleJitter",
    "MaskCopyPaste",
    "PadToSize",
    "RandomFlip",
    "Record",
    "RectangleCopyPaste",
    "ResizeToFit",
    "ShapesDataset",
    "TfdsDetection",
    "coco_augmentation",
    "eval_batches",
    "find_coco_splits",
    "load_image",
    "require_same_classes",
    "summarize",
    "train_batches",
]
