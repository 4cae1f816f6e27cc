"""How long a deformable convolution takes beside the ordinary one of the same kernel.

3x3, from (1, 100, 168, 128) to 128 channels: a block of ResNet-50's second stage on an image of 800
x 1344 px, with offsets of about a cell. The convolution that finds them is not part of it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_densepred.ops.conv import conv2d
from keras_densepred.ops.deformable_conv import deformable_conv
from tools.timing import gradients, measure

SIZE, CHANNELS = (100, 168), 128

Call = Callable[[], object]


def measure_deformable_conv(rounds: int, size: tuple[int, int] = SIZE) -> Iterator[dict[str, Any]]:
    """Times both by turns, and torchvision's where that is installed.

    Args:
        rounds: timed calls of each form and pass.
        size: height and width of the map.

    Yields:
        A row a form and pass: `"what"`, `"pass"`, `"ms_median"`, `"ms_min"`, `"first_call_s"`,
        `"times_plain"`.
    """
    timings = measure.alternate(_calls(size), rounds, warm_up=1)
    for (what, name), timing in timings.items():
        yield {
            "what": what,
            "pass": name,
            "ms_median": timing.ms_median,
            "ms_min": timing.ms_min,
            "first_call_s": timing.first_call_s,
            "times_plain": timing.ms_median / timings["plain", name].ms_median,
        }


def _calls(size: tuple[int, int]) -> dict[tuple[str, str], Call]:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(1, *size, CHANNELS)).astype("float32")
    offsets = rng.normal(size=(1, *size, 18)).astype("float32")
    kernel = (rng.normal(size=(3, 3, CHANNELS, CHANNELS)) / 34).astype("float32")
    forms: dict[str, tuple[Any, list[np.ndarray]]] = {
        "deformable": (lambda *x: deformable_conv(*x, padding=1), [maps, offsets, kernel]),
        "plain": (lambda *x: conv2d(*x, padding=1), [maps, kernel]),
    }
    return {
        (what, name): call
        for what, (form, inputs) in forms.items()
        for name, call in gradients.passes(form, inputs, maps).items()
    }
