"""The two splits that a detection recipe trains and evaluates on, wherever they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_densepred.data.layouts import (
    ROBOFLOW_FILE,
    DetectionLayout,
    explicit_layout,
    find_layout,
)
from keras_densepred.data.readers.coco import CocoDataset, require_same_classes
from keras_densepred.data.readers.hold_out import hold_out
from keras_densepred.data.readers.listing import input_path
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.readers.tfds import TfdsDetection
from keras_densepred.data.records import DatasetError
from keras_densepred.data.shapes.detection import ShapesDataset

TRAIN_SHAPES, VAL_SHAPES = 1600, 200  # built-in images of each split


@dataclasses.dataclass(frozen=True)
class DetectionFiles:
    """Where a user's detection data are: a folder, or files.

    Args:
        data_dir: a folder in any layout of `data.find_layout`, or a YOLO tree's yaml file.
        layout: which layout, where the folder has several.
        val_share: share of the images to hold out, where there is no validation split.
        train_annotations: a COCO file, in place of `data_dir`.
        train_images: the folder of its images.
        val_annotations: the same of the validation split.
        val_images: the folder of its images.
    """

    data_dir: str | os.PathLike[str] | None = None
    layout: str | None = None
    val_share: float | None = None
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is anything but the built-in data."""
        return any(value is not None for value in dataclasses.asdict(self).values())

    def find(self, needs: str = "train") -> DetectionLayout:
        """Finds the splits; reads no annotation yet.

        Args:
            needs: the split without which a folder is refused.

        Raises:
            DatasetError: if what is given does not go together, or nothing is there.
        """
        pairs: dict[str, tuple[str, str] | None] = {}
        for split in ("train", "val"):
            annotations = getattr(self, f"{split}_annotations")
            images = getattr(self, f"{split}_images")
            if (annotations is None) != (images is None):
                raise DatasetError(f"--{split}-annotations and --{split}-images go together.")
            pairs[split] = None
            if annotations is not None:
                pairs[split] = str(input_path(annotations)), str(input_path(images))
        if pairs["val"] is not None and pairs["train"] is None:
            raise DatasetError("--val-annotations goes with --train-annotations.")
        files = explicit_layout(pairs["train"], pairs["val"])
        if files is not None:
            if self.data_dir is not None or self.layout is not None:
                raise DatasetError("Give --data-dir or --train-annotations, not both.")
            return self._checked(files)
        if self.data_dir is None:
            given = "--layout" if self.layout is not None else "--val-share"
            raise DatasetError(f"{given} goes with --data-dir: give the folder of the data.")
        return self._checked(find_layout(self.data_dir, self.layout, needs=needs))

    def _checked(self, layout: DetectionLayout) -> DetectionLayout:
        if self.val_share is not None and "val" in layout.splits:
            raise DatasetError(
                f"{layout.root} has a validation split, in {layout.splits['val'].text}: leave out "
                "--val-share."
            )
        return layout


def open_splits(
    files: DetectionFiles,
    *,
    with_masks: bool = False,
    only: str | None = None,
    known: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> dict[str, ObjectFiles]:
    """Opens the splits of a user's data, training and validation with the same classes.

    Args:
        files: where they are.
        with_masks: whether instance masks are wanted.
        only: `"train"`, `"val"` or `"test"`, if one is enough; None for train and val.
        known: names of classes that are kept though no object has them.
        say: takes what was found, in words.

    Returns:
        The splits by name.

    Raises:
        DatasetError: if a split is not there or not in order.
    """
    say = say or (lambda text: None)
    layout = files.find("test" if only == "test" else "train")
    say(f"Found {layout}")
    if "val" not in layout.splits and files.val_share is None and only in (None, "val"):
        raise DatasetError(
            f"{layout.root} has no validation split (found: {layout.title}, train in "
            f"{layout.splits['train'].text}): add one, or hold out every tenth image with "
            "--val-share 0.1."
        )
    wanted = ("train", "val") if only is None else (only,)
    if files.val_share is not None and "test" not in wanted:
        opened = hold_out_split({"train": layout.splits["train"].open(with_masks)}, files.val_share)
        say(f"Held out for validation: {len(opened['val']):,} images, the same every time")
        opened = {name: opened[name] for name in wanted}
    else:
        missing = [name for name in wanted if name not in layout.splits]
        if missing:
            raise DatasetError(f"{layout.root} has no {missing[0]} split (found: {layout}).")
        opened = {name: layout.splits[name].open(with_masks) for name in wanted}
    return same_classes(opened, known)


def hold_out_split(opened: Mapping[str, ObjectFiles], share: float) -> dict[str, ObjectFiles]:
    """Divides a training split without validation into both; see `hold_out`."""
    whole = opened["train"]
    kept, held = hold_out(whole.file_names, whole.images_path, share)
    return {
        "train": whole.subset(kept, "train"),
        "val": whole.subset(held, "val", with_findings=False),
    }


def same_classes(
    opened: Mapping[str, ObjectFiles], known: Sequence[str] = ()
) -> dict[str, ObjectFiles]:
    """Makes sure that labels mean the same in all splits, Roboflow's parent category left out.

    Raises:
        DatasetError: if they do not.
    """
    opened = dict(opened)
    parent = _unused_parent(list(opened.values()))
    if parent is not None and parent not in known:
        what = "category dropped: the parent of the others, and no object has it"
        for name, split in opened.items():
            opened[name] = split.without_class(0, Finding(1, what, repr(parent)))
    require_same_classes(opened)
    return opened


def _unused_parent(splits: Sequence[ObjectFiles]) -> str | None:
    """The name of the first category where Roboflow's files have it and no object does."""
    for split in splits:
        is_roboflow = os.path.basename(split.source) == ROBOFLOW_FILE
        if not (is_roboflow and isinstance(split, CocoDataset) and split.has_unused_parent):
            return None
    return splits[0].class_names[0] if splits else None


def open_detection(
    data_dir: str | os.PathLike[str] | None = None,
    tfds: str | None = None,
    *,
    shapes_size: int = 96,
    seed: int = 0,
    with_masks: bool = False,
    files: DetectionFiles | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Any, Any]:
    """Opens a training and a validation split.

    Args:
        data_dir: a folder in any layout that `find_layout` knows.
        tfds: name of a TensorFlow Dataset with splits `train` and `validation`.
        shapes_size: with neither, side of the built-in shapes' images in pixels.
        seed: with neither, of the shapes.
        with_masks: whether instance masks are wanted, which TFDS does not have.
        files: more about where the data are, in place of `data_dir`.
        say: takes what was found, in words.

    Returns:
        Training and validation split, with the same classes.

    Raises:
        DatasetError: if both are given, or the data are not there or not in order.
    """
    files = files or DetectionFiles(data_dir)
    if files.is_given and tfds:
        raise DatasetError("Give `data_dir` or `tfds`, not both.")
    if tfds and with_masks:
        raise DatasetError(f"TFDS {tfds} is read without instance masks: give a COCO folder.")
    if tfds:
        return TfdsDetection(tfds, split="train"), TfdsDetection(tfds, split="validation")
    if files.is_given:
        opened = open_splits(files, with_masks=with_masks, say=say)
        return opened["train"], opened["val"]
    return (
        ShapesDataset(TRAIN_SHAPES, shapes_size, seed, "train", with_masks),
        ShapesDataset(VAL_SHAPES, shapes_size, seed, "val", with_masks),
    )
