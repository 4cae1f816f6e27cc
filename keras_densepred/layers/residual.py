"""Regularisation: layer scale and drop path of residual branches, dropout of channels."""

import keras
from keras import ops

from keras_densepred.layers.stateless import Stateless
from keras_densepred.runtime.replicas import own_seed


@keras.saving.register_keras_serializable(package="keras_densepred")
class LayerScale(Stateless, keras.layers.Layer):
    """Multiplies each channel (last axis) by a learned factor (Touvron et al., CaiT, eq. 4).

    Args:
        initial_value: the factor all channels start with.
    """

    def __init__(self, initial_value: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}


class ReplicaSeedGenerator(keras.random.SeedGenerator):
    """Seeds that differ between the devices of a data-parallel step, with the same state on all."""

    def next(self, ordered: bool = True):
        return own_seed(super().next(ordered))


@keras.saving.register_keras_serializable(package="keras_densepred")
class DropPath(keras.layers.Layer):
    """Drops a sample's whole map with probability `rate` in training (Huang et al., 2016).

    Kept samples are scaled by `1 / (1 - rate)`: Keras' Dropout with one draw a sample, but that
    what is not finite in a dropped one does not become zero.

    Args:
        rate: probability in [0, 1).
        seed: of the draws; None for one from Keras' global seed.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.seed_generator = ReplicaSeedGenerator(seed)

    def build(self, input_shape):
        self.built = True

    def call(self, inputs, training=False):
        if not training:
            return inputs
        sizes = zip(self._noise_shape(inputs), ops.shape(inputs), strict=True)
        shape = tuple(of_map if size is None else size for size, of_map in sizes)
        kept = ops.ones(shape, inputs.dtype)
        # One pass over the map; `dropout` of the map itself divides it and then selects. Without
        # a `noise_shape` Keras leaves the draws to PyTorch's own generator.
        return inputs * keras.random.dropout(
            kept, self.rate, noise_shape=shape, seed=self.seed_generator
        )

    def _noise_shape(self, inputs) -> tuple:
        return (None, *(1 for _ in inputs.shape[1:]))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_densepred")
class ChannelDropout(DropPath):
    """Drops whole channels of a sample's map in training ("spatial dropout").

    `keras.layers.SpatialDropout2D`, whose draws differ between devices.

    Args:
        rate: probability in [0, 1).
        seed: of the draws; None for one from Keras' global seed.
    """

    def _noise_shape(self, inputs) -> tuple:
        return (None, *(1 for _ in inputs.shape[1:-1]), inputs.shape[-1])


def drop_path(inputs, rate: float, name: str, dtype=None):
    """Drops the whole branch of a sample with probability `rate` in training: `DropPath`.

    At rate 0 no layer is added.

    Args:
        inputs: `(batch, height, width, channels)`.
        rate: probability in [0, 1).
        name: layer name.
        dtype: dtype policy of the layer.

    Returns:
        A tensor like `inputs`.
    """
    if rate == 0:
        return inputs
    return DropPath(rate, name=name, dtype=dtype)(inputs)
