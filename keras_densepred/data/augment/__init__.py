"""Augmentation: the published recipes, and a user's own.

What a transform is says `Transform`; `coco_augmentation`, `detr_augmentation`, `yolo_augmentation`,
`segmentation_augmentation`, `scene_parsing_augmentation` and `imagenet_augmentation` return the
lists that the recipes use.

Own augmentation, without touching a recipe: a module with a function that gets the size of the
training images and the recipe's own list, and returns the list to use. Nothing is added to what it
returns: the function decides what of the recipe's list stays, and where its own steps go.

    # my_augmentation.py
    import numpy as np

    def darker(record, rng):                      # a plain function is a transform
        factor = rng.uniform(0.5, 1.0)            # randomness from `rng` alone
        image = (record.image * factor).astype(np.uint8)
        return record.replace(image=image)        # never write into a record

    def augmentation(image_size, default):
        return [darker, *default]                 # before the recipe's own; [darker] replaces them

It is used with `--augment my_augmentation:augmentation`, or in a script:

    augment = data.load_augmentation("my_augmentation:augmentation")
    default = data.coco_augmentation(640)
    data.train_batches(dataset, image_size=640, augment=augment(640, default), ...)

In detection and segmentation transforms map a `data.Record`, in classification an image `(H, W, 3)`
uint8. Images may come out smaller than `image_size` but not larger (classification: exactly
`image_size`), so what enlarges belongs before the crop or resize that the list has. With
worker processes the transforms are pickled: define them in the module, not inside of a function.
"""

from keras_densepred.data.augment.classification import (
    ImageFlip,
    RandomErasing,
    RandomResizedCrop,
    evaluation_crop,
    imagenet_augmentation,
)
from keras_densepred.data.augment.copy_paste import CopyPaste, MaskCopyPaste, RectangleCopyPaste
from keras_densepred.data.augment.darknet import (
    JitterColors,
    JitterWindow,
    Mosaic,
    RandomSizes,
    resize_images,
    yolo_augmentation,
)
from keras_densepred.data.augment.detr import (
    Alternatives,
    RandomSizeCrop,
    ResizeShortSide,
    detr_augmentation,
)
from keras_densepred.data.augment.hook import load_augmentation
from keras_densepred.data.augment.mixing import Mixing
from keras_densepred.data.augment.objects import (
    DropTinyBoxes,
    FixedSizeCrop,
    LargeScaleJitter,
    PadToSize,
    RandomFlip,
    ResizeToFit,
    coco_augmentation,
)
from keras_densepred.data.augment.rand_augment import RandAugment
from keras_densepred.data.augment.scene_parsing import (
    OrderedDistortion,
    RandomLimitedResize,
    VariedCrop,
    scene_parsing_augmentation,
)
from keras_densepred.data.augment.semantic import (
    PhotometricDistortion,
    RandomScaleCrop,
    segmentation_augmentation,
)
from keras_densepred.data.augment.transform import Combine, Transform

__all__ = [
    "Alternatives",
    "Combine",
    "CopyPaste",
    "DropTinyBoxes",
    "FixedSizeCrop",
    "ImageFlip",
    "JitterColors",
    "JitterWindow",
    "LargeScaleJitter",
    "MaskCopyPaste",
    "Mixing",
    "Mosaic",
    "OrderedDistortion",
    "PadToSize",
    "PhotometricDistortion",
    "RandAugment",
    "RandomErasing",
    "RandomFlip",
    "RandomLimitedResize",
    "RandomResizedCrop",
    "RandomScaleCrop",
    "RandomSizeCrop",
    "RandomSizes",
    "RectangleCopyPaste",
    "ResizeShortSide",
    "ResizeToFit",
    "Transform",
    "VariedCrop",
    "coco_augmentation",
    "detr_augmentation",
    "evaluation_crop",
    "imagenet_augmentation",
    "load_augmentation",
    "resize_images",
    "scene_parsing_augmentation",
    "segmentation_augmentation",
    "yolo_augmentation",
]
