"""Densely connected layers: PeleeNet's two-way ones, and the one-way ones of DenseNet.

Wang et al., "Pelee: A Real-Time Object Detection System on Mobile Devices" (2018), figure 1;
Huang et al., "Densely Connected Convolutional Networks" (2017); Zhu et al., "Sparsely Aggregated
Convolutional Networks" (2018).
"""

import dataclasses

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.mobile import squeeze_excitation
from keras_densepred.layers.stateless import Concat

GROUP_WIDTH = 4  # channels of a group in PeleeNeXt


@dataclasses.dataclass(frozen=True)
class DenseBlock:
    """A chain of layers, each of which adds channels to its input.

    A two-way layer makes half of its channels by a bottleneck and a 3x3 convolution, half by a
    bottleneck of its own and two 3x3 convolutions; a one-way layer all by the former.

    Attributes:
        kit: convolution, norm and activation.
        growth: channels a layer adds.
        ways: 2 or 1.
        grouped: whether the first 3x3 convolution of each way is in groups of 4 channels.
        sparse: whether layer n reads only the results of n - 1, n - 2, n - 4, n - 8 ..., result 0
            being the block's input.
        se: whether the channels a layer adds are scaled by squeeze-excitation of half their number.
    """

    kit: ConvNorm
    growth: int = 32
    ways: int = 2
    grouped: bool = False
    sparse: bool = False
    se: bool = False

    def __call__(self, x, layers: int, bottleneck: int, name: str):
        """Builds the block.

        Args:
            x: `(batch, height, width, channels)`.
            layers: number of layers.
            bottleneck: channels of the 1x1 convolutions.
            name: prefix of the layer names.

        Returns:
            `(batch, height, width, channels + layers * growth)`: the input, then the first
            layer's channels, and so on.
        """
        maps = [x]  # those of the input and of every layer
        total = x  # all of them in one map
        for number in range(1, layers + 1):
            layer = f"{name}_layer{number}"
            inputs = total
            if self.sparse:
                read = [number - 2**power for power in range(number.bit_length())]
                sources = [maps[index] for index in read if index >= 0]
                inputs = self._concat(sources[::-1], f"{layer}_read")
            new = self._ways(inputs, bottleneck, layer)
            if self.se:
                joined = self._concat(new, f"{layer}_join")
                new = [squeeze_excitation(self.kit, joined, self.growth // 2, f"{layer}_se")]
            if self.sparse:
                maps.append(self._concat(new, f"{layer}_join") if len(new) > 1 else new[0])
            else:
                total = self._concat([total, *new], f"{layer}_concat")
        return self._concat(maps, f"{name}_concat") if self.sparse else total

    def _ways(self, x, bottleneck: int, name: str) -> list:
        if self.ways == 1:
            return [self._way(x, bottleneck, self.growth, 1, f"{name}_way1")]
        # In the order of the authors' files, the longer way is made first.
        second = self._way(x, bottleneck, self.growth // 2, 2, f"{name}_way2")
        return [self._way(x, bottleneck, self.growth // 2, 1, f"{name}_way1"), second]

    def _way(self, x, bottleneck: int, channels: int, length: int, name: str):
        x = self.kit.unit(x, bottleneck, 1, f"{name}_reduce")
        for number in range(1, length + 1):
            groups = bottleneck // GROUP_WIDTH if self.grouped and number == 1 else 1
            x = self.kit.unit(x, channels, 3, f"{name}_spatial{number}", groups=groups)
        return x

    def _concat(self, maps: list, name: str):
        if len(maps) == 1:
            return maps[0]
        return Concat(name=name, dtype=self.kit.dtype)(maps)
