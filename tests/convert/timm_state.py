"""Rebuilds the weights and the input of the reference outputs in `tests/golden/csp`.

timm's networks were run with weights that are a function of key name and shape alone (the rule of
`CSPNET.md`'s reference outputs).
"""

import json
import zlib
from pathlib import Path

import numpy as np


def key_list(path: Path) -> dict[str, tuple[int, ...]]:
    """timm's keys of one network and their shapes, in its order."""
    return {key: tuple(shape) for key, shape in json.loads(path.read_text(encoding="utf-8"))}


def make_state(keys: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Key name to array in PyTorch's layout."""
    return {key: _value(key, shape) for key, shape in keys.items()}


def make_images() -> np.ndarray:
    """The image of the reference outputs, `(1, 96, 128, 3)`."""
    generator = np.random.Generator(np.random.PCG64(20191127))
    images = generator.standard_normal((1, 3, 96, 128)).astype(np.float32)
    return images.transpose(0, 2, 3, 1)


def _value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    z = generator.standard_normal(shape)
    if len(shape) > 1:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("running_var"):
        z = 0.8 + 0.2 * np.abs(z)
    elif key.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = z * (0.02 if key.startswith("head") else 0.1)
    return z.astype(np.float32)
