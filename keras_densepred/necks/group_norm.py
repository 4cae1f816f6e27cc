"""Levels of one width for Deformable DETR, from backbones that do not fuse their scales.

Zhu et al., "Deformable DETR", appendix A.2 (MMDetection's `ChannelMapper`).
"""

from typing import Any

import keras

from keras_densepred.layers.conv import Conv
from keras_densepred.layers.initializers import XavierUniform
from keras_densepred.layers.norm import group_norm
from keras_densepred.necks.neck import Neck


@keras.saving.register_keras_serializable(package="keras_densepred")
class ProjectedLevels(Neck):
    """Equally wide levels P3..P`max_level`: a 1x1 convolution and a group norm on each.

    P6 is a 3x3 convolution of stride 2 of the backbone's own P5, each level above it one of the
    level below; all are followed by a group norm. No biases, no activations, no sums: the
    transformer is what mixes the levels.

    Input: images as the backbone wants them. Output: `{"P3": ..., "P6": ...}`, each
    `(batch, height, width, width_of_the_levels)`.

    Args:
        backbone: a `PyramidBackbone` with levels P3..P5.
        width: channels of every level; norms have 32 groups, or as many as divide both.
        max_level: coarsest level, at least 5.

    Raises:
        ValueError: if `max_level` is out of this range or the backbone lacks a level.
    """

    _layer_prefix = "levels_"

    def __init__(self, backbone, width: int = 256, max_level: int = 6, **kwargs):
        if max_level < 5:
            raise ValueError(f"`max_level` must be at least 5, got {max_level}.")
        dtype = kwargs.pop("dtype", None) or backbone.dtype_policy

        # === Functional model ===
        features = self.levels_of(backbone, range(3, 6), dtype)
        levels: dict[int, Any] = {}
        for level in range(3, max_level + 1):
            name = f"levels_p{level}"
            if level <= 5:
                x, kernel, stride = features[level], 1, 1
            else:
                x, kernel, stride = features[5] if level == 6 else levels[level - 1], 3, 2
            start = XavierUniform()
            x = Conv(*(width, kernel, stride, False, start), name=f"{name}_conv", dtype=dtype)(x)
            levels[level] = group_norm(f"{name}_norm", width, dtype)(x)
        super().__init__(
            backbone=backbone,
            pyramid_outputs={f"P{level}": x for level, x in levels.items()},
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.width = width
        self.max_level = max_level
