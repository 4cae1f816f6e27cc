"""Anchors for a data set: k-means of its box shapes by intersection over union.

"YOLO9000: Better, Faster, Stronger" (Redmon & Farhadi, 2017), section 2, dimension clusters.
"""

from __future__ import annotations

import numpy as np

from keras_densepred.data.records import DetectionDataset

_MOST_ROUNDS = 1000


def box_shapes(dataset: DetectionDataset, image_size: int) -> np.ndarray:
    """Widths and heights of all objects, in pixels of the network's input.

    Args:
        dataset: a detection data set; crowd regions do not count.
        image_size: side in pixels to which the longer side of each image is scaled, as
            `data.eval_batches(image_size=...)` does.

    Returns:
        (N, 2) float64, all above 0.

    Raises:
        ValueError: if there is no object.
    """
    truth = dataset.ground_truth()
    scale = {
        image["id"]: image_size / max(image["height"], image["width"]) for image in truth["images"]
    }
    shapes = [
        np.array(item["bbox"][2:], np.float64) * scale[item["image_id"]]
        for item in truth["annotations"]
        if not item.get("iscrowd", 0) and min(item["bbox"][2:]) > 0
    ]
    if not shapes:
        raise ValueError("The data set has no objects, so there are no shapes to make anchors of.")
    return np.stack(shapes)


def cluster_anchors(
    shapes: np.ndarray, number: int = 9, seed: int = 0
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Anchors that overlap the shapes well.

    k-means with the distance 1 - IoU of boxes around one centre; first centres drawn as k-means++
    draws them, new centres are means.

    Args:
        shapes: (N, 2) widths and heights above 0.
        number: of anchors.
        seed: of the first centres; the same seed gives the same anchors.

    Returns:
        `number` (width, height) in ascending area, in the unit of the shapes, to a tenth; and the
        mean over all shapes of the intersection over union with the best of them.

    Raises:
        ValueError: if there are fewer different shapes than anchors wanted.
    """
    shapes = np.asarray(shapes, np.float64).reshape(-1, 2)
    different = len(np.unique(shapes, axis=0))
    if not 1 <= number <= different:
        raise ValueError(
            f"`number` is {number}; the data set has {different} different box shapes, so give a "
            f"number from 1 to {different}."
        )
    rng = np.random.default_rng(seed)
    centres = _first_centres(shapes, number, rng)
    nearest = np.full(len(shapes), -1)
    for _ in range(_MOST_ROUNDS):
        overlap = _overlap(shapes, centres)
        before, nearest = nearest, overlap.argmax(axis=1)
        if (before == nearest).all():
            break
        for index in range(number):
            members = shapes[nearest == index]
            # A centre without members restarts at the shape with the worst overlap.
            worst = shapes[overlap.max(axis=1).argmin()]
            centres[index] = members.mean(axis=0) if len(members) else worst
    centres = np.maximum(centres.round(1), 0.1)
    centres = centres[np.argsort(centres.prod(axis=1), kind="stable")]
    anchors = tuple((float(width), float(height)) for width, height in centres)
    return anchors, float(_overlap(shapes, centres).max(axis=1).mean())


def _first_centres(shapes: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    centres = shapes[[rng.integers(len(shapes))]]
    while len(centres) < number:
        distance = (1.0 - _overlap(shapes, centres).max(axis=1)).clip(0.0) ** 2
        centres = np.append(
            centres, shapes[[rng.choice(len(shapes), p=distance / distance.sum())]], axis=0
        )
    return centres


def _overlap(shapes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, K) intersection over union around one centre."""
    both = np.minimum(shapes[:, None], centres[None]).prod(axis=-1)
    return both / (shapes.prod(axis=-1)[:, None] + centres.prod(axis=-1)[None] - both)
