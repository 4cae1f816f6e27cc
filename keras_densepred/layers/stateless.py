"""Layers without state, which run without Keras' bookkeeping: sum, concatenation, slice."""

from collections.abc import Callable
from typing import Any

import keras

from keras_densepred.runtime.eager import can_run_directly


class Stateless:
    """Mixin, before the Keras class: a call that only computes skips `keras.layers.Layer.__call__`.

    For layers as `can_run_directly` wants them; it tells what this saves.
    """

    call: Callable[..., Any]  # the layer's

    def __call__(self, *args, **kwargs):
        if can_run_directly(self, args, kwargs):
            return self.call(*args)
        return super().__call__(*args, **kwargs)


@keras.saving.register_keras_serializable(package="keras_densepred")
class Add(Stateless, keras.layers.Layer):
    """The sum of two maps of the same shape."""

    def call(self, x, y):
        return x + y

    def compute_output_shape(self, x_shape, y_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="keras_densepred")
class Concat(keras.layers.Concatenate):
    """Puts the channels (last axis) of a list of maps behind each other, in its order.

    `keras.layers.Concatenate`, which PyTorch runs without Keras' bookkeeping.
    """

    def __call__(self, inputs, **kwargs):
        if can_run_directly(self, inputs, kwargs):
            return self.call(inputs)
        return super().__call__(inputs, **kwargs)


@keras.saving.register_keras_serializable(package="keras_densepred")
class ChannelSlice(Stateless, keras.layers.Layer):
    """The channels from `start` up to `stop` of `(batch, height, width, channels)`.

    Args:
        start: first channel.
        stop: the channel after the last.
    """

    def __init__(self, start: int, stop: int, **kwargs):
        super().__init__(**kwargs)
        self.start = start
        self.stop = stop

    def call(self, inputs):
        return inputs[..., self.start : self.stop]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.stop - self.start)

    def get_config(self):
        return {**super().get_config(), "start": self.start, "stop": self.stop}
