"""A light path aggregation network of cross-stage-partial blocks, for real-time detectors.

Liu et al., "Path Aggregation Network for Instance Segmentation" (CVPR 2018), section 3.1: a
top-down path, then a bottom-up one. Bochkovskiy et al., "YOLOv4" (2020): with concatenation in
place of sums. Wang et al., "CSPNet" (2019): each fusion passes half of its channels through blocks.
Yu et al., "PP-PicoDet" (2021), section 3.2: the same width on all levels.
"""

from typing import Any

import keras

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.cross_stage import CrossStage
from keras_densepred.layers.stateless import Concat
from keras_densepred.layers.upsampling import NearestUpsample
from keras_densepred.necks.neck import Neck

NORM_MOMENTUM = 0.97  # statistics follow within a hundred steps: short runs predict as they train


@keras.saving.register_keras_serializable(package="keras_densepred")
class CSPPathAggregation(Neck):
    """PAN of CSP blocks around a backbone: equally wide levels P3 to P`max_level`.

    Input: images as the backbone wants them. Output: `{"P3": ..., "P5": ...}`, each
    `(batch, height, width, width_of_the_pyramid)`.

    Args:
        backbone: a `PyramidBackbone` with levels P3 to P5.
        width: channels of every level.
        depth: blocks (1x1, 3x3, shortcut) of each fusion.
        max_level: coarsest level, at least 5; further ones are strided convolutions.
        activation: `"swish"`, `"relu"` or another of `ConvNorm`.

    Raises:
        ValueError: if the backbone lacks a level, or a number is out of range.
    """

    _layer_prefix = "pan_"

    def __init__(
        self,
        backbone: keras.Model,
        width: int = 96,
        depth: int = 1,
        max_level: int = 5,
        activation: str = "swish",
        **kwargs: Any,
    ):
        if width < 2 or depth < 1 or max_level < 5:
            raise ValueError(
                "`width` must be at least 2, `depth` 1 and `max_level` 5, "
                f"got {width}, {depth} and {max_level}."
            )
        dtype = kwargs.pop("dtype", None) or backbone.dtype_policy
        sync = shares_batch_norms(backbone)
        kit = ConvNorm(activation, NORM_MOMENTUM, sync_batch_norm=sync, dtype=dtype)

        # === Functional model ===
        features = self.levels_of(backbone, range(3, 6), dtype)
        fuse = _Fusion(kit, width, depth)
        x = kit.unit(features[5], width, 1, "pan_p5_lateral")
        down = {5: x}
        for level in (4, 3):
            name = f"pan_p{level}"
            lateral = kit.unit(features[level], width, 1, f"{name}_lateral")
            x = NearestUpsample(name=f"{name}_up", dtype=dtype)(x, lateral)
            x = down[level] = fuse(lateral, x, f"{name}_down")
        levels = {3: x}
        for level in (4, 5):
            name = f"pan_p{level}"
            x = kit.unit(x, width, 3, f"{name}_below", stride=2)
            x = levels[level] = fuse(x, down[level], f"{name}_up")
        for level in range(6, max_level + 1):
            x = levels[level] = kit.unit(x, width, 3, f"pan_p{level}", stride=2)
        super().__init__(
            backbone=backbone,
            pyramid_outputs={f"P{level}": x for level, x in levels.items()},
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.width = width
        self.depth = depth
        self.max_level = max_level
        self.activation = activation


class _Fusion:
    """Two maps side by side through a cross-stage-partial stage."""

    def __init__(self, kit: ConvNorm, width: int, depth: int):
        self.kit = kit
        self.depth = depth
        half = width // 2
        self.partial = CrossStage(
            kit, part_widths=(half, half), fusion="first", width=width, bypass_first=False
        )

    def __call__(self, x: Any, other: Any, name: str) -> Any:
        x = Concat(name=f"{name}_both", dtype=self.kit.dtype)([x, other])
        return self.partial(x, lambda branch: self._blocks(branch, name), name)

    def _blocks(self, x: Any, name: str) -> Any:
        for number in range(self.depth):
            y = self.kit.unit(x, x.shape[-1], 1, f"{name}_block{number}_reduce")
            y = self.kit.unit(y, x.shape[-1], 3, f"{name}_block{number}_spatial")
            x = self.kit.add(y, x, f"{name}_block{number}_add")
        return x
