"""What a model is given of a batch."""

from collections.abc import Mapping
from typing import Any

IMAGES_ALONE = ("images",)


def model_input(model: Any, batch: Mapping[str, Any]) -> Any:
    """The images of a batch, or with them what the model says it needs.

    Args:
        model: a model, or what predicts with it, whose `input_keys` are keys of the batch;
            without that attribute it takes images alone.
        batch: of `train_batches`, `eval_batches` and their siblings.

    Returns:
        `batch["images"]`, or a dictionary of the `input_keys`.
    """
    keys = getattr(model, "input_keys", IMAGES_ALONE)
    return batch["images"] if keys == IMAGES_ALONE else {key: batch[key] for key in keys}
