"""How kernels start."""

import math
import random

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="keras_densepred")
class FanOutNormal(keras.initializers.Initializer):
    """Normal with standard deviation `1 / sqrt(fan_out)`, as CEDNet's authors start every kernel.

    Drawn by NumPy: `keras.utils.set_random_seed` then gives the same weights on every backend, and
    JAX does not compile a random kernel for each weight shape (which took 20 s of building
    CEDNet-NeXt-T on 2 CPU cores, against 2 s).

    Args:
        fan_out: number of values an input value contributes to; None: all axes of the weight but
            the second to last, as for `(height, width, in, out)` and `(in, out)` kernels.
        seed: integer, or None for one from Python's generator.
        gain: factor of the standard deviation; sqrt(2) is He's, before a ReLU.
    """

    def __init__(self, fan_out: int | None = None, seed: int | None = None, gain: float = 1.0):
        self.fan_out = fan_out
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self.gain = gain

    def __call__(self, shape, dtype=None):
        fan_out = self.fan_out or math.prod(shape[:-2]) * shape[-1]
        return _normal(shape, fan_out / self.gain**2, self.seed, dtype)

    def get_config(self):
        return {"fan_out": self.fan_out, "seed": self.seed, "gain": self.gain}


@keras.saving.register_keras_serializable(package="keras_densepred")
class FanInNormal(keras.initializers.Initializer):
    """Normal with standard deviation `1 / sqrt(fan_in)`, as SpineNet and BiCSNet start kernels.

    Drawn by NumPy, for the reasons given at `FanOutNormal`.

    Args:
        fan_in: number of values that a result is a sum of; None: all axes of the weight but the
            last, as for `(height, width, in, out)` and `(in, out)` kernels.
        seed: integer, or None for one from Python's generator.
    """

    def __init__(self, fan_in: int | None = None, seed: int | None = None):
        self.fan_in = fan_in
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape, dtype=None):
        return _normal(shape, self.fan_in or math.prod(shape[:-1]), self.seed, dtype)

    def get_config(self):
        return {"fan_in": self.fan_in, "seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_densepred")
class XavierUniform(keras.initializers.Initializer):
    """Uniform with variance `2 / (fan_in + fan_out)` (Glorot and Bengio, 2010), as FPNs start.

    Drawn by NumPy, for the reasons given at `FanOutNormal`.

    Args:
        seed: integer, or None for one from Python's generator.
        copies: kernels that lie side by side in the matrix whose fans count: 3 where query, key
            and value are one matrix in PyTorch.
    """

    def __init__(self, seed: int | None = None, copies: int = 1):
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self.copies = copies

    def __call__(self, shape, dtype=None):
        limit = math.sqrt(3.0 * self._variance(shape))
        values = np.random.default_rng(self.seed).random(tuple(shape), dtype=np.float32)
        return keras.ops.convert_to_tensor(limit * (2.0 * values - 1.0), dtype=dtype)

    def _variance(self, shape) -> float:
        return 2.0 / (math.prod(shape[:-2]) * (shape[-2] + self.copies * shape[-1]))

    def get_config(self):
        return {"seed": self.seed, "copies": self.copies}


@keras.saving.register_keras_serializable(package="keras_densepred")
class XavierNormal(XavierUniform):
    """`XavierUniform` drawn from a normal distribution of the same variance."""

    def __call__(self, shape, dtype=None):
        return _normal(shape, 1.0 / self._variance(shape), self.seed, dtype)


@keras.saving.register_keras_serializable(package="keras_densepred")
class FanInUniform(keras.initializers.Initializer):
    """Uniform within `gain / sqrt(fan_in)`: PyTorch's start of linear layers and their biases.

    Drawn by NumPy, for the reasons given at `FanOutNormal`.

    Args:
        fan_in: number of values that a result is a sum of; None: all axes of the weight but the
            last, as for `(in, out)` kernels. A bias does not tell it.
        seed: integer, or None for one from Python's generator.
        gain: factor of the bound; sqrt(3) is Caffe's start of convolutions.
    """

    def __init__(self, fan_in: int | None = None, seed: int | None = None, gain: float = 1.0):
        self.fan_in = fan_in
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self.gain = gain

    def __call__(self, shape, dtype=None):
        limit = self.gain / math.sqrt(self.fan_in or math.prod(shape[:-1]))
        values = np.random.default_rng(self.seed).random(tuple(shape), dtype=np.float32)
        return keras.ops.convert_to_tensor(limit * (2.0 * values - 1.0), dtype=dtype)

    def get_config(self):
        return {"fan_in": self.fan_in, "seed": self.seed, "gain": self.gain}


@keras.saving.register_keras_serializable(package="keras_densepred")
class FixedNormal(keras.initializers.Initializer):
    """Normal with a given standard deviation, as detection heads start.

    Drawn by NumPy, for the reasons given at `FanOutNormal`.

    Args:
        stddev: the standard deviation.
        seed: integer, or None for one from Python's generator.
    """

    def __init__(self, stddev: float, seed: int | None = None):
        self.stddev = stddev
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape, dtype=None):
        return _normal(shape, self.stddev**-2, self.seed, dtype)

    def get_config(self):
        return {"stddev": self.stddev, "seed": self.seed}


def _normal(shape, fan: float, seed: int, dtype):
    values = np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
    return keras.ops.convert_to_tensor(values / math.sqrt(fan), dtype=dtype)
