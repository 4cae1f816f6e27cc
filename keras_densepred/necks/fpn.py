"""The feature pyramid network, for backbones that do not fuse their scales.

Lin et al., "Feature Pyramid Networks for Object Detection" (CVPR 2017), as MMDetection and
Detectron2 build it: 1x1 convolutions, top-down sums with nearest up-sampling, 3x3 convolutions, all
with biases, no norms and no activations. CEDNet and BiCSNet need `DetectionPyramid` at most.
"""

import keras

from keras_densepred.layers import norm as norms
from keras_densepred.layers.conv import Conv
from keras_densepred.layers.initializers import XavierUniform
from keras_densepred.layers.pooling import Subsample
from keras_densepred.layers.stateless import Add
from keras_densepred.layers.upsampling import NearestUpsample
from keras_densepred.necks.neck import Neck

EXTRA_LEVELS = ("pool", "conv", "conv_on_c5")


@keras.saving.register_keras_serializable(package="keras_densepred")
class FeaturePyramid(Neck):
    """FPN around a backbone: equally wide levels P`min_level`..P`max_level`.

    Input: images as the backbone wants them. Output: `{"P2": ..., "P6": ...}`, each
    `(batch, height, width, width_of_the_pyramid)`.

    Args:
        backbone: a `PyramidBackbone` with levels P`min_level`..P5.
        width: channels of every level.
        min_level: finest level; 2 for two-stage detectors, 3 for RetinaNet.
        max_level: coarsest level; 6 for two-stage detectors, 7 for RetinaNet, 5 for no extra ones.
        extra_levels: how levels above P5 are made of the one below: `"pool"` takes every other
            position (two-stage detectors), `"conv"` is a 3x3 convolution of stride 2,
            `"conv_on_c5"` the same but for P6, which it makes of the backbone's own P5 (RetinaNet
            in Lin et al., "Focal Loss for Dense Object Detection", and in MMDetection).
        group_norm: whether each convolution has a group norm (of 32 groups, or as many as divide
            the width) instead of a bias (RepPoints' variant with norms).

    Raises:
        ValueError: if the levels are out of order, the backbone lacks one, or `extra_levels` is
            none of the three.
    """

    _layer_prefix = "fpn_"

    def __init__(
        self,
        backbone,
        width: int = 256,
        min_level: int = 2,
        max_level: int = 6,
        extra_levels: str = "pool",
        group_norm: bool = False,
        **kwargs,
    ):
        if not 2 <= min_level <= 5 <= max_level:
            raise ValueError(
                "`min_level` must be 2 to 5 and `max_level` at least 5, "
                f"got {min_level} and {max_level}."
            )
        if extra_levels not in EXTRA_LEVELS:
            raise ValueError(f"`extra_levels` must be one of {EXTRA_LEVELS}, got {extra_levels!r}.")
        dtype = kwargs.pop("dtype", None) or backbone.dtype_policy

        # === Functional model ===
        def conv(x, kernel: int, name: str, stride: int = 1):
            start = XavierUniform()
            x = Conv(width, kernel, stride, not group_norm, start, name=name, dtype=dtype)(x)
            return norms.group_norm(f"{name}_norm", width, dtype)(x) if group_norm else x

        features = self.levels_of(backbone, range(min_level, 6), dtype)
        levels, x = {}, None
        for level in range(5, min_level - 1, -1):
            lateral = conv(features[level], 1, f"fpn_p{level}_lateral")
            if x is not None:
                x = NearestUpsample(name=f"fpn_p{level}_upsample", dtype=dtype)(x, lateral)
                lateral = Add(name=f"fpn_p{level}_add", dtype=dtype)(lateral, x)
            x = lateral
            levels[level] = conv(x, 3, f"fpn_p{level}_conv")
        for level in range(6, max_level + 1):
            if extra_levels == "pool":
                layer = Subsample(name=f"fpn_p{level}_pool", dtype=dtype)
                levels[level] = layer(levels[level - 1])
            else:
                below = (
                    features[5] if (level, extra_levels) == (6, "conv_on_c5") else levels[level - 1]
                )
                levels[level] = conv(below, 3, f"fpn_p{level}_conv", stride=2)
        super().__init__(
            backbone=backbone,
            pyramid_outputs={f"P{level}": x for level, x in levels.items()},
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.width = width
        self.min_level = min_level
        self.max_level = max_level
        self.extra_levels = extra_levels
        self.group_norm = group_norm
