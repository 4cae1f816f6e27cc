"""Depthwise convolution layer on the tuned operation of `ops`."""

import keras

from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.depthwise import depthwise_conv
from keras_densepred.runtime.devices import tensorflow_runs_on_cpu


@keras.saving.register_keras_serializable(package="keras_densepred")
class DepthwiseConv(Stateless, keras.layers.Layer):
    """Depthwise 2D convolution with a square kernel and half its reach of zeros on each side.

    Input: `(batch, height, width, channels)`. Output: `(batch, height / strides, width / strides,
    channels)`, rounded up.

    Args:
        kernel_size: odd side of the kernel in pixels.
        dilation_rate: distance between taps in pixels.
        use_bias: whether to add a bias per channel.
        strides: step of the window in pixels; with more than 1 there is no dilation.
        kernel_initializer: Keras initializer of the kernel, which has the shape `(kernel_size,
            kernel_size, channels, 1)`; None is normal with standard deviation `1 / (kernel_size *
            sqrt(channels))`: CEDNet's authors count all channels as fan-out.

    The bias starts at zero.

    Raises:
        ValueError: if `kernel_size` is even, or both `strides` and `dilation_rate` exceed 1.
    """

    def __init__(
        self,
        kernel_size: int,
        dilation_rate: int = 1,
        use_bias: bool = True,
        strides: int = 1,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {kernel_size}.")
        if strides > 1 and dilation_rate > 1:
            raise ValueError(
                "`strides` and `dilation_rate` cannot both exceed 1, "
                f"got {strides} and {dilation_rate}."
            )
        self.kernel_size = kernel_size
        self.dilation_rate = dilation_rate
        self.use_bias = use_bias
        self.strides = strides
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias = None
        # What Keras asks before it compiles a TensorFlow model by XLA of its own accord. On CPU
        # that would be no faster in the forward pass, a quarter slower in training (CEDNet-NeXt-T,
        # 224 px, 4 images: 2.6 s a step, 2.1 s without), and compile for 60 s instead of 20.
        self.supports_jit = not tensorflow_runs_on_cpu()

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, 1),
            initializer=self.kernel_initializer
            or FanOutNormal(fan_out=self.kernel_size**2 * channels),
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")

    def call(self, inputs):
        return depthwise_conv(
            inputs,
            self.kernel,
            self.bias,
            strides=self.strides,
            # Without a stride "same" is as symmetric, and TensorFlow then pads without a copy.
            padding="same" if self.strides == 1 else (self.kernel_size - 1) // 2,
            dilation_rate=self.dilation_rate,
            data_format="channels_last",
        )

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        sizes = [None if size is None else -(-size // self.strides) for size in sizes]
        return (batch, *sizes, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "dilation_rate": self.dilation_rate,
            "use_bias": self.use_bias,
            "strides": self.strides,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
