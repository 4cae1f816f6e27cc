"""Atrous spatial pyramid pooling, DeepLab's context module."""

from collections.abc import Sequence

from keras import layers

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.upsampling import BroadcastLike


def atrous_pyramid_pooling(kit: ConvNorm, x, width: int, rates: Sequence[int], name: str):
    """DeepLabv3's module ("Rethinking Atrous Convolution", section 3.3).

    Beside each other a 1x1 convolution, a 3x3 convolution for each rate, and the mean of the whole
    map through a 1x1 convolution; a 1x1 convolution of all these gives the result. Each has norm
    and activation.

    Args:
        kit: convolution, norm and activation of the network.
        x: map `(batch, height, width, channels)`.
        width: channels of every branch and of the result.
        rates: dilation of each 3x3 convolution.
        name: prefix of the layers' names.

    Returns:
        `(batch, height, width, width)`.
    """
    branches = [kit.unit(x, width, 1, f"{name}_point")]
    for rate in rates:
        label = f"{name}_rate{rate}"
        branch = layers.Conv2D(
            width,
            3,
            padding="same",
            dilation_rate=rate,
            use_bias=False,
            kernel_initializer=FanInNormal(),
            data_format="channels_last",
            name=f"{label}_conv",
            dtype=kit.dtype,
        )(x)
        branches.append(kit.act(kit.norm(branch, f"{label}_norm"), f"{label}_act"))
    pool = layers.GlobalAveragePooling2D(
        "channels_last", keepdims=True, name=f"{name}_pool", dtype=kit.dtype
    )(x)
    pool = kit.unit(pool, width, 1, f"{name}_image")
    branches.append(BroadcastLike(name=f"{name}_broadcast", dtype=kit.dtype)(pool, x))
    x = layers.Concatenate(name=f"{name}_concat", dtype=kit.dtype)(branches)
    return kit.unit(x, width, 1, f"{name}_project")
