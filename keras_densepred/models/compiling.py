"""How a saved model is compiled when it is loaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from keras import Model as KerasModel
else:
    # Keras 3.15.1 makes a class functional by replacing keras.Model in the bases of all its bases.
    # With keras.Model as the base of what functional and other models share, building one RetinaNet
    # would make every R-CNN functional.
    KerasModel = object


_NOT_BUILT = 2  # variables of an optimizer that has seen no weights: iterations, learning rate


def saved_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `compile` with which a model was saved, for the backend in use.

    Keras 3.15 saves what `jit_compile="auto"` became on the backend of training. A model trained
    with PyTorch would run operation by operation on JAX, and one trained with JAX would be compiled
    by PyTorch for every new shape. So the choice is left to the backend again. Likewise it saves
    PyTorch's own class of an optimizer, which cannot train on the others.

    Args:
        config: what `get_compile_config` gave.

    Returns:
        The arguments, without `jit_compile`.
    """
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict) and _is_keras_own(optimizer):
        config = {**config, "optimizer": {**optimizer, "module": "keras.optimizers"}}
    arguments = keras.saving.deserialize_keras_object(config)
    arguments.pop("jit_compile", None)
    return arguments


def _is_keras_own(optimizer: Mapping[str, Any]) -> bool:
    """Whether a serialized optimizer is one of Keras', on whichever backend it was made."""
    registered_by_others = ">" in str(optimizer["registered_name"])
    return not registered_by_others and hasattr(keras.optimizers, optimizer["class_name"])


class CompiledAsSaved(KerasModel):
    """Mixin, before `keras.Model`: a model whose `compile` takes back what it was called with.

    Keras compiles no loaded model whose class has a `compile` of its own, as KerasHub's have.
    """

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved, see `saved_arguments`."""
        self.compile(**saved_arguments(config))
        self.optimizer.build(self.trainable_variables)
        accept_other_orders(self.optimizer, self.layers)


def accept_other_orders(optimizer: Any, layers: Sequence[keras.layers.Layer]) -> None:
    """Lets an optimizer load its state from a file in which the outermost layer stood elsewhere.

    A host that keeps a layer before it calls Keras' constructor (keras-hub 0.32.0's DeepLabv3 keeps
    its last one) has it first on JAX and TensorFlow and last on PyTorch (keras 3.15.1), and the
    state is saved by position.
    """
    parts = [list(layer.trainable_variables) for layer in layers if layer.trainable_variables]
    load = optimizer.load_own_variables

    def load_in_order(store: Mapping[str, Any]) -> None:
        if len(store.keys()) <= _NOT_BUILT < len(optimizer.variables):
            return  # of a model that was compiled and never trained
        saved = [tuple(store[str(index)].shape) for index in range(len(store.keys()))]
        for order in (parts, parts[1:] + parts[:1], parts[-1:] + parts[:-1]):
            if saved == [tuple(variable.shape) for variable in optimizer.variables]:
                break
            other = type(optimizer).from_config(optimizer.get_config())
            other.build([variable for part in order for variable in part])
            if saved == [tuple(variable.shape) for variable in other.variables]:
                names = [_name_in_optimizer(variable) for variable in other.variables]
                ours = {_name_in_optimizer(variable): variable for variable in optimizer.variables}
                for index, name in enumerate(names):
                    ours[name].assign(store[str(index)])
                return
        load(store)

    optimizer.load_own_variables = load_in_order


def _name_in_optimizer(variable: Any) -> str:
    return variable.path.partition("/")[2]
