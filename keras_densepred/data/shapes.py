"""The built-in data set: generated pictures of shapes to detect and segment, no files needed.

Six classes of textured shapes lie, turned, stretched, overlapping and partly outside, on a
textured ground between things that are no class: blobs, scribbles and writing. Every recipe runs
on it when it is given no data, so it has to be a task, and one that a small network learns on a
laptop from random weights in minutes. That is why each class has a hue, as things have; it is a
hint and no more, for what is no class comes in all hues, and so do some of the objects.
"""

from __future__ import annotations

import functools
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment import mask_boxes
from keras_densepred.data.records import Record

if TYPE_CHECKING:
    from keras_densepred.data.summary import DatasetSummary

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
MAX_OBJECTS = 8  # in one picture
_SPLITS = ("train", "val")

# Diameters as a share of the shorter image side: 19 to 96 pixels at 128. Smaller ones would fall
# through RetinaNet's anchors, whose smallest is 32 pixels.
_DIAMETER = (0.15, 0.75)
_MIN_DIAMETER_PIXELS = 8.0
# An object is never hidden further than this share of what the frame shows of it.
_MIN_VISIBLE = 0.6
_EMPTY_PICTURES = 0.03
_HUE_SPREAD = 0.3  # of a class to either side, as a share of the distance to the next class
_ODD_HUES = 0.05  # share of objects that have any hue
_CIRCLE = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
_SUBPIXEL_BITS = 4  # of OpenCV's fixed-point coordinates


