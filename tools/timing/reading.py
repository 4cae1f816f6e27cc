"""Time and memory to open a large tree of detection data, beside the least that can be done."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_densepred import data

IMAGES, BOXES = 118_000, 860_000  # COCO's train2017
CLASSES = 80
HEIGHT, WIDTH = 48, 64


def measure_reading(
    images: int = IMAGES, boxes: int = BOXES, points: int = 0, rounds: int = 3
) -> Iterator[dict[str, Any]]:
    """Makes a COCO and a YOLO tree of the same objects, opens each by turns, deletes them.

    "least" is `json.load` of the COCO file with `os.scandir` of its images. Every opening is in a
    process of its own, forked from this one.

    Args:
        images: number of images, small JPEG files.
        boxes: number of boxes.
        points: of the polygon that each has too; 0 for none.
        rounds: openings of each kind; the median time and the largest memory count.

    Yields:
        Candidate, its seconds and mebibytes, and both as multiples of the least.
    """
    with tempfile.TemporaryDirectory(prefix="reading") as folder:
        root = Path(folder)
        _write_trees(root, images, boxes, points)
        candidates: dict[str, Callable[[Path], Any]] = {
            "least": _least,
            "coco": lambda root: _open(root / "coco"),
            "yolo": lambda root: _open(root / "yolo"),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, candidate in candidates.items():
                found[name].append(_in_a_process(candidate, root))
    least: tuple[float, float] | None = None
    for name, runs in found.items():
        seconds = float(np.median([run[0] for run in runs]))
        memory = max(run[1] for run in runs)
        least = least or (seconds, memory)
        yield {
            "candidate": name,
            "images": images,
            "boxes": boxes,
            "points": points,
            "seconds": seconds,
            "peak_memory_mib": memory,
            "time_over_least": seconds / least[0],
            "memory_over_least": memory / least[1],
        }


def _least(root: Path) -> Any:
    with (root / "coco/annotations/instances_train.json").open(encoding="utf-8") as file:
        content = json.load(file)
    with os.scandir(root / "coco/images/train") as entries:
        names = [entry.name for entry in entries]
    return content, names


def _open(root: Path) -> Any:
    return data.open_splits(data.DetectionFiles(root), only="train")


def _in_a_process(candidate: Callable[[Path], Any], root: Path) -> tuple[float, float]:
    """Seconds, and mebibytes that the peak lies above the beginning."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        # The kernel's high-water mark counts from what the parent held when it forked.
        before = _resident()
        start = time.perf_counter()
        result = candidate(root)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        theirs.send((seconds, peak - before))
        del result
        theirs.close()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    measured = ours.recv()
    process.join()
    return measured


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _write_trees(root: Path, images: int, boxes: int, points: int) -> None:
    """The same pictures, by hard links, and objects as COCO and as YOLO."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    noise = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG", quality=30)
    places = [root / place for place in ("coco/images/train", "yolo/images/train")]
    labels = root / "yolo/labels/train"
    for folder in (*places, labels, root / "coco/annotations"):
        folder.mkdir(parents=True)
    image_of = np.sort(rng.integers(0, images, boxes))
    starts = np.searchsorted(image_of, np.arange(images + 1))
    corners = rng.uniform(0, 0.5, (boxes, 2)).round(6)
    sides = rng.uniform(0.05, 0.5, (boxes, 2)).round(6)
    classes = rng.integers(0, CLASSES, boxes)
    frame = np.array([WIDTH, HEIGHT])
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    entries, annotations = [], []
    for number in range(images):
        name = f"{number:012d}.jpg"
        (places[0] / name).write_bytes(buffer.getvalue())
        os.link(places[0] / name, places[1] / name)
        entries.append({"id": number + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        lines = []
        for row in range(starts[number], starts[number + 1]):
            (x, y), (w, h) = corners[row], sides[row]
            numbers = [x + w / 2, y + h / 2, w, h]
            low, extent = (corners[row] * frame).round(2), (sides[row] * frame).round(2)
            annotation = {
                "id": row + 1,
                "image_id": number + 1,
                "category_id": int(classes[row]) + 1,
                "bbox": [*low.tolist(), *extent.tolist()],
                "area": float(extent.prod().round(2)),
                "iscrowd": 0,
            }
            if points:
                numbers = (corners[row] + circle * sides[row]).ravel().tolist()
                outline = (low + circle * extent).ravel().round(2)
                annotation["segmentation"] = [outline.tolist()]
            annotations.append(annotation)
            lines.append(f"{classes[row]} {' '.join(f'{v:.6f}' for v in numbers)}\n")
        (labels / f"{number:012d}.txt").write_text("".join(lines))
    categories = [{"id": label + 1, "name": f"class {label}"} for label in range(CLASSES)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "coco/annotations/instances_train.json").write_text(json.dumps(content))
    names = ", ".join(category["name"] for category in categories)
    text = f"names: [{names}]\ntrain: images/train\nval: images/train\n"
    (root / "yolo/data.yaml").write_text(text)
