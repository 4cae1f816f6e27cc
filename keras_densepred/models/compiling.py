"""How a saved model is compiled when it is loaded."""

from collections.abc import Callable, Mapping
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


class CompiledAsSaved:
    """Mixin, before `keras.Model`: a model whose `compile` takes back what it was called with.

    Keras compiles no loaded model whose class has a `compile` of its own, as KerasHub's have.
    """

    compile: Callable[..., None]
    optimizer: keras.optimizers.Optimizer
    trainable_variables: list[keras.Variable]

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved, see `saved_arguments`."""
        self.compile(**saved_arguments(config))
        self.optimizer.build(self.trainable_variables)
