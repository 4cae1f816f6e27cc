"""Rebuilds the weights and inputs of the reference outputs in `tests/golden/detr`.

Made by running the authors' modules with weights that are a function of key name and shape alone,
as those in `tests/golden/cednet`; the rule has kinds more.
"""

import json
import math
import re
import zlib

import numpy as np

from tests.convert.authors_state import SCALE_OFFSET

ALIAS = re.compile(r"((?:cls|reg)_branches)\.\d+\.")
EMBEDDINGS = (
    *("level_embeds", "query_embedding.weight", "query_embed.weight", "query_feat.weight"),
    *("level_embed.weight", "level_encoding.weight"),
)


def normal(name: str, shape) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def make_input(name: str, shape) -> np.ndarray:
    """An input, channels last, as `name` is called in the reference's rule."""
    return normal(f"input:{name}", shape)


def make_state(keys, shared_branches: bool = True) -> dict[str, np.ndarray]:
    """Key name to array in PyTorch's layout.

    With `shared_branches` the heads of all decoder layers are those of the first (plain Deformable
    DETR).
    """
    state = {}
    for key, shape in keys:
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            state[key] = np.zeros((), np.int64)
            continue
        name = key.removeprefix("backbone.")
        if shared_branches:
            name = ALIAS.sub(r"\1.0.", name)
        if key.endswith(EMBEDDINGS):
            scale, offset = 1.0, 0.0
        elif key.endswith("sampling_offsets.bias"):
            scale, offset = 1.5, 0.0  # so that samples leave their pixel, and the map
        elif leaf in ("weight", "in_proj_weight") and len(shape) >= 2:
            scale, offset = 1 / np.sqrt(math.prod(shape[1:])), 0.0
        else:
            kinds = {"weight": "norm", "in_proj_bias": "bias"}
            scale, offset = SCALE_OFFSET[kinds.get(leaf, leaf)]
        state[key] = normal(name, shape) * np.float32(scale) + np.float32(offset)
    return state


def keys_of(reference) -> list[tuple[str, list[int]]]:
    """The keys that a reference file was made with."""
    return [(key, shape) for key, shape in json.loads(str(reference["keys"]))]
