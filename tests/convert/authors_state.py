"""Rebuilds the weights and inputs of the reference outputs in `tests/golden/cednet`.

The authors' PyTorch modules were run with weights that are a function of key name and shape alone;
`RULE.md` beside the reference outputs states the rule.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

SCALE_OFFSET = {
    "norm": (0.1, 1.0),
    "bias": (0.1, 0.0),
    "gamma": (0.05, 0.3),
    "running_mean": (0.1, 0.0),
    "running_var": (0.1, 1.0),
    "relative_position_bias_table": (0.2, 0.0),
}
BUFFERS = ("num_batches_tracked", "relative_position_index")


def _normal(key: str, shape) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def key_list(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(shape)) for key, shape in json.loads(path.read_text())]


def make_state(keys) -> dict[str, np.ndarray]:
    """Key name to array in PyTorch's layout; buffers that no model needs are zeros."""
    state = {}
    for key, shape in keys:
        leaf = key.rsplit(".", 1)[-1]
        if leaf in BUFFERS:
            state[key] = np.zeros(shape, np.int64)
            continue
        if leaf == "weight" and len(shape) > 1:
            scale, offset = 1 / np.sqrt(math.prod(shape[1:])), 0.0
        else:
            scale, offset = SCALE_OFFSET["norm" if leaf == "weight" else leaf]
        state[key] = _normal(key, shape) * np.float32(scale) + np.float32(offset)
    return state


def make_images(name: str, shape) -> np.ndarray:
    """The images of the reference file `name`, `(batch, channels, height, width)`."""
    return _normal(f"input:{name}", shape)
