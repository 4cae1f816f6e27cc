"""Layers of Darknet's detectors: maxout, partial shortcut, pyramid pooling, attention gate.

As Darknet computes them, so that networks written for it ("CSPNet", Wang et al., 2020; "YOLOv3",
Redmon & Farhadi, 2018) are the same here.
"""

import math

import keras
from keras import ops

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.mobile import Gate
from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.pooling import largest, max_pool2d

SPP_KERNELS = (5, 9, 13)


@keras.saving.register_keras_serializable(package="keras_densepred")
class Maxout(Stateless, keras.layers.Layer):
    """The largest of every `filters`-th channel: result g is max over channels g, g + filters, ...

    Input: `(batch, height, width, channels)`. Output: `(batch, height, width, filters)`. Darknet's
    `[maxpool] maxpool_depth=1 out_channels=filters`; no weights.

    Args:
        filters: channels of the result.

    Raises:
        ValueError: if the input has fewer channels than that.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        if input_shape[-1] < self.filters:
            raise ValueError(
                f"`filters` is {self.filters}, more than the {input_shape[-1]} channels of the "
                "input; maxout only narrows."
            )

    def call(self, inputs):
        channels = inputs.shape[-1]
        groups = -(-channels // self.filters)
        if groups * self.filters > channels:
            edges = ((0, 0),) * 3 + ((0, groups * self.filters - channels),)
            inputs = ops.pad(inputs, edges, constant_values=-float("inf"))
        firsts = range(0, groups * self.filters, self.filters)
        return largest(inputs[..., first : first + self.filters] for first in firsts)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def comparisons(self, input_shape, output_shape) -> int:
        """What `analysis.darknet_costs` counts: each channel it reads."""
        return math.prod(input_shape)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="keras_densepred")
class PartialAdd(Stateless, keras.layers.Layer):
    """Adds the channels that two maps `(batch, height, width, channels)` both have.

    The first min(c1, c2) channels are added; the result has the channels of the first map
    (Darknet's `[shortcut]`, the partial residual of "Enriching Variety of Layer-wise Learning
    Information by Gradient Combination", Wang et al., 2019).
    """

    def call(self, x, shortcut):
        channels, added = x.shape[-1], shortcut.shape[-1]
        if added >= channels:
            return x + shortcut[..., :channels]
        return ops.concatenate([x[..., :added] + shortcut, x[..., added:]], axis=-1)

    def compute_output_shape(self, x_shape, shortcut_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="keras_densepred")
class SpatialPyramidPooling(Stateless, keras.layers.Layer):
    """Concatenates a map's maxima over 13x13, 9x9 and 5x5 positions, in this order, and the map.

    Input: `(batch, height, width, channels)`. Output: `(batch, height, width, 4 * channels)`.
    """

    def call(self, inputs):
        # The largest of 5x5 maxima over 5x5 positions is the largest of 9x9.
        pooled = [inputs]
        for _ in SPP_KERNELS:
            pooled.append(max_pool2d(pooled[-1], pool_size=5, strides=1, padding=2))
        return ops.concatenate(pooled[::-1], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4 * input_shape[-1])

    def comparisons(self, input_shape, output_shape) -> int:
        """What `analysis.darknet_costs` counts: every position of the three windows."""
        return sum(kernel**2 for kernel in SPP_KERNELS) * math.prod(input_shape)


def attention_gate(kit: ConvNorm, x, name: str):
    """SAM as CSPNet's detectors have it: `x * sigmoid(BN(conv1x1(x)))`, channel by channel.

    Args:
        kit: the network's convolutions, norm and activation.
        x: `(batch, height, width, channels)`.
        name: prefix of the layer names.

    Returns:
        A map like `x`.
    """
    gate = kit.unit(x, x.shape[-1], 1, name, act=False)
    return Gate(name=f"{name}_gate", dtype=kit.dtype)(x, gate)
