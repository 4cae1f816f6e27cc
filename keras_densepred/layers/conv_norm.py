"""Convolutions with batch normalisation, as residual networks are built of them."""

import dataclasses
from collections.abc import Callable

import keras

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.norm import Activation, LeakyReLU, batch_norm
from keras_densepred.layers.residual import drop_path
from keras_densepred.layers.stateless import Add

ACTIVATIONS = ("relu", "swish", "leaky_relu", "mish")


@dataclasses.dataclass(frozen=True)
class ConvNorm:
    """Convolution, batch normalisation and activation of one network.

    Attributes:
        activation: `"relu"`, `"swish"`, `"mish"` or `"leaky_relu"`.
        momentum: share of the moving statistics that a step keeps.
        epsilon: added to the variance.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        dtype: dtype policy of all layers.
        negative_slope: of leaky ReLU; Darknet's is 0.1.
        fixed_statistics: whether batch norms use their moving statistics in training too.
        start: makes the initializer of each kernel.
    """

    activation: str = "relu"
    momentum: float = 0.99
    epsilon: float = 1e-3
    sync_batch_norm: bool = False
    dtype: object = None
    negative_slope: float = 0.1
    fixed_statistics: bool = False
    start: Callable[[], keras.initializers.Initializer] = FanInNormal

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {ACTIVATIONS}, got {self.activation!r}.")

    def conv(
        self,
        x,
        channels: int,
        kernel: int,
        name: str,
        stride: int = 1,
        use_bias: bool = True,
        groups: int = 1,
    ):
        """Convolution that keeps the size or, with a stride, divides it, rounded up."""
        start = self.start()
        if kernel == stride == groups == 1:
            # On channels-last maps a 1x1 convolution is a matrix product, and faster as one.
            return Pointwise(
                channels,
                use_bias=use_bias,
                kernel_initializer=start,
                name=name,
                dtype=self.dtype,
            )(x)
        return Conv(channels, kernel, stride, use_bias, start, groups, name=name, dtype=self.dtype)(
            x
        )

    def norm(self, x, name: str):
        """Batch normalisation."""
        return self.norm_layer(name)(x)

    def norm_layer(self, name: str) -> keras.layers.Layer:
        """The layer that `norm` applies."""
        return batch_norm(
            name,
            self.momentum,
            self.epsilon,
            self.sync_batch_norm,
            self.dtype,
            self.fixed_statistics,
        )

    def act(self, x, name: str):
        if self.activation == "leaky_relu":
            return LeakyReLU(self.negative_slope, name=name, dtype=self.dtype)(x)
        return Activation(self.activation, name=name, dtype=self.dtype)(x)

    def unit(
        self,
        x,
        channels: int,
        kernel: int,
        name: str,
        stride: int = 1,
        act: bool = True,
        groups: int = 1,
    ):
        """Convolution without bias, batch normalisation and, unless `act` is False, activation."""
        x = self.conv(x, channels, kernel, f"{name}_conv", stride, False, groups)
        x = self.norm(x, f"{name}_norm")
        return self.act(x, f"{name}_act") if act else x

    def depthwise_unit(self, x, name: str, stride: int = 1):
        """3x3 depthwise convolution without bias, batch normalisation, activation."""
        x = DepthwiseConv(
            3,
            use_bias=False,
            strides=stride,
            kernel_initializer=FanInNormal(fan_in=9),
            name=f"{name}_dwconv",
            dtype=self.dtype,
        )(x)
        return self.act(self.norm(x, f"{name}_norm"), f"{name}_act")

    def add(self, x, branch, name: str):
        return Add(name=name, dtype=self.dtype)(x, branch)

    def drop(self, x, rate: float, name: str):
        return drop_path(x, rate, name, self.dtype)


@dataclasses.dataclass(frozen=True)
class OrderedConvNorm(ConvNorm):
    """`ConvNorm` that remembers in which order it made its convolutions: Darknet's file order.

    Attributes:
        order: the names of the convolutions so far.
    """

    order: list[str] = dataclasses.field(default_factory=list, compare=False)

    def conv(
        self,
        x,
        channels: int,
        kernel: int,
        name: str,
        stride: int = 1,
        use_bias: bool = True,
        groups: int = 1,
    ):
        self.order.append(name)
        return super().conv(x, channels, kernel, name, stride, use_bias, groups)
