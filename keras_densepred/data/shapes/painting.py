"""How the built-in shapes are drawn: outlines, textures and distractors."""

from __future__ import annotations

import numpy as np

from keras_densepred._optional import require

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")

# Diameters as a share of the shorter image side: 19 to 96 pixels at 128. Smaller ones would fall
# through RetinaNet's anchors, whose smallest is 32 pixels.
_DIAMETER = (0.15, 0.75)
_MIN_DIAMETER_PIXELS = 8.0
_HUE_SPREAD = 0.3  # of a class to either side, as a share of the distance to the next class
_ODD_HUES = 0.05  # share of objects that have any hue
_CIRCLE = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
_SUBPIXEL_BITS = 4  # of OpenCV's fixed-point coordinates


def ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """What the shapes lie on, `(height, width, 3)` float32, 0..255."""
    color = rng.uniform(50, 190) + rng.uniform(-25, 25, 3)
    return texture(rng, height, width, color, rng.uniform(5, 35), min(height, width))


def photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """A canvas `(H, W, 3)` float32 as a camera might see it: `(H, W, 3)` uint8, now and then dull,
    blurred and with grain."""
    cv2 = require("cv2", "data")
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    gain, noise = rng.uniform(0.6, 1.1), rng.uniform(0.02, 0.1)
    offset = 128 - 128 * gain - 127.5 * noise + rng.uniform(-25, 25)
    grain = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    return cv2.addWeighted(canvas, gain, grain, noise, offset, dtype=cv2.CV_8U)


def texture(
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


def class_outline(rng: np.random.Generator, label: int) -> list[np.ndarray]:
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


def place(
    rng: np.random.Generator,
    outline: list[np.ndarray],
    height: int,
    width: int,
    diameters: tuple[float, float] = _DIAMETER,
) -> list[np.ndarray]:
    """Stretches, turns, scales and moves an outline; small sizes are as likely as large ones.

    `diameters`, the least and the largest, are shares of the shorter side of the image.
    """
    unit = min(height, width)
    low, high = np.log(max(diameters[0] * unit, _MIN_DIAMETER_PIXELS)), np.log(diameters[1] * unit)
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


def rasterize(
    outline: list[np.ndarray], height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draws an outline with soft edges.

    Returns:
        The window of the image that it touches, and how far it covers each pixel of that window
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


def paint(
    rng: np.random.Generator,
    ground: np.ndarray,
    cover: np.ndarray,
    unit: int,
    label: int | None = None,
    odd_hues: float = _ODD_HUES,
) -> None:
    """Fills the covered part of `ground` in place with a texture, of the hue of a class if any.

    `odd_hues` is the share of objects that have any hue whatever their class.
    """
    cv2 = require("cv2", "data")
    hues = rng.uniform(0, 1, 6)
    if label is not None and rng.random() >= odd_hues:
        hues = (label + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD, 6)) / len(CLASS_NAMES) % 1.0
    # In OpenCV's terms: hue in degrees, saturation and value in 0..1.
    candidates = np.stack([hues * 360, rng.uniform(0.45, 1.0, 6), rng.uniform(0.5, 1.0, 6)], -1)
    candidates = 255 * cv2.cvtColor(candidates[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    distance = np.linalg.norm(candidates - cv2.mean(ground)[:3], axis=1)
    # The first that is far enough from what lies around, at the latest the farthest.
    wanted = min(rng.uniform(80, 160), distance.max())
    color = candidates[np.argmax(distance >= wanted)]
    height, width = cover.shape
    fill = texture(rng, height, width, color, rng.uniform(0, 35), unit)
    fill -= ground
    fill *= cv2.cvtColor(cover, cv2.COLOR_GRAY2RGB) * np.float32(1 / 255)
    ground += fill


def add_distractor(rng: np.random.Generator, canvas: np.ndarray, unit: int) -> None:
    """Paints a distractor: a blob with lobes, a scribble, or writing."""
    cv2 = require("cv2", "data")
    height, width = canvas.shape[:2]
    kind = rng.integers(3)
    if kind == 0:
        lobes, phase = rng.integers(2, 6), rng.uniform(0, 2 * np.pi)
        radius = 1 + rng.uniform(0.35, 0.55) * np.sin(lobes * _CIRCLE + phase)
        radius += rng.uniform(0.1, 0.3) * np.sin(2 * _CIRCLE + rng.uniform(0, 2 * np.pi))
        blob = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1) * radius[:, None] * 0.7
        window, cover = rasterize(place(rng, [blob], height, width), height, width)
    elif kind == 1:
        window, cover = scribble(rng, height, width, thickness=int(rng.integers(1, 4)))
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
    paint(rng, canvas[window], cover, unit)


def scribble(
    rng: np.random.Generator, height: int, width: int, thickness: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A thin open line of some corners, as `rasterize` returns it."""
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
