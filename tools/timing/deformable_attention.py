"""How long multi-scale deformable attention takes beside `torch.nn.functional.grid_sample`.

One layer of the encoder of Deformable DETR on an image of 800 x 1280 px: 21,260 tokens of P3 to P6
ask for 8 heads of 32 channels, 4 points on each of the 4 levels, some pixels around themselves.
The form beside it is the plain one in PyTorch: `grid_sample` level by level, the samples of all
levels stacked, weighted and summed.
"""

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_densepred.ops.deformable_attention import deformable_attention
from tools.timing import gradients, measure

SHAPES = ((100, 160), (50, 80), (25, 40), (13, 20))  # P3 to P6 of 800 x 1280 px
HEADS, CHANNELS, POINTS = 8, 32, 4
SPREAD = 2.0  # pixels

Shapes = tuple[tuple[int, int], ...]
Call = Callable[[], object]


def measure_deformable_attention(rounds: int, shapes: Shapes = SHAPES) -> Iterator[dict[str, Any]]:
    """Times both by turns, and has the memory of each measured in a process of its own.

    Args:
        rounds: timed calls of each form and pass.
        shapes: (height, width) of the levels.

    Yields:
        A row a form and pass: `"what"`, `"pass"`, `"tokens"`, `"ms_median"`, `"ms_min"`,
        `"first_call_s"`, `"peak_memory_mib"`, `"times_grid_sample"`.
    """
    calls = _calls(shapes)
    timings = measure.alternate(calls, rounds, warm_up=1)
    for (what, name), timing in timings.items():
        yield {
            "what": what,
            "pass": name,
            "tokens": sum(height * width for height, width in shapes),
            "ms_median": timing.ms_median,
            "ms_min": timing.ms_min,
            "first_call_s": timing.first_call_s,
            "peak_memory_mib": _alone(shapes, (what, name)),
            "times_grid_sample": timing.ms_median / timings["grid_sample", name].ms_median,
        }


def _alone(shapes: Shapes, name: tuple[str, str]) -> float | None:
    # In this process each form would live on the memory that another has freed.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(_peak_memory, shapes, name).result()


def _peak_memory(shapes: Shapes, name: tuple[str, str]) -> float | None:
    call = _calls(shapes)[name]
    return measure.alternate({"alone": call}, 1, warm_up=1)["alone"].peak_memory_mib


def _calls(shapes: Shapes) -> dict[tuple[str, str], Call]:
    inputs, upstream = _inputs(shapes)

    def ours(values: Any, locations: Any, weights: Any) -> Any:
        return deformable_attention(values, shapes, locations, weights)

    calls = {
        ("ours", name): call for name, call in gradients.passes(ours, inputs, upstream).items()
    }
    theirs = gradients.torch_passes(functools.partial(_grid_sample, shapes), inputs, upstream)
    return {**calls, **{("grid_sample", name): call for name, call in theirs.items()}}


def _inputs(shapes: Shapes) -> tuple[list[np.ndarray], np.ndarray]:
    """Values, locations and weights, and the gradient of the result."""
    rng = np.random.default_rng(0)
    tokens = sum(height * width for height, width in shapes)
    centres = [
        np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2)
        for h, w in shapes
    ]
    offsets = rng.normal(size=(1, tokens, HEADS, len(shapes), POINTS, 2)) * SPREAD
    offsets /= np.array([(w, h) for h, w in shapes])[:, None]
    logits = rng.normal(size=(1, tokens, HEADS, len(shapes) * POINTS))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    inputs = [
        rng.normal(size=(1, tokens, HEADS, CHANNELS)),
        np.concatenate(centres)[:, None, None, None] + offsets,
        weights.reshape(offsets.shape[:-1]),
    ]
    upstream = rng.normal(size=(1, tokens, HEADS * CHANNELS))
    return [x.astype("float32") for x in inputs], upstream.astype("float32")


def _grid_sample(shapes: Shapes, values: Any, locations: Any, weights: Any) -> Any:
    import torch
    from torch.nn.functional import grid_sample

    batch, _, heads, channels = values.shape
    samples = []
    levels = values.split([height * width for height, width in shapes], 1)
    for level, (height, width) in enumerate(shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        grid = 2.0 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1.0
        samples.append(grid_sample(maps, grid, align_corners=False))  # (B * heads, C, Q, P)
    weights = weights.transpose(1, 2).flatten(3).flatten(0, 1)
    outputs = (torch.cat(samples, -1) * weights[:, None]).sum(-1)
    return outputs.view(batch, heads * channels, -1).transpose(1, 2).contiguous()
