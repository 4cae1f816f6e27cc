"""Anchors for YOLOv3 from the boxes of a data set.

    python tools/yolo_anchors.py --data-dir DIR --image-size 416 --number 9
    python tools/yolo_anchors.py --tfds coco/2017 --image-size 416
    python tools/yolo_anchors.py --annotations FILE.json --images DIR --image-size 320 --number 6

Prints them as `YOLOv3Detector(anchors=...)` takes them, and how well they overlap the boxes. The
exit code is 1, after one sentence, where there are none to make.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from keras_densepred.data import CocoDataset, DetectionFiles, TfdsDetection, open_splits
from keras_densepred.data.readers.anchor_shapes import box_shapes, cluster_anchors


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the anchors.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 if there are none.
    """
    options = _parse(argv)
    try:
        shapes = box_shapes(_open(options), options.image_size)
        anchors, overlap = cluster_anchors(shapes, options.number, options.seed)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pairs = ", ".join(f"({width:g}, {height:g})" for width, height in anchors)
    print(f"{len(shapes):,} boxes at {options.image_size} px, mean IoU {overlap:.3f} with anchors:")
    print(f"[{pairs}]")
    return 0


def _open(options: argparse.Namespace) -> Any:
    if options.tfds:
        return TfdsDetection(options.tfds, split="train")
    if options.data_dir:
        return open_splits(DetectionFiles(options.data_dir), only="train")["train"]
    return CocoDataset(options.annotations, options.images)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Clusters the box shapes of a training split into anchors for YOLOv3."
    )
    parser.add_argument("--data-dir", help="folder of detection data in any known layout")
    parser.add_argument("--tfds", help="TensorFlow Datasets name, such as coco/2017")
    parser.add_argument("--annotations", help="a COCO JSON file, with --images")
    parser.add_argument("--images", help="the folder of its images")
    parser.add_argument("--image-size", type=int, default=416, help="side of the network's input")
    parser.add_argument("--number", type=int, default=9, help="of anchors")
    parser.add_argument("--seed", type=int, default=0, help="of the first cluster centres")
    options = parser.parse_args(argv)
    if sum(bool(x) for x in (options.data_dir, options.tfds, options.annotations)) != 1:
        parser.error("give --data-dir, --tfds, or both --annotations and --images")
    if bool(options.annotations) != bool(options.images):
        parser.error("--annotations and --images go together")
    if options.image_size < 1:
        parser.error("--image-size must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
