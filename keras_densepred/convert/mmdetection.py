"""From the paths of weights here to the names of MMDetection's modules, by patterns."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

# What a group of a pattern becomes in the template, by the group's name; others stay as they are.
FIELDS: dict[str, Callable[[str], Any]] = {
    "ffn": {"expand": "layers.0.0", "reduce": "layers.1"}.__getitem__,
    "unit": {"conv": "conv", "norm": "gn"}.__getitem__,
    "attention": {"cross": 0, "self": 1}.__getitem__,
    "linear": lambda number: 2 * int(number) - 2,  # ReLUs are counted between linear layers
}
_LEAVES = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}


def authors_targets(
    weights: Iterable[keras.Variable], patterns: Sequence[tuple[str, str]], head: str
) -> dict[str, tuple[keras.Variable, ...]]:
    """The key in MMDetection of each weight of a head.

    Args:
        weights: of the head or of a part of it; random states are left out.
        patterns: pairs of the end of a weight's path here, a regular expression without the name
            of the variable, and of its module there, in which groups of the expression stand in
            braces (see `FIELDS`); the first match wins. What ends with `in_proj` is one array
            there.
        head: the module of all.

    Returns:
        Key to the weights that are its array, side by side along the last axis.

    Raises:
        ValueError: if no pattern matches a weight.
    """
    targets: dict[str, tuple[keras.Variable, ...]] = {}
    for weight in weights:
        if "seed_generator" not in weight.path:
            key = f"{head}.{_key(weight.path, patterns)}"
            targets[key] = (*targets.get(key, ()), weight)
    return targets


def _key(path: str, patterns: Sequence[tuple[str, str]]) -> str:
    module, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
        module, leaf = path, ""
    for pattern, template in patterns:
        match = re.search(f"(^|/){pattern}$", module)
        if match is not None:
            key = template.format(**_values(match.groupdict()))
            if key.endswith("in_proj"):
                return f"{key}_{_LEAVES[leaf]}"
            return f"{key}.{_LEAVES[leaf]}" if leaf else key
    raise ValueError(f"The weight {path!r} is none of the authors' head.")


def _values(groups: Mapping[str, str]) -> dict[str, Any]:
    return {name: FIELDS.get(name, str)(text) for name, text in groups.items()}
