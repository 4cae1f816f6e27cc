"""BiCSNet's Spatial Fusion Module: a map of one level and width made fit for a block of another.

Peng et al., "BiCSNet" (2022), section "Spatial Fusion Module": squeeze, global context, resizing,
global context, 1x1 convolution. The global context is SENet's squeeze without its excitation, with
reference to DetectoRS; what is not in the paper's text is marked as our reading.
"""

import dataclasses

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.pooling import GlobalMean, MaxPool
from keras_densepred.layers.upsampling import NearestUpsample

CONTEXTS = ("mean", "conv")


@dataclasses.dataclass(frozen=True)
class SpatialFusion:
    """Spatial Fusion Modules of one network.

    Attributes:
        kit: the network's convolutions, norm and activation.
        context: `"mean"` adds the mean over all positions to each (no parameters); `"conv"`, as
            in DetectoRS, a 1x1 convolution of it with bias.
    """

    kit: ConvNorm
    context: str = "mean"

    def __post_init__(self):
        if self.context not in CONTEXTS:
            raise ValueError(f"`context` must be one of {CONTEXTS}, got {self.context!r}.")

    def __call__(self, x, squeeze: int, channels: int, steps: int, name: str, like=None):
        """Resamples `x`.

        Args:
            x: `(batch, height, width, channels)`.
            squeeze: width within the module, gamma times that of the source block's 3x3
                convolution.
            channels: channels of the result.
            steps: levels to go down (each halves the size, rounded up), or up where negative.
            name: prefix of the layer names.
            like: a map of the size to come up to; needed if `steps` is negative.

        Returns:
            `(batch, new_height, new_width, channels)`, normalised, without activation.
        """
        x = self.kit.unit(x, squeeze, 1, f"{name}_squeeze")
        x = self._add_context(x, f"{name}_context1")
        if steps > 0:
            x = self.kit.unit(x, squeeze, 3, f"{name}_down", stride=2)
            x = pool(x, steps - 1, name, self.kit.dtype)
        elif steps < 0:
            x = upsample(x, -steps, like, name, self.kit.dtype)
        x = self._add_context(x, f"{name}_context2")
        return self.kit.unit(x, channels, 1, f"{name}_project", act=False)

    def _add_context(self, x, name: str):
        context = GlobalMean(name=f"{name}_mean", dtype=self.kit.dtype)(x)
        if self.context == "conv":
            context = self.kit.conv(context, x.shape[-1], 1, f"{name}_conv")
        return self.kit.add(x, context, f"{name}_add")


@dataclasses.dataclass(frozen=True)
class PlainResampling:
    """What stands in for Spatial Fusion Modules where they are ablated (the paper's Table X).

    Down, it is the D of the paper's equations, literally: a 1x1 convolution, then a 3x3
    convolution of stride 2, here straight to the target's width; up and at the same level a 1x1
    convolution. Our reading: the paper does not say what replaces the module.

    Attributes:
        kit: the network's convolutions, norm and activation.
    """

    kit: ConvNorm

    def __call__(self, x, squeeze: int, channels: int, steps: int, name: str, like=None):
        """Resamples `x`; arguments and result as of `SpatialFusion`."""
        if steps > 0:
            x = self.kit.unit(x, squeeze, 1, f"{name}_squeeze")
            x = self.kit.unit(x, channels, 3, f"{name}_down", stride=2, act=False)
            return pool(x, steps - 1, name, self.kit.dtype)
        x = self.kit.unit(x, channels, 1, f"{name}_project", act=False)
        return upsample(x, -steps, like, name, self.kit.dtype) if steps < 0 else x


def pool(x, steps: int, name: str, dtype=None):
    """`steps` 3x3 max-poolings of stride 2 in a row."""
    for step in range(1, steps + 1):
        x = MaxPool(name=f"{name}_pool{step}", dtype=dtype)(x)
    return x


def upsample(x, steps: int, like, name: str, dtype=None):
    """Nearest up-sampling by `steps` levels to the size of the map `like`."""
    return NearestUpsample(2**steps, name=f"{name}_upsample", dtype=dtype)(x, like)
