"""How a saved model is compiled when it is loaded."""

from collections.abc import Mapping
from typing import Any

import keras


def saved_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `compile` with which a model was saved, for the backend in use.

    Keras 3.15 saves what `jit_compile="auto"` became on the backend of training. A model trained
    with PyTorch would run operation by operation on JAX, and one trained with JAX would be compiled
    by PyTorch for every new shape. So the choice is left to the backend again.

    Args:
        config: what `get_compile_config` gave.

    Returns:
        The arguments, without `jit_compile`.
    """
    arguments = keras.saving.deserialize_keras_object(config)
    arguments.pop("jit_compile", None)
    return arguments
