"""PyTorch checkpoints as dictionaries of arrays, and their axis order."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred._optional import require

_WRAPPERS = ("module.", "model.", "ema_model.", "_model.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_state` did.

    Attributes:
        loaded: the keys whose arrays are now in the model.
        skipped: keys of parts around the body that this model does not have, such as the
            classification heads when a classification checkpoint is loaded into a backbone.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]


def read_checkpoint(
    path: str | Path, ema: bool = False, heads: bool = False
) -> dict[str, np.ndarray]:
    """Reads a checkpoint of the authors' code, without running anything stored in it.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.pt` or `.bin` file, which is read by
            `torch.load(weights_only=True)`.
        ema: read the averaged weights (`model_ema`) instead of the plain ones.
        heads: keep the heads of a detector or segmenter, and the `backbone.` of its backbone.

    Returns:
        Keys as the families' `load_state` takes them, to arrays: wrappers (`model`, `state_dict`,
        `module`), their prefixes (`unwrapped`) and `backbone.` are taken off. Of a fine-tuned
        detector or segmenter only the backbone is returned, unless with `heads`.

    Raises:
        ValueError: if the file cannot be read or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint file {path}: give the path of one.")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt", ".bin"):
        content = _read_torch(path)
    else:
        raise ValueError(
            f"{path} is neither a .safetensors nor a .pth file: convert it to one of these first."
        )
    if ema:
        if not isinstance(content.get("model_ema"), Mapping):
            raise ValueError(f"{path} holds no averaged weights (`model_ema`): leave `ema` out.")
        content = content["model_ema"]
    else:
        for wrapper in ("state_dict", "model", "module"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    state = unwrapped(content)
    if not heads and any(key.startswith("backbone.") for key in state):
        state = {
            key.removeprefix("backbone."): value
            for key, value in state.items()
            if key.startswith("backbone.")
        }
    state = {key: _to_numpy(value) for key, value in state.items()}
    state = {key: value for key, value in state.items() if value is not None}
    if not state:
        raise ValueError(f"{path} holds no weights: is it a checkpoint of a model?")
    return state


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Takes off what wrappers put before every key, however they are nested.

    `torch.compile` puts `_orig_mod.` there, or inside where a part was compiled,
    DistributedDataParallel `module.`, Lightning and exponential averages `model.` or `ema_model.`.

    Args:
        state: keys to anything. Lightning's loss or metrics beside the model are left out.
    """
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while True:
        for prefix in _WRAPPERS:
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if len(inside) > len(state) / 2:
                state = inside
                break
        else:
            return state


def _read_safetensors(path: Path) -> Mapping:
    require("safetensors", "convert")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}.") from error


def _read_torch(path: Path) -> Mapping:
    torch = require("torch", "torch")
    import argparse

    try:
        # The authors store their command line beside the weights; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # For 3000 damaged files torch 2.13 raised eleven kinds of exceptions, one without a message.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as weights alone ({reason}): re-save its tensors as "
            ".safetensors."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights.")
    return content


def _to_numpy(value) -> np.ndarray | None:
    """A tensor as an array; None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().float() if value.is_floating_point() else value.detach()
        return value.cpu().numpy()
    return value if isinstance(value, np.ndarray) else None


def to_keras_layout(value: np.ndarray, is_kernel: bool, depthwise: bool = True) -> np.ndarray:
    """Converts an array from PyTorch's axis order to Keras'.

    Args:
        value: weights of a convolution (out, in, height, width), of a linear layer (out, in), or
            others, which stay as they are.
        is_kernel: whether this is the weight of a convolution or linear layer.
        depthwise: whether a convolution of one channel a filter is a depthwise one.

    Returns:
        The array with the axes (height, width, in, out), or (in, out) for a 1x1 convolution too.
    """
    if not is_kernel or value.ndim not in (2, 4):
        return value
    if value.ndim == 2:
        return value.T
    if depthwise and value.shape[1] == 1:  # (channels, 1, height, width)
        return value.transpose(2, 3, 0, 1)
    if value.shape[2:] == (1, 1):  # a 1x1 convolution is a Dense layer here
        return value[:, :, 0, 0].T
    return value.transpose(2, 3, 1, 0)


def assign_state(
    model: keras.Model,
    targets: Mapping[str, Sequence[keras.Variable]],
    state: Mapping[str, np.ndarray],
    *,
    is_optional: Callable[[str], bool],
    advice: str = "Choose the preset the weights were made with.",
    depthwise: bool = True,
) -> LoadReport:
    """Gives weights the arrays of a state; nothing is assigned unless everything fits.

    Args:
        model: whose weights they are, for messages.
        targets: key to the weights that share its array, side by side along the last axis; nearly
            always one.
        state: keys to arrays in PyTorch's layout.
        is_optional: whether a key that is in no target is of a part that may be left out.
        advice: what to do if the keys do not fit, a sentence.
        depthwise: as in `to_keras_layout`.

    Returns:
        A `LoadReport`.

    Raises:
        ValueError: if the state lacks a key, has an unknown one, or an array of another shape. The
            message names them.
    """
    missing = [key for key in targets if key not in state]
    unexpected = [key for key in state if key not in targets]
    skipped = tuple(key for key in unexpected if is_optional(key))
    unknown = [key for key in unexpected if not is_optional(key)]
    if missing or unknown:
        raise ValueError(
            f"The weights do not fit {model.name}:"
            + named(" missing keys", missing)
            + named(" unexpected keys", unknown)
            + f" {advice}"
        )
    values = []
    for key, weights in targets.items():
        first, is_kernel = weights[0], weights[0].name.endswith("kernel")
        value = to_keras_layout(np.asarray(state[key]), is_kernel, depthwise)
        widths = [weight.shape[-1] for weight in weights]
        if value.shape != (*first.shape[:-1], sum(widths)):
            raise ValueError(
                f"The array of {key!r} has the shape {tuple(np.shape(state[key]))}, which does "
                f"not fit the weight {first.path!r} of shape {tuple(first.shape)}: choose the "
                "preset the weights were made with."
            )
        parts = np.split(value, np.cumsum(widths)[:-1], axis=-1)
        values += list(zip(weights, parts, strict=True))
    for weight, value in values:
        weight.assign(value)
    return LoadReport(tuple(targets), skipped)


def named(what: str, keys: list[str]) -> str:
    """`what` and the first of the keys, for a message; nothing if there are none."""
    if not keys:
        return ""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{what} {', '.join(keys[:5])}{more}."
