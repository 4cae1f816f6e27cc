"""Depthwise convolution layer on the tuned operation of `ops`."""

import keras

from keras_densepred.layers.direct import Direct
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.ops.depthwise import depthwise_conv
from keras_densepred.ops.devices import tensorflow_runs_on_cpu


@keras.saving.register_keras_serializable(package="keras_densepred")
class DepthwiseConv(Direct, keras.layers.Layer):
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
        # What Keras asks before it compiles a TensorFlow model by XLA of its own accord. On CPU
        # that would be no faster in the forward pass, a quarter slower in training (CEDNet-NeXt-T,
        # 224 px, 4 images: 2.6 s a step, 2.1 s without), and compile for 60 s instead of 20.
        self.supports_jit = not tensorflow_runs_on_cpu()

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
