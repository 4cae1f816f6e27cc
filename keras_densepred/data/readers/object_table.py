"""All objects of a split as arrays: boxes cleaned once, for records and evaluation alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.readers.summary import DatasetSummary, Finding, summarize_arrays

_ROUNDING = 0.01  # Pixels; COCO writes two decimals, so smaller overhangs are not reported.
_LEAST_AREA, _SMALL_BOX = 1.0, 16.0  # square pixels


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectTable:
    """The images and objects of one split, objects sorted by image; made by `build`.

    As arrays COCO's 860,000 training objects take 60 MB, and the table pickles quickly to
    worker processes.

    Args:
        class_names: name of each label.
        category_ids: COCO category id of each label.
        image_ids: `(I,)` int64.
        image_sizes: `(I, 2)` int32, height and width in pixels.
        file_names: one for each image.
        starts: `(I + 1,)` int64; the objects of image `i` are rows `starts[i]:starts[i + 1]`.
        boxes: `(N, 4)` float64, COCO's `[x, y, width, height]` in pixels, inside the image. Kept
            in this form so that a box that needed no clipping is evaluated exactly as written.
        labels: `(N,)` int32.
        crowd: `(N,)` bool.
        areas: `(N,)` float64, COCO's area in square pixels.
        rows: `(N,)` int64, position of each object in the arrays that `build` was given.
        findings: what was dropped or clipped.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    image_sizes: np.ndarray
    file_names: Sequence[str]
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    rows: np.ndarray
    findings: tuple[Finding, ...]

    @classmethod
    def build(
        cls,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_ids: np.ndarray,
        image_sizes: np.ndarray,
        file_names: Sequence[str],
        image_of: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        areas: np.ndarray,
        object_name: Callable[[int], str],
    ) -> ObjectTable:
        """Drops boxes that have no area or lie outside their image, clips those partly outside.

        Args:
            class_names: as in the class.
            category_ids: as in the class.
            image_ids: as in the class.
            image_sizes: as in the class.
            file_names: as in the class.
            image_of: `(N,)` int64, position of the image of each object.
            boxes: `(N, 4)` float64, finite `[x, y, width, height]` in pixels.
            labels: `(N,)` int32.
            crowd: `(N,)` bool.
            areas: `(N,)` float64, NaN where the area of the box is to be used; it also takes the
                place of areas that cannot be (see `_impossible_areas`): COCO's evaluation leaves
                such objects out, and says AP -1 if there are no others.
            object_name: row -> what a finding calls that object: `"annotation id 7"`.

        Returns:
            The table of the objects that are left.
        """
        limits = image_sizes[image_of][:, ::-1].astype(np.float64)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        no_area = (boxes[:, 2:] <= 0).any(axis=1)
        outside = ~no_area & ((low >= limits) | (high <= 0)).any(axis=1)
        overhang = np.maximum(-low, high - limits).max(axis=1, initial=0.0)
        clipped_low, clipped_high = np.clip(low, 0.0, limits), np.clip(high, 0.0, limits)
        # Records hold float32: what has no area there has none for training.
        thin = (clipped_low.astype(np.float32) >= clipped_high.astype(np.float32)).any(axis=1)
        no_area |= thin & ~outside
        keep = ~(no_area | outside)
        clipped = keep & (overhang > 0)
        boxes = boxes.copy()
        boxes[clipped] = np.concatenate([clipped_low, clipped_high - clipped_low], 1)[clipped]

        box_areas = boxes[:, 2] * boxes[:, 3]
        bad_areas = keep & _impossible_areas(areas, box_areas, limits)
        areas = np.where(np.isnan(areas) | bad_areas, box_areas, areas)

        findings = []
        for mask, what in (
            (no_area, "dropped: the box has no area"),
            (outside, "dropped: the box is outside the image"),
            (clipped & (overhang > _ROUNDING), "clipped: the box reached outside the image"),
            (bad_areas, "with an area that cannot be, that of the box is taken"),
        ):
            if mask.any():
                subject = "object" if mask.sum() == 1 else "objects"
                first = int(np.argmax(mask))
                example = f"{object_name(first)} in {file_names[image_of[first]]}"
                findings.append(Finding(int(mask.sum()), f"{subject} {what}", example))

        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(image_of[rows], kind="stable")]
        starts = np.searchsorted(image_of[rows], np.arange(len(image_ids) + 1))
        return cls(
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
            image_ids=image_ids,
            image_sizes=image_sizes,
            file_names=file_names,
            starts=starts,
            boxes=boxes[rows],
            labels=labels[rows].astype(np.int32),
            crowd=crowd[rows],
            areas=areas[rows],
            rows=rows,
            findings=tuple(findings),
        )

    def fields(self, index: int) -> dict[str, Any]:
        """The `Record` fields of one image that need no pixels: `boxes`, `labels`, `crowd`, ids."""
        of_image = self.of_image(index)
        boxes = self.boxes[of_image]
        xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        height, width = self.image_sizes[index]
        # x + width may round above the limit that clipping has subtracted x from.
        xyxy = np.minimum(xyxy, [width, height, width, height])
        return {
            "boxes": xyxy.astype(np.float32),
            "labels": self.labels[of_image],
            "crowd": self.crowd[of_image],
            "image_id": int(self.image_ids[index]),
            "file_name": self.file_names[index],
        }

    def of_image(self, index: int) -> slice:
        """The rows of the objects of image number `index`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def subset(self, indices: Sequence[int]) -> tuple[ObjectTable, np.ndarray]:
        """The table of some of the images.

        Args:
            indices: positions of the images, in the wanted order.

        Returns:
            The table, and the rows of this one that its objects are.
        """
        chosen = np.asarray(indices, np.int64)
        counts = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.starts[:-1][chosen] - starts[:-1], counts) + np.arange(starts[-1])
        table = dataclasses.replace(
            self,
            image_ids=self.image_ids[chosen],
            image_sizes=self.image_sizes[chosen],
            file_names=[self.file_names[index] for index in chosen],
            starts=starts,
            **{key: getattr(self, key)[rows] for key in ("boxes", "labels", "crowd", "areas")},
            rows=self.rows[rows],
        )
        return table, rows

    def without_class(self, label: int) -> ObjectTable:
        """The table without a class that no object has."""
        return dataclasses.replace(
            self,
            class_names=self.class_names[:label] + self.class_names[label + 1 :],
            category_ids=self.category_ids[:label] + self.category_ids[label + 1 :],
            labels=self.labels - (self.labels > label).astype(np.int32),
        )

    def ground_truth(self) -> dict:
        """The split as a COCO dictionary, as evaluation expects it.

        Annotation ids are new, from 1: pycocotools takes id 0 for "no match" and silently loses
        objects that share an id.
        """
        image_of = np.repeat(self.image_ids, np.diff(self.starts)).tolist()
        category_of = np.asarray(self.category_ids, np.int64)[self.labels].tolist()
        columns = (image_of, category_of, self.boxes.tolist(), self.areas.tolist())
        annotations = [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": iscrowd,
            }
            for number, (image_id, category_id, box, area, iscrowd) in enumerate(
                zip(*columns, self.crowd.astype(int).tolist(), strict=True), start=1
            )
        ]
        sizes = zip(
            self.image_ids.tolist(), self.file_names, self.image_sizes.tolist(), strict=True
        )
        return {
            "info": {},
            "images": [
                {"id": image_id, "file_name": file_name, "height": height, "width": width}
                for image_id, file_name, (height, width) in sizes
            ],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": annotations,
        }

    def summary(self, name: str, more: Sequence[Finding] = ()) -> DatasetSummary:
        """Counts the objects; `more` findings are listed behind the table's own."""
        return summarize_arrays(
            name=name,
            class_names=self.class_names,
            images=len(self.image_ids),
            image_of=np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts)),
            sizes=self.boxes[:, 2:],
            areas=self.areas,
            labels=self.labels,
            crowd=self.crowd,
            # Those of unreadable images are shares of one pixel.
            measured=np.repeat((self.image_sizes > 1).any(axis=1), np.diff(self.starts)),
            findings=(*self.findings, *more),
        )


def _impossible_areas(areas: np.ndarray, box_areas: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which areas are none: 0, negative, above the image's, or shares of it in the whole split.

    Args:
        areas: `(N,)` in square pixels, NaN where there is none.
        box_areas: `(N,)`, of the boxes.
        limits: `(N, 2)`, sides of the images.

    Returns:
        `(N,)` bool.
    """
    impossible = (areas <= 0) | (areas > 1.01 * limits.prod(axis=1))
    as_shares = (areas < _LEAST_AREA) & (box_areas >= _SMALL_BOX)
    return impossible | as_shares if as_shares.sum() > len(areas) / 2 else impossible