class ShapesDataset:
    """Generated pictures of six kinds of shapes, with boxes and on request masks and labels.

    Picture `i` depends on `(seed, split, i)` and the image size only, so that the data set can be
    indexed from any process in any order. Boxes and masks are of what is visible, as in COCO.

    Args:
        num_images: how many pictures, at least 1.
        image_size: `(H, W)` in pixels or one number for both, at least 32.
        seed: not negative; other seeds give other pictures.
        split: `"train"` or `"val"`; the splits of one seed share no picture.
        with_masks: whether records have `masks` (and `ground_truth` has `segmentation`).
        with_semantic: whether records have `semantic`: 0 for the ground, `label + 1` for shapes.

    Raises:
        ValueError: if an argument is outside of what is said above.
        ImportError: if OpenCV is not installed.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    category_ids: tuple[int, ...] = tuple(range(1, len(CLASS_NAMES) + 1))
    max_objects: int = MAX_OBJECTS

    def __init__(
        self,
        num_images: int,
        image_size: int | tuple[int, int] = 128,
        seed: int = 0,
        split: Literal["train", "val"] = "train",
        with_masks: bool = False,
        with_semantic: bool = False,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if num_images < 1:
            raise ValueError(f"`num_images` must be at least 1, and is {num_images}.")
        if min(height, width) < 32:
            raise ValueError(f"`image_size` must be at least 32 pixels, and is {height}x{width}.")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, and is {seed}.")
        if split not in _SPLITS:
            raise ValueError(f'`split` must be "train" or "val", and is {split!r}.')
        require("cv2", "data")
        self.num_images = num_images
        self.image_size = (height, width)
        self.seed = seed
        self.split = split
        self.with_masks = with_masks
        self.with_semantic = with_semantic

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_images:
            raise IndexError(f"Index {index} is outside of 0..{self.num_images - 1}.")
        entropy = np.random.SeedSequence((self.seed, _SPLITS.index(self.split), index))
        rng = np.random.Generator(np.random.PCG64(entropy))
        image, owner, labels = _draw_picture(rng, *self.image_size)
        masks = owner[None] == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]
        seen = masks.any(axis=(1, 2))
        labels, masks = labels[seen], masks[seen]
        semantic = None
        if self.with_semantic:
            semantic = np.zeros(self.image_size, np.uint8)
            for label, mask in zip(labels, masks, strict=True):
                semantic[mask] = label + 1
        return Record(
            image=image,
            boxes=mask_boxes(masks),
            labels=labels,
            crowd=np.zeros(len(labels), bool),
            image_id=index + 1,
            file_name=f"{self.split}_{index:06d}.jpg",
            masks=masks if self.with_masks else None,
            semantic=semantic,
        )

    @property
    def image_ids(self) -> tuple[int, ...]:
        """`index + 1` for each picture."""
        return tuple(range(1, self.num_images + 1))

    def ground_truth(self) -> dict:
        """The whole split as a COCO dictionary, in pixels of the pictures.

        Returns:
            `{"images", "categories", "annotations"}`; with `with_masks` the annotations have their
            mask as compressed run lengths. `area` is the number of visible pixels. The pictures
            are drawn for it once, some milliseconds each.
        """
        return self._ground_truth

    def summary(self) -> DatasetSummary:
        """What the data set holds: objects per class and box sizes, among others."""
        from keras_densepred.data.summary import summarize

        return summarize(self.ground_truth(), f"shapes, {self.split}")

    def write_coco(self, directory: str | PathLike[str]) -> None:
        """Writes `images/{split}/*.jpg` and `annotations/instances_{split}.json`.

        Args:
            directory: made if it is not there. Splits may share one directory.
        """
        from keras_densepred.data.shapes_export import write_coco

        write_coco(self, directory)

    def write_voc(self, directory: str | PathLike[str]) -> None:
        """Writes a Pascal VOC tree: boxes, classes and objects as palette images, split lists.

        Args:
            directory: becomes the `VOC2012`-like root. Splits may share one directory.
        """
        from keras_densepred.data.shapes_export import write_voc

        write_voc(self, directory)

    @functools.cached_property
    def _ground_truth(self) -> dict:
        from keras_densepred.data.shapes_export import coco_ground_truth

        return coco_ground_truth(self)


def _draw_picture(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one picture.

    Returns:
        The image `(H, W, 3)` uint8; the owner of each pixel `(H, W)` uint8, 0 for none and `k + 1`
        for object `k`; the labels `(N,)` int32 of the objects.
    """
    cv2 = require("cv2", "data")
    unit = min(height, width)
    ground_color = rng.uniform(50, 190) + rng.uniform(-25, 25, 3)
    canvas = _texture(rng, height, width, ground_color, rng.uniform(5, 35), unit)
    owner = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(0, 4)):
        _add_distractor(rng, canvas, unit)

    count = 0 if rng.random() < _EMPTY_PICTURES else int(rng.integers(1, MAX_OBJECTS + 1))
    labels: list[int] = []
    # Pixels of each object, of the ground first: if nothing lay over it, and left to see.
    whole, visible = np.zeros(1, int), np.zeros(1, int)
    for _ in range(count):
        label = int(rng.integers(len(CLASS_NAMES)))
        for _ in range(6):  # places to try before going without this object
            outline = _place(rng, _class_outline(rng, label), height, width)
            window, cover = _rasterize(outline, height, width)
            solid = cover >= 128
            hidden = np.bincount(owner[window][solid], minlength=len(visible))
            if hidden.any() and np.all((visible - hidden >= _MIN_VISIBLE * whole)[1:]):
                break
        else:
            continue
        _paint(rng, canvas[window], cover, unit, label)
        owner[window][solid] = len(labels) + 1
        labels.append(label)
        whole = np.append(whole, hidden.sum())
        visible = np.append(visible - hidden, hidden.sum())

    if rng.random() < 0.25:  # something thin in front, which the masks leave out
        window, cover = _scribble(rng, height, width, thickness=max(1, unit // 100))
        _paint(rng, canvas[window], cover, unit)
        owner[window][cover >= 128] = 0

    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    gain, noise = rng.uniform(0.6, 1.1), rng.uniform(0.02, 0.1)
    offset = 128 - 128 * gain - 127.5 * noise + rng.uniform(-25, 25)
    grain = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    image = cv2.addWeighted(canvas, gain, grain, noise, offset, dtype=cv2.CV_8U)
    return image, owner, np.asarray(labels, np.int32)


def _texture(
    rng: np.random.Generator,
    height: int,
    width: int,
    color: np.ndarray,
    contrast: float,
    unit: int,
) -> np.ndarray:
    """A pattern `(height, width, 3)` float32 that varies by `contrast` around `color`, 0..255."""
    cv2 = require("cv2", "data")
    angle = rng.uniform(0, 2 * np.pi)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    along = np.cos(angle, dtype=np.float32) * x + np.sin(angle, dtype=np.float32) * y
    across = np.cos(angle, dtype=np.float32) * y - np.sin(angle, dtype=np.float32) * x
    frequency = np.float32(2 * np.pi / (unit * rng.uniform(0.04, 0.16)))
    kind = rng.integers(6)
    if kind == 0:
        pattern = np.zeros((height, width), np.float32)
    elif kind == 1:  # gradient
        pattern = along / np.float32(max(height, width))
    elif kind == 2:  # stripes, hard or soft
        pattern = np.sin(frequency * along)
        pattern = np.sign(pattern) if rng.random() < 0.5 else pattern
    elif kind == 3:  # checks
        pattern = np.sign(np.sin(frequency * along) * np.sin(frequency * across))
    elif kind == 4:  # dots
        wave = np.sin(frequency * along) * np.sin(frequency * across)
        pattern = np.where(wave > 0.4, np.float32(1), np.float32(-0.3))
    else:  # clouds
        rows, columns = (int(n) for n in rng.integers(3, 9, 2))
        coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    direction = rng.uniform(0.3, 1.0, 3) * np.where(rng.random(3) < 0.2, -1, 1)
    # By channel: NumPy broadcasts slowly along an axis of three.
    tint = (direction * contrast).tolist()
    return cv2.merge([pattern * a + b for a, b in zip(tint, color.tolist(), strict=True)])


def _class_outline(rng: np.random.Generator, label: int) -> list[np.ndarray]:
    """The polygons of a class inside of the unit circle; a second one is a hole."""
    name = CLASS_NAMES[label]
    if name == "circle":
        return [np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1)]
    if name == "square":
        return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8]
    if name == "triangle":
        return [_spikes(3, 1.0)]
    if name == "star":
        return [_spikes(5, rng.uniform(0.36, 0.5))]
    if name == "ring":
        outer = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1)
        return [outer, outer * rng.uniform(0.45, 0.65)]
    arm = rng.uniform(0.25, 0.38)
    quarter = np.array([(arm, arm), (1, arm), (1, -arm)])
    turns = [np.array([(0, 1), (-1, 0)]), np.array([(-1, 0), (0, -1)]), np.array([(0, -1), (1, 0)])]
    return [np.concatenate([quarter @ turn for turn in (np.eye(2), *reversed(turns))])]


