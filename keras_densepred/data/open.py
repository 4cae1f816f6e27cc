"""The two splits that a detection recipe trains and evaluates on, wherever they are."""

from typing import Any

from keras_densepred.data.readers.coco import CocoDataset, find_coco_splits, require_same_classes
from keras_densepred.data.readers.tfds import TfdsDetection
from keras_densepred.data.records import DatasetError
from keras_densepred.data.shapes.detection import ShapesDataset

TRAIN_SHAPES, VAL_SHAPES = 1600, 200  # built-in images of each split


def open_detection(
    data_dir: str | None = None,
    tfds: str | None = None,
    *,
    shapes_size: int = 96,
    seed: int = 0,
    with_masks: bool = False,
) -> tuple[Any, Any]:
    """Opens a training and a validation split.

    Args:
        data_dir: a folder in COCO's layout, see `find_coco_splits`.
        tfds: name of a TensorFlow Dataset with splits `train` and `validation`.
        shapes_size: with neither, side of the built-in shapes' images in pixels.
        seed: with neither, of the shapes.
        with_masks: whether instance masks are wanted, which TFDS does not have.

    Returns:
        Training and validation split, with the same classes.

    Raises:
        DatasetError: if both are given, or the data are not there or not in order.
    """
    if data_dir and tfds:
        raise DatasetError("Give `data_dir` or `tfds`, not both.")
    if tfds and with_masks:
        raise DatasetError(f"TFDS {tfds} is read without instance masks: give a COCO folder.")
    if tfds:
        return TfdsDetection(tfds, split="train"), TfdsDetection(tfds, split="validation")
    if data_dir:
        splits = find_coco_splits(data_dir)
        opened = {
            name: CocoDataset(*splits[name], with_masks=with_masks) for name in ("train", "val")
        }
        require_same_classes(opened)
        return opened["train"], opened["val"]
    return (
        ShapesDataset(TRAIN_SHAPES, shapes_size, seed, "train", with_masks),
        ShapesDataset(VAL_SHAPES, shapes_size, seed, "val", with_masks),
    )
