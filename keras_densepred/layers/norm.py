"""Normalisation and activation of channels-last maps."""

import math

import keras
from keras import layers, ops

from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.moments import moments
from keras_densepred.ops.pointwise import gelu, layer_norm, scale_shift
from keras_densepred.runtime.eager import can_run_directly
from keras_densepred.runtime.replicas import moments_of_all


@keras.saving.register_keras_serializable(package="keras_densepred")
class LayerNorm(Stateless, keras.layers.LayerNormalization):
    """Layer normalisation over the channels (last axis) of each position, epsilon 1e-6."""

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs):
        return layer_norm(inputs, self.gamma, self.beta, self.epsilon)


@keras.saving.register_keras_serializable(package="keras_densepred")
class GELU(Stateless, keras.layers.Layer):
    """Exact (not tanh) Gaussian error linear unit; any shape."""

    def call(self, inputs):
        return gelu(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="keras_densepred")
class BatchNorm(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose statistics are of all devices' rows ("SyncBN").

    Same weights, arguments and, on one device and to rounding, results. On several devices the
    results are those of one device on the whole batch, on every backend: Keras 3.15.1 takes
    `synchronized=True` on TensorFlow only; on JAX statistics are always of the whole batch. Masked
    batches, which images are not, have statistics per device.
    """

    def _moments(self, inputs, mask):
        if mask is not None:
            return super()._moments(inputs, mask)
        own = moments(inputs, tuple(self._reduction_axes), self.moving_mean)
        return moments_of_all(*own)


@keras.saving.register_keras_serializable(package="keras_densepred")
class Activation(Stateless, keras.layers.Activation):
    """`keras.layers.Activation`, which PyTorch runs without Keras' bookkeeping."""


@keras.saving.register_keras_serializable(package="keras_densepred")
class LeakyReLU(Stateless, keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU`, which PyTorch runs without Keras' bookkeeping."""


def group_norm(name: str, channels: int, dtype, groups: int = 32) -> layers.GroupNormalization:
    """Group normalisation, epsilon 1e-5; of fewer groups if these do not divide `channels`."""
    return layers.GroupNormalization(
        math.gcd(groups, channels), epsilon=1e-5, name=name, dtype=dtype
    )


class _QuickInference:
    """Batch normalisation of the last axis outside of training: one product and one sum."""

    def __call__(self, *args, **kwargs):
        # Told so by the caller; where nobody says, Keras has to look at its call context.
        if (
            kwargs.get("training") is False
            and self.compute_dtype == "float32"
            and can_run_directly(self, args, kwargs)
        ):
            return self._infer(args[0])
        return super().__call__(*args, **kwargs)

    def call(self, inputs, training=None, mask=None):
        # Half precision is for Keras, which computes this in float32.
        if (training and self.trainable) or mask is not None or self.compute_dtype != "float32":
            return super().call(inputs, training=training, mask=mask)
        return self._infer(inputs)

    def _infer(self, inputs):
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale_shift(inputs, scale, self.beta - self.moving_mean * scale)


@keras.saving.register_keras_serializable(package="keras_densepred")
class ConvBatchNorm(_QuickInference, layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of the last axis, faster outside of training on PyTorch.

    The same arguments and weights, and, to rounding, results.
    """

    def _moments(self, inputs, mask):
        if mask is not None or self.synchronized:
            return super()._moments(inputs, mask)
        return moments(inputs, tuple(self._reduction_axes), self.moving_mean)


@keras.saving.register_keras_serializable(package="keras_densepred")
class SyncConvBatchNorm(_QuickInference, BatchNorm):
    """`ConvBatchNorm` whose statistics are of all devices' rows."""


@keras.saving.register_keras_serializable(package="keras_densepred")
class FixedBatchNorm(ConvBatchNorm):
    """`ConvBatchNorm` that always normalises with its moving statistics, which stay as they are.

    How detectors fine-tune ("norm_eval"): their batches are too small for statistics. Unlike in a
    layer with `trainable=False`, scale and offset train.
    """

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


def batch_norm(
    name: str,
    momentum: float,
    epsilon: float,
    synchronized: bool = False,
    dtype=None,
    fixed: bool = False,
    plain: type[ConvBatchNorm] = ConvBatchNorm,
) -> keras.layers.Layer:
    """The one place where networks get their batch normalisation from.

    Args:
        name: layer name.
        momentum: share of the moving statistics that a step keeps.
        epsilon: added to the variance.
        synchronized: whether the devices of `training.distribute` share the statistics of a batch
            in training. On JAX they always do.
        dtype: dtype policy of the layer.
        fixed: whether the moving statistics normalise in training too, and stay as they are.
        plain: class where it is neither synchronized nor fixed.
    """
    layer: type[keras.layers.Layer] = SyncConvBatchNorm if synchronized else plain
    layer = FixedBatchNorm if fixed else layer
    return layer(momentum=momentum, epsilon=epsilon, name=name, dtype=dtype)
