"""The pyramid a detector needs, straight from a backbone that has already fused its scales.

CEDNet's point is that no FPN is needed: each level is projected to one width, and further levels
are added on top by strided convolutions (CEDNet, section 4.1; the layers as in the authors'
detection code). BiCSNet's own outputs are such a pyramid already; around it, this only projects.
"""

import keras

from keras_densepred.layers.token_mixers import NeXtMixer
from keras_densepred.layers.upsampling import BilinearUpsample
from keras_densepred.necks.neck import Neck


@keras.saving.register_keras_serializable(package="keras_densepred")
class DetectionPyramid(Neck):
    """Equally wide levels P`min_level`..P`max_level` from a backbone with P3..P5 or more.

    Levels of the backbone from P3 on: 1x1 convolution and norm. Levels above them: 3x3 convolution
    of stride 2 and norm, chained from the backbone's coarsest, without activation. With
    `min_level=2`, for two-stage detectors, P2 is `conv3x3(norm(up2(P3) + norm(conv1x1(C2))))`,
    whose two norms are always layer norms and which is not normalised itself.

    Input: images as the backbone wants them. Output: `{"P3": ..., "P7": ...}`, each
    `(batch, height, width, width_of_the_pyramid)`; each level halves the one below,
    rounded up. It goes directly into KerasHub's `RetinaNetObjectDetector(backbone=...)`.

    Args:
        backbone: a `PyramidBackbone` with levels P3..P5 (and P2 for `min_level=2`).
        width: channels of every level.
        min_level: 2 or 3.
        max_level: at least 5; 7 for RetinaNet, 6 for two-stage detectors and Deformable DETR.

    Raises:
        ValueError: if the levels are out of this range or the backbone lacks one.
    """

    _layer_prefix = "pyramid_"

    def __init__(
        self, backbone, width: int = 256, min_level: int = 3, max_level: int = 7, **kwargs
    ):
        if min_level not in (2, 3) or max_level < 5:
            raise ValueError(
                "`min_level` must be 2 or 3 and `max_level` at least 5, "
                f"got {min_level} and {max_level}."
            )
        dtype = kwargs.pop("dtype", None) or backbone.dtype_policy
        kit = getattr(backbone, "kit", NeXtMixer(dtype=dtype))

        # === Functional model ===
        features = self.levels_of(backbone, range(min_level, 6), dtype)
        levels = {}
        coarsest = min(max(features), max_level)
        for level in range(3, coarsest + 1):
            name = f"pyramid_p{level}"
            x = kit.conv(features[level], width, 1, f"{name}_conv")
            levels[level] = kit.norm(x, f"{name}_norm")
        for level in range(coarsest + 1, max_level + 1):
            name = f"pyramid_p{level}"
            x = kit.conv(levels[level - 1], width, 3, f"{name}_conv", stride=2)
            levels[level] = kit.norm(x, f"{name}_norm")
        if min_level == 2:
            levels[2] = _finest_level(features[2], levels[3], width, kit, dtype)
        super().__init__(
            backbone=backbone,
            pyramid_outputs={f"P{level}": x for level, x in levels.items()},
            dtype=dtype,
            # P2 is twice as large as P3 where images are a multiple of 8.
            size_divisor=8 if min_level == 2 else 1,
            **kwargs,
        )

        # === Config ===
        self.width = width
        self.min_level = min_level
        self.max_level = max_level


def _finest_level(c2, p3, width: int, kit, dtype):
    """P2 of the two-stage detectors."""
    norms = NeXtMixer(dtype=dtype)
    lateral = norms.norm(kit.conv(c2, width, 1, "pyramid_p2_conv"), "pyramid_p2_norm")
    up = BilinearUpsample(name="pyramid_p2_upsample", dtype=dtype)(p3)
    x = norms.norm(kit.add(up, lateral, "pyramid_p2_add"), "pyramid_p2_merge_norm")
    return kit.conv(x, width, 3, "pyramid_p2_merge_conv")
