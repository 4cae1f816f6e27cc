"""What a model is given of a batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

IMAGES_ALONE = ("images",)
_OF_BYTES = ("image_sizes", "shares")  # what normalising needs, where a batch has it


def model_input(model: Any, batch: Mapping[str, Any]) -> Any:
    """The images of a batch, or with them what the model says it needs.

    Args:
        model: a model, or what predicts with it, whose `input_keys` are keys of the batch;
            without that attribute it takes images alone. With `takes_bytes` it normalises images
            of bytes itself, see `training.devices.image_bytes`.
        batch: of `train_batches`, `eval_batches` and their siblings.

    Returns:
        `batch["images"]`, or a dictionary of the `input_keys`; of bytes that the model normalises,
        with where each image ends and how much of it is mixed in, where the batch has that.
    """
    keys = getattr(model, "input_keys", IMAGES_ALONE)
    if getattr(model, "takes_bytes", False) and batch["images"].dtype == np.uint8:
        more = (key for key in _OF_BYTES if key in batch and key not in keys)
        keys = (*keys, *more)
    return batch["images"] if keys == IMAGES_ALONE else {key: batch[key] for key in keys}
