"""Bilinear up-sampling."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_densepred")
class BilinearUpsample(keras.layers.UpSampling2D):
    """Doubles height and width of `(batch, height, width, channels)`, with half-pixel centres."""

    def __init__(self, **kwargs):
        for fixed in ("size", "data_format", "interpolation"):
            kwargs.pop(fixed, None)
        super().__init__(2, data_format="channels_last", interpolation="bilinear", **kwargs)

    def call(self, inputs):
        if None not in inputs.shape[1:3]:
            return super().call(inputs)
        # keras 3.15.1 on TensorFlow: UpSampling2D compares sizes in Python, and so fails in a
        # graph that does not know them.
        return _double(_double(inputs, 1), 2)


def _double(x, axis: int):
    """A new position lies a quarter from the nearest old one: weights 3/4 and 1/4."""
    x = ops.moveaxis(x, axis, 0)
    before = ops.concatenate([x[:1], x[:-1]], axis=0)
    after = ops.concatenate([x[1:], x[-1:]], axis=0)
    pairs = ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=1)
    shape = ops.shape(pairs)
    return ops.moveaxis(ops.reshape(pairs, (2 * shape[0], *shape[2:])), 0, axis)
