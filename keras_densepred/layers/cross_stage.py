"""The cross-stage-partial form of any stage of a network.

Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (2019),
https://arxiv.org/abs/1911.11929, section 3.2 and figures 2 to 4.

    x -+- bypass ------------------------------+- concat -> last transition
       +- branch -> stage -> first transition -+

Only a part of the channels passes through the stage, which saves what the stage costs and keeps
the other part's gradient out of it.
"""

import dataclasses
from collections.abc import Callable

from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.pooling import MaxPool
from keras_densepred.layers.stateless import ChannelSlice, Concat

FUSIONS = ("both", "first", "last")
SPLITS = ("convs", "slices", "slice_and_conv")
POOLS = (None, "parts", "transition")


@dataclasses.dataclass(frozen=True)
class CrossStage:
    """Makes the cross-stage-partial form of a stage: `CrossStage(kit)(x, stage, name)`.

    The stage is any callable from a map `(batch, height, width, channels)` to another of the same
    size: a function that builds dense, residual or grouped blocks, a Keras layer, a CEDNet stage.

    Attributes:
        kit: convolution, norm and activation of the splits and transitions, each a 1x1 unit.
        gamma: share of the channels that bypasses the stage. The larger, the cheaper.
        part_widths: channels of the bypass and of the branch, instead of `gamma`'s.
        split: how the parts are made: `"convs"`, a 1x1 unit of the whole map each, as in the
            authors' networks; `"slices"`, the first channels and the others, as in the paper's
            formulas; `"slice_and_conv"`, the first channels, and a 1x1 unit of the whole map.
        linear_split: whether the splits' units go without activation.
        fusion: which transitions there are (the paper's figure 3): `"both"`; `"first"`, concat
            then transition; `"last"`, transition then concat.
        width: channels of the result where a transition ends it; None: those of the concat.
        bypass_first: whether the concat starts with the bypass, and not with the branch.
        pool: where the stage halves the map by 2x2 max-pooling, if it does: `"parts"`, the bypass
            before its split and the branch after its own; `"transition"`, after the concat.

    Raises:
        ValueError: if an attribute is outside of what is listed here.

    Example, CEDNet's NeXt blocks at half the width inside of what was a stage of 64 channels:

    >>> import keras
    >>> from keras_densepred.layers import ConvNorm, CrossStage, NeXtMixer
    >>> mixer = NeXtMixer(layer_scale_init=1e-6)
    >>> def stage(x):
    ...     for n in range(3):
    ...         x = mixer.lr_block(x, name=f"block{n + 1}", rate=0.0, index=n, level=5)
    ...     return x
    >>> images = keras.Input((32, 32, 64))
    >>> CrossStage(ConvNorm("swish"), gamma=0.5)(images, stage, "c5").shape
    (None, 32, 32, 64)
    """

    kit: ConvNorm
    gamma: float = 0.5
    part_widths: tuple[int, int] | None = None
    split: str = "convs"
    linear_split: bool = False
    fusion: str = "both"
    width: int | None = None
    bypass_first: bool = False
    pool: str | None = None

    def __post_init__(self):
        for argument, choices in (("split", SPLITS), ("fusion", FUSIONS), ("pool", POOLS)):
            if getattr(self, argument) not in choices:
                raise ValueError(
                    f"`{argument}` must be one of {choices}, got {getattr(self, argument)!r}."
                )
        if not 0 < self.gamma < 1:
            raise ValueError(f"`gamma` must be between 0 and 1, got {self.gamma}.")

    def __call__(self, x, stage: Callable, name: str):
        """The stage's partial form.

        Args:
            x: `(batch, height, width, channels)`.
            stage: what the branch passes through, a callable from a map to a map of its size.
            name: prefix of the layer names.

        Returns:
            `(batch, height, width, width)`, or with a `pool` half of that size, rounded up.

        Raises:
            ValueError: if the parts do not fit the channels of `x`.
        """
        return self.transition(self.partial(x, stage, name), name)

    def partial(self, x, stage: Callable, name: str):
        """All but what follows the concat, which detectors tap: `(batch, height, width, any)`."""
        bypass, branch = self.parts(x, name)
        branch = stage(branch)
        if self.fusion != "first":
            branch = self.kit.unit(branch, branch.shape[-1], 1, f"{name}_transition")
        maps = [bypass, branch] if self.bypass_first else [branch, bypass]
        return Concat(name=f"{name}_concat", dtype=self.kit.dtype)(maps)

    def transition(self, x, name: str):
        """What follows the concat: the pool and the last transition, if there are any."""
        if self.pool == "transition":
            x = self._halve(x, f"{name}_pool")
        if self.fusion == "last":
            return x
        return self.kit.unit(x, self.width or x.shape[-1], 1, f"{name}_fuse")

    def parts(self, x, name: str):
        """The bypass and what enters the stage."""
        first, second = self._part_widths(x.shape[-1])
        bypass = self._halve(x, f"{name}_bypass_pool") if self.pool == "parts" else x
        if self.split == "convs":
            bypass = self._split_unit(bypass, first, f"{name}_bypass")
        else:
            bypass = self._slice(bypass, 0, first, f"{name}_bypass")
        if self.split == "slices":
            branch = self._slice(x, first, first + second, f"{name}_branch")
        else:
            branch = self._split_unit(x, second, f"{name}_branch")
        if self.pool == "parts":
            branch = self._halve(branch, f"{name}_branch_pool")
        return bypass, branch

    def _part_widths(self, channels: int) -> tuple[int, int]:
        first = round(self.gamma * channels)
        first, second = self.part_widths or (first, channels - first)
        sliced = {"convs": 0, "slices": first + second, "slice_and_conv": first}[self.split]
        if first < 1 or second < 1 or sliced > channels:
            raise ValueError(
                f"A map of {channels} channels cannot be split into {first} and {second}: choose "
                "another `gamma` or other `part_widths`."
            )
        return first, second

    def _split_unit(self, x, channels: int, name: str):
        return self.kit.unit(x, channels, 1, name, act=not self.linear_split)

    def _slice(self, x, start: int, stop: int, name: str):
        return ChannelSlice(start, stop, name=name, dtype=self.kit.dtype)(x)

    def _halve(self, x, name: str):
        return MaxPool(2, 2, name=name, dtype=self.kit.dtype)(x)
