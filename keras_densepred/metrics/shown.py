"""How an evaluation during `fit` shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sized

import keras

OnBatch = Callable[[int, int], None]


def shown(batches: Sized, on_batch: OnBatch | None, verbose: bool) -> Callable[[int], None] | None:
    """What is called with the number of batches done.

    Args:
        batches: of the evaluation.
        on_batch: called with the batches done and all of them; None for Keras' progress bar.
        verbose: whether there is that bar.

    Returns:
        The function, or None where nothing is shown.
    """
    if on_batch is not None:
        return lambda done: on_batch(done, len(batches))
    return keras.utils.Progbar(len(batches), unit_name="batch").update if verbose else None
