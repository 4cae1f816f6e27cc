"""The place of the largest value, in operators that other runtimes have."""

from typing import Any

import keras
from keras import ops

Tensor = Any


def argmax(values: Tensor, axis: int) -> Tensor:
    """`keras.ops.argmax` along one axis, int32; the first of equal values.

    On TensorFlow Keras' (3.15.1) looks at the bits of floats to tell -0 from 0, with operators that
    neither ONNX nor LiteRT has. Here they are equal.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.argmax(values, axis, output_type="int32")
    return ops.cast(ops.argmax(values, axis), "int32")
