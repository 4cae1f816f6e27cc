"""A functional model as one compiled function, for calls outside of `predict`."""

from collections.abc import Callable
from typing import Any

import keras

Tensor = Any


def compiled(graph: keras.Model) -> Callable[[Any], Any]:
    """The function of a functional model's inputs to its outputs, outside of training.

    JAX and TensorFlow compile it, once for each shape of inputs; later values of the weights are
    seen. PyTorch runs the graph as it is.

    Args:
        graph: functional model.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        @jax.jit
        def run(weights: Any, inputs: Any) -> Any:
            return graph.stateless_call(*weights, inputs, training=False)[0]

        def call(inputs: Any) -> Any:
            groups = graph.trainable_variables, graph.non_trainable_variables
            return run([[variable.value for variable in group] for group in groups], inputs)

        return call
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda inputs: graph(inputs, training=False), reduce_retracing=True)
    return lambda inputs: graph(inputs, training=False)
