"""MSFM, the Multi-Scale Fusion Module, a plug-in for the blocks of a residual network.

"MSFM: Multi-Scale Fusion Module for Object Detection" (ICLR 2021 submission). The paper's text is
the only source; no code was published. What the text leaves open is set so that 39 of its 41
published parameter totals are met (`tests/backbones/test_msfm_resnet.py` names the two misses).
"""

import fractions
import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.ops.resize import resize_bilinear

FUSIONS = ("add", "cat")
EPSILON = 1e-5  # PyTorch's; Keras' default is 1e-3


@keras.saving.register_keras_serializable(package="keras_densepred")
class MSFM(keras.layers.Layer):
    """Adds to a map what it shows at several scales.

    `x + U(fusion of F_n(S(x)))`: S squeezes the channels by a 1x1 convolution with group norm and
    ReLU; each branch F_n resizes to its scale (bilinear), convolves 3x3 with group norm and ReLU,
    and resizes back; U is a 1x1 convolution with group norm. All convolutions have biases.

    Input and output: `(batch, height, width, channels)`, of any size.

    Args:
        ratio: channels of the input over those of the branches; the quotient is rounded down.
        scales: size of each branch's map over the input's, rounded down to whole pixels.
        num_convs: 3x3 convolutions of every branch, or one number for each scale (the paper's
            "2*" is 2 where the scale is above 1, else 1).
        groups: groups of all group norms.
        fusion: `"add"` or `"cat"`: whether the branches' maps are summed or concatenated.
        zero_init: whether U's norm starts with scale 0, so that the module starts as the identity.
            The paper says nothing of it.

    Raises:
        ValueError: if an argument is outside of what is listed here, or the squeezed channels do
            not divide into the groups.
    """

    fuses_scales = True  # what `analysis.fusion_time` cannot see from outside

    def __init__(
        self,
        ratio: int = 16,
        scales: Sequence[float] = (0.5, 0.7, 1.0),
        num_convs: int | Sequence[int] = 1,
        groups: int = 16,
        fusion: str = "add",
        zero_init: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if ratio < 1 or groups < 1:
            raise ValueError(f"`ratio` and `groups` must be positive, got {ratio} and {groups}.")
        if not scales or min(scales) <= 0:
            raise ValueError(f"`scales` must be positive numbers, got {scales}.")
        if fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {FUSIONS}, got {fusion!r}.")
        convs = [num_convs] * len(scales) if isinstance(num_convs, int) else list(num_convs)
        if len(convs) != len(scales) or min(convs) < 1:
            raise ValueError(
                "`num_convs` must be a positive integer, or one for each of the "
                f"{len(scales)} scales, got {num_convs}."
            )
        self.ratio = ratio
        self.scales = tuple(scales)
        self.num_convs = num_convs if isinstance(num_convs, int) else tuple(num_convs)
        self.groups = groups
        self.fusion = fusion
        self.zero_init = zero_init
        self._convs_per_branch = convs
        # In integers: a product with 0.7 would be rounded differently by backend.
        self._fractions = [fractions.Fraction(s).limit_denominator(1000) for s in self.scales]

    def build(self, input_shape):
        channels = input_shape[-1]
        width = channels // self.ratio
        for name, number in (("squeezed", width), ("input", channels)):
            if number < 1 or number % self.groups:
                raise ValueError(
                    f"MSFM {self.name!r} has {number} {name} channels, which do not divide into "
                    f"`groups` {self.groups}: change `groups` or `ratio` ({self.ratio})."
                )
        squeezed = (*input_shape[:-1], width)
        joined = width * len(self.scales) if self.fusion == "cat" else width
        self.squeeze = self._pointwise(width, "squeeze", input_shape)
        self.squeeze_norm = self._norm("squeeze_norm", squeezed)
        self.convs, self.norms = (
            [],
            [],
        )  # of all branches in one list: Keras saves no lists in lists
        for branch, count in enumerate(self._convs_per_branch, 1):
            for number in range(1, count + 1):
                name = f"branch{branch}_conv{number}"
                conv = Conv(
                    width, 3, kernel_initializer=_he_normal(), name=name, dtype=self.dtype_policy
                )
                conv.build(squeezed)
                self.convs.append(conv)
                self.norms.append(self._norm(f"branch{branch}_norm{number}", squeezed))
        self.expand = self._pointwise(channels, "expand", (*input_shape[:-1], joined))
        self.expand_norm = self._norm(
            "expand_norm", input_shape, "zeros" if self.zero_init else "ones"
        )

    def _pointwise(self, units: int, name: str, input_shape) -> keras.layers.Layer:
        layer = Pointwise(
            units, kernel_initializer=_he_normal(), name=name, dtype=self.dtype_policy
        )
        layer.build(input_shape)
        return layer

    def _norm(self, name: str, input_shape, gamma: str = "ones") -> keras.layers.Layer:
        layer = keras.layers.GroupNormalization(
            self.groups,
            epsilon=EPSILON,
            gamma_initializer=gamma,
            name=name,
            dtype=self.dtype_policy,
        )
        layer.build(input_shape)
        return layer

    def call(self, inputs):
        size = ops.shape(inputs)[1:3]
        squeezed = ops.relu(self.squeeze_norm(self.squeeze(inputs)))
        branches, index = [], 0
        for scale, count in zip(self._fractions, self._convs_per_branch, strict=True):
            x = squeezed if scale == 1 else resize_bilinear(squeezed, _scaled(size, scale))
            for conv, norm in zip(
                self.convs[index : index + count], self.norms[index : index + count], strict=True
            ):
                x = ops.relu(norm(conv(x)))
            branches.append(x if scale == 1 else resize_bilinear(x, size))
            index += count
        fused = ops.concatenate(branches, axis=-1) if self.fusion == "cat" else sum(branches)
        return inputs + self.expand_norm(self.expand(fused))

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Multiply-adds of one call, for `analysis.count_multiply_adds`.

        Args:
            output_shape: (H, W, channels).
            norms: not used: what counts norms is batch norms' (`count_multiply_adds`).

        Returns:
            The number of multiply-adds of the convolutions.
        """
        size = output_shape[:-1]
        counts = [math.prod(layer.kernel.shape) for layer in (self.squeeze, self.expand)]
        total = math.prod(size) * sum(counts)
        index = 0
        for scale, count in zip(self._fractions, self._convs_per_branch, strict=True):
            kernels = sum(math.prod(c.kernel.shape) for c in self.convs[index : index + count])
            total += math.prod(_scaled(size, scale)) * kernels
            index += count
        return total

    def get_config(self):
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "scales": self.scales,
            "num_convs": self.num_convs,
            "groups": self.groups,
            "fusion": self.fusion,
            "zero_init": self.zero_init,
        }


def _he_normal() -> FanOutNormal:
    return FanOutNormal(gain=math.sqrt(2.0))


def _scaled(size: tuple, scale: fractions.Fraction) -> tuple:
    """Each side times the scale, rounded down, at least 1."""
    sides = [side * scale.numerator // scale.denominator for side in size]
    return tuple(max(s, 1) if isinstance(s, int) else ops.maximum(s, 1) for s in sides)