def _spikes(count: int, inner: float) -> np.ndarray:
    """A regular polygon (`inner` 1) or a star with that inner radius."""
    radii = np.ones(count) if inner == 1.0 else np.tile((1.0, inner), count)
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _place(
    rng: np.random.Generator, outline: list[np.ndarray], height: int, width: int
) -> list[np.ndarray]:
    """Stretches, turns, scales and moves an outline; small sizes are as likely as large ones."""
    unit = min(height, width)
    low, high = np.log(max(_DIAMETER[0] * unit, _MIN_DIAMETER_PIXELS)), np.log(_DIAMETER[1] * unit)
    diameter = np.exp(rng.uniform(low, high))
    stretch = np.exp(rng.uniform(-0.22, 0.22))
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([(cosine, sine), (-sine, cosine)]) * (diameter / 2)
    matrix = np.diag([stretch, 1 / stretch]) @ turn
    # A quarter of the diameter stays inside of the frame, so that it cuts some objects.
    margin = diameter * 0.25
    center = rng.uniform((margin, margin), (width - margin, height - margin))
    return [points @ matrix + center for points in outline]


def _rasterize(
    outline: list[np.ndarray], height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draws an outline with soft edges.

    Returns:
        The window of the picture that it touches, and how far it covers each pixel of that window
        (uint8, 255 = fully).
    """
    cv2 = require("cv2", "data")
    points = np.concatenate(outline)
    x1, y1 = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, (width - 1, height - 1))
    x2, y2 = np.clip(np.ceil(points.max(0)).astype(int) + 2, 1, (width, height))
    cover = np.zeros((y2 - y1, x2 - x1), np.uint8)
    fixed = [
        np.round((polygon - (x1, y1) - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        for polygon in outline
    ]
    cv2.fillPoly(cover, fixed, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return (slice(y1, y2), slice(x1, x2)), cover


def _paint(
    rng: np.random.Generator,
    ground: np.ndarray,
    cover: np.ndarray,
    unit: int,
    label: int | None = None,
) -> None:
    """Fills the covered part of `ground` in place with a texture, of the hue of a class if any."""
    cv2 = require("cv2", "data")
    hues = rng.uniform(0, 1, 6)
    if label is not None and rng.random() >= _ODD_HUES:
        hues = (label + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD, 6)) / len(CLASS_NAMES) % 1.0
    # In OpenCV's terms: hue in degrees, saturation and value in 0..1.
    candidates = np.stack([hues * 360, rng.uniform(0.45, 1.0, 6), rng.uniform(0.5, 1.0, 6)], -1)
    candidates = 255 * cv2.cvtColor(candidates[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    distance = np.linalg.norm(candidates - cv2.mean(ground)[:3], axis=1)
    # The first that is far enough from what lies around, at the latest the farthest.
    wanted = min(rng.uniform(80, 160), distance.max())
    color = candidates[np.argmax(distance >= wanted)]
    height, width = cover.shape
    fill = _texture(rng, height, width, color, rng.uniform(0, 35), unit)
    fill -= ground
    fill *= cv2.cvtColor(cover, cv2.COLOR_GRAY2RGB) * np.float32(1 / 255)
    ground += fill


def _add_distractor(rng: np.random.Generator, canvas: np.ndarray, unit: int) -> None:
    """Paints something that is no class: a blob with lobes, a scribble, or writing."""
    cv2 = require("cv2", "data")
    height, width = canvas.shape[:2]
    kind = rng.integers(3)
    if kind == 0:
        lobes, phase = rng.integers(2, 6), rng.uniform(0, 2 * np.pi)
        radius = 1 + rng.uniform(0.35, 0.55) * np.sin(lobes * _CIRCLE + phase)
        radius += rng.uniform(0.1, 0.3) * np.sin(2 * _CIRCLE + rng.uniform(0, 2 * np.pi))
        blob = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1) * radius[:, None] * 0.7
        window, cover = _rasterize(_place(rng, [blob], height, width), height, width)
    elif kind == 1:
        window, cover = _scribble(rng, height, width, thickness=int(rng.integers(1, 4)))
    else:
        cover = np.zeros((height, width), np.uint8)
        letters = "".join(chr(code) for code in rng.integers(97, 123, rng.integers(2, 7)))
        start = int(rng.integers(-width // 8, width // 2)), int(rng.integers(height // 8, height))
        scale = unit / 128 * rng.uniform(0.4, 1.2)
        stroke = max(1, round(scale * 1.5))
        cv2.putText(
            cover, letters, start, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, stroke, cv2.LINE_AA
        )
        window, cover = _trim(cover)
    _paint(rng, canvas[window], cover, unit)


def _scribble(
    rng: np.random.Generator, height: int, width: int, thickness: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A thin open line of some corners, as `_rasterize` returns it."""
    cv2 = require("cv2", "data")
    points = rng.uniform((0, 0), (width, height), (1, 2))
    steps = rng.normal(0, min(height, width) * 0.25, (int(rng.integers(2, 7)), 2))
    points = np.concatenate([points, points + np.cumsum(steps, 0)])
    cover = np.zeros((height, width), np.uint8)
    cv2.polylines(cover, [np.round(points).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
    return _trim(cover)


def _trim(cover: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window of what is covered, and the cover there; one pixel if nothing is."""
    x, y, width, height = require("cv2", "data").boundingRect(cover)
    window = slice(y, y + max(height, 1)), slice(x, x + max(width, 1))
    return window, cover[window]
