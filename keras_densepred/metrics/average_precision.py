"""COCO average precision: the exact protocol, by faster-coco-eval, over every image of a split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_densepred._optional import require

SUMMARY_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
"""The numbers that `coco_average_precision` gives for all classes together."""

MASK_PREFIX = "mask_"
"""What precedes the names of the same numbers for masks."""

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's sizes of objects: area in pixels, from and up to."""

IouType = Literal["bbox", "segm"]


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: IouType = "bbox",
) -> dict[str, float]:
    """COCO's detection metrics of a whole split.

    Images without detections count, and so do images without objects. Crowd regions are ignored: a
    detection inside one is neither right nor wrong. An object's size is its `area` if it has one,
    else that of its box. Annotation ids play no part: pycocotools counts an object with id 0 as
    missed, this does not.

    Args:
        ground_truth: a COCO dictionary (`images`, `categories`, `annotations`); left as it is.
        detections: COCO results: `image_id`, `category_id`, `score`, and `bbox`
            `[x, y, width, height]` in original pixels or `segmentation` in compressed run lengths.
        iou_type: `"bbox"` or `"segm"`.

    Returns:
        `AP` (IoU 0.50:0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (objects below 32^2, up to 96^2,
        and above, in pixels), `AR100`, and `AP/{class name}` for each class, all in 0..1. A number
        without any object to measure is -1, as in COCO; without any detection the others are 0.

    Raises:
        ValueError: if a detection is of an image or category that the ground truth does not have,
            or its score or box is not finite.
        ImportError: if faster-coco-eval is not installed.
    """
    return CocoScores(ground_truth, detections, iou_type).summary()


class CocoScores:
    """What COCO's evaluation says of a split, see `coco_average_precision`.

    Args:
        ground_truth: a COCO dictionary; left as it is.
        detections: COCO results.
        iou_type: `"bbox"` or `"segm"`.

    Attributes:
        names: of the classes, in the order of their ids, as in all that follows.

    Raises:
        ValueError: see `coco_average_precision`.
        ImportError: if faster-coco-eval is not installed.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        detections: Sequence[Mapping[str, Any]],
        iou_type: IouType = "bbox",
    ) -> None:
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f'`iou_type` must be "bbox" or "segm", and is {iou_type!r}.')
        evaluator = require("faster_coco_eval", "data")
        _check_detections(ground_truth, detections)
        truth = evaluator.COCO(_plain_ground_truth(ground_truth))
        # Copies of everything: the evaluator writes into what it is given.
        found = truth.loadRes([dict(item) for item in detections])
        run = evaluator.COCOeval_faster(truth, found, iou_type, print_function=_silent)
        run.evaluate()
        run.accumulate()
        # precision: (IoU, recall, class, area, detections), recall: (IoU, class, area, detections);
        # area is all, small, medium, large; the last number of detections is 100.
        self._precision = run.eval["precision"][..., -1]
        self._recall = run.eval["recall"][..., -1]
        self._iou = np.round(run.params.iouThrs, 2)
        self._class_ids = [int(category_id) for category_id in run.params.catIds]
        self._ground_truth = ground_truth
        names = {category["id"]: category["name"] for category in ground_truth["categories"]}
        self.names = tuple(str(names[category_id]) for category_id in self._class_ids)

    def summary(self) -> dict[str, float]:
        """What `coco_average_precision` returns."""
        metrics = self._numbers(slice(None))
        precision = self._precision[..., 0]
        each = {f"AP/{name}": _mean(precision[:, :, k]) for k, name in enumerate(self.names)}
        return {key: metrics[key] for key in SUMMARY_KEYS} | each

    def by_class(self) -> dict[str, dict[str, float]]:
        """The numbers of each class, by its name.

        Returns:
            For each `objects`, `objects_small` and so on (`SIZES`; without crowd regions), `AP`,
            `AP50`, `AP75`, `APs`, `APm`, `APl`, and the mean recall over IoU 0.50:0.95 with 100
            detections, `AR100`, `ARs`, `ARm`, `ARl`; -1 where there is nothing to measure.
        """
        areas: dict[int, list[float]] = {category_id: [] for category_id in self._class_ids}
        for item in self._ground_truth["annotations"]:
            if not item.get("iscrowd"):
                area = item.get("area", item["bbox"][2] * item["bbox"][3])
                areas[item["category_id"]].append(area)
        table = {}
        for position, (name, category_id) in enumerate(zip(self.names, areas, strict=True)):
            table[name] = _count(areas[category_id]) | self._numbers([position])
        return table

    def curves(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Precision over recall at IoU 0.5.

        Returns:
            `(101,)` recalls from 0 to 1, and `(101,)` precision of each class that has objects.
        """
        at_half = self._precision[self._iou == 0.5][0][..., 0]
        curves = {name: at_half[:, k] for k, name in enumerate(self.names)}
        seen = {name: curve for name, curve in curves.items() if (curve > -1).any()}
        return np.linspace(0, 1, len(at_half)), seen

    def _numbers(self, classes: Any) -> dict[str, float]:
        precision, recall = self._precision[:, :, classes], self._recall[:, classes]
        return {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[self._iou == 0.5][..., 0]),
            "AP75": _mean(precision[self._iou == 0.75][..., 0]),
            **{f"AP{size[0]}": _mean(precision[..., k]) for k, size in enumerate(SIZES, 1)},
            "AR100": _mean(recall[..., 0]),
            **{f"AR{size[0]}": _mean(recall[..., k]) for k, size in enumerate(SIZES, 1)},
        }


def _count(areas: Sequence[float]) -> dict[str, float]:
    values = np.asarray(areas, np.float64)
    sizes = {size: (values >= low) & (values < high) for size, (low, high) in SIZES.items()}
    return {
        "objects": len(values),
        **{f"objects_{size}": int(inside.sum()) for size, inside in sizes.items()},
    }


def _check_detections(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> None:
    for field, known in (
        ("image_id", {image["id"] for image in ground_truth["images"]}),
        ("category_id", {category["id"] for category in ground_truth["categories"]}),
    ):
        unknown = {item[field] for item in detections} - known
        if unknown:
            raise ValueError(
                f"There are detections with {field} {min(unknown)}, which the ground truth does "
                "not have; evaluate a model on the split that it was run on."
            )
    numbers = ((item["score"], *item.get("bbox", ())) for item in detections)
    if not np.isfinite(np.fromiter(itertools.chain.from_iterable(numbers), np.float64)).all():
        raise ValueError(
            "There are detections with a score or box that is not finite; the network has probably "
            "diverged, look at its training loss."
        )


def _plain_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with everything that the evaluator expects, and annotation ids from 1 on."""
    annotations = []
    for number, item in enumerate(ground_truth["annotations"], start=1):
        plain = {"iscrowd": 0, **item, "id": number}
        if "area" not in plain:
            plain["area"] = item["bbox"][2] * item["bbox"][3]
        annotations.append(plain)
    return {
        "images": [dict(image) for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
        "annotations": annotations,
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _silent(*message: object) -> None:
    del message
