"""The two figures of CEDNet's appendix B: gradient maps of two detectors, and their areas."""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.files import write_atomically

_SIDE = 3.2  # of a panel, in inches
_COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:purple")
_GAMMA = 0.5  # of the maps' brightness: a few pixels are many times as strong as most


@dataclasses.dataclass(frozen=True)
class GradientRow:
    """An image of the first figure.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy in pixels of the image.
        labels: (N,) integers.
        maps: each detector's gradient map, (h, w) 0..1 of any size.
        qualities: each detector's detection quality, 0..1.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    maps: Sequence[np.ndarray]
    qualities: Sequence[float]


def draw_gradient_maps(
    rows: Sequence[GradientRow],
    names: Sequence[str],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draws images with their objects and beside each the gradient map of every detector.

    Brightness is the square root of a map, so that more than its strongest pixels is seen; each is
    marked with the image's detection quality.

    Args:
        rows: one for each image, at least one.
        names: of the detectors.
        class_names: by label.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib or Pillow is not installed.
    """
    figure_module = require("matplotlib.figure", "data")
    colours = require("matplotlib.colors", "data")
    columns = 1 + len(names)
    heights = [_SIDE * row.image.shape[0] / row.image.shape[1] + 0.35 for row in rows]
    size = (_SIDE * columns, sum(heights))
    figure = figure_module.Figure(size, layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, line in zip(rows, panels, strict=True):
        for axes in line:
            axes.set_axis_off()
        height, width = row.image.shape[:2]
        line[0].imshow(draw_objects(row.image, row.boxes, row.labels, class_names))
        line[0].set_title("objects", fontsize=9)
        for axes, name, values, quality in zip(
            line[1:], names, row.maps, row.qualities, strict=True
        ):
            axes.imshow(
                np.asarray(values, np.float32),
                cmap="magma",
                norm=colours.PowerNorm(_GAMMA, 0, 1),
                extent=(0, width, height, 0),
                interpolation="nearest",
            )
            axes.set_title(f"{_plain(name)}: quality {quality:.2f}", fontsize=9)
    _save(figure, path)


def draw_important_areas(
    thresholds: np.ndarray, areas: Mapping[str, np.ndarray], path: str | os.PathLike[str]
) -> None:
    """Draws the area of the important regions against the threshold, a line for each detector.

    Lines are means over the images, bands the middle half of them.

    Args:
        thresholds: (T,), ascending.
        areas: detector to (N, T) shares of its images, 0..1.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "data")
    figure = figure_module.Figure((6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    least = 1.0
    for (name, shares), colour in zip(areas.items(), _COLOURS, strict=False):
        percent = 100 * np.asarray(shares)
        low, high = np.quantile(percent, (0.25, 0.75), axis=0)
        axes.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(thresholds, percent.mean(axis=0), color=colour, label=_plain(name))
        least = min(least, percent.mean(axis=0).min())
    count = len(next(iter(areas.values())))
    axes.set_yscale("log")
    axes.set_ylim(max(least / 2, 1e-4), 120)
    axes.set_xlim(0, 1)
    axes.set_xlabel("threshold on the gradient map")
    axes.set_ylabel("area of the important region, % of the image")
    axes.set_title(f"mean of {count:,} images; bands hold the middle half", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _plain(name: str) -> str:
    """A name in which `$` is no mathematics."""
    return name.replace("$", r"\$")
