"""Depthwise convolution layer on the tuned operation of `ops`."""

import keras

from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.ops.depthwise import depthwise_conv


@keras.saving.register_keras_serializable(package="keras_densepred")
class DepthwiseConv(keras.layers.Layer):
    """Depthwise 2D convolution with a square kernel, stride 1 and zero "same" padding.

    Input and output: `(batch, height, width, channels)`.

    Args:
        kernel_size: odd side of the kernel in pixels.
        dilation_rate: distance between taps in pixels.
        use_bias: whether to add a bias per channel.

    The kernel, shape `(kernel_size, kernel_size, channels, 1)`, starts normal with standard
    deviation `1 / (kernel_size * sqrt(channels))`: the authors' Kaiming initialisation counts all
    channels as fan-out (CEDNet code). The bias starts at zero.

    Raises:
        ValueError: if `kernel_size` is even.
    """

    def __init__(self, kernel_size: int, dilation_rate: int = 1, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {kernel_size}.")
        self.kernel_size = kernel_size
        self.dilation_rate = dilation_rate
        self.use_bias = use_bias
        self.bias = None

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, 1),
            initializer=FanOutNormal(fan_out=self.kernel_size**2 * channels),
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")

    def call(self, inputs):
        return depthwise_conv(
            inputs,
            self.kernel,
            self.bias,
            padding="same",
            dilation_rate=self.dilation_rate,
            data_format="channels_last",
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "dilation_rate": self.dilation_rate,
            "use_bias": self.use_bias,
        }
