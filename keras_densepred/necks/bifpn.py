"""BiFPN, EfficientDet's neck: several rounds from the coarsest level down and up again.

Tan et al., "EfficientDet: Scalable and Efficient Object Detection" (CVPR 2020), section 3. CEDNet's
table has a row with ConvNeXt-T, RetinaNet and a BiFPN (39M, 248 G), and no reading is known that
meets both figures: a network built with this is not that row.
"""

import keras

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.pooling import MaxPool
from keras_densepred.layers.upsampling import NearestUpsample
from keras_densepred.layers.weighted_sum import WeightedSum
from keras_densepred.necks.neck import Neck


@keras.saving.register_keras_serializable(package="keras_densepred")
class BiFPN(Neck):
    """BiFPN around a backbone: equally wide levels P`min_level`..P`max_level`.

    A node is the weighted mean of its maps, swish, a separable 3x3 convolution and batch norm; maps
    come up by nearest up-sampling and down by 3x3 max-pooling of stride 2. P6 is pooled from a 1x1
    convolution and norm of the backbone's P5, further levels from the one below.

    Input: images as the backbone wants them. Output: `{"P3": ..., "P7": ...}`, each
    `(batch, height, width, width_of_the_pyramid)`; each level halves the one below, rounded up.

    Args:
        backbone: a `PyramidBackbone` with levels P`min_level`..P5.
        width: channels of every level; 64 in EfficientDet-D0, 160 in D4.
        repeats: rounds; 3 in EfficientDet-D0, 7 in D4.
        min_level: finest level, at most 4.
        max_level: coarsest level, at least 5.
        sync_batch_norm: whether replicas share the statistics of a batch in training; None as in
            the backbone.

    Raises:
        ValueError: if the levels are out of order, the backbone lacks one, or there is no round.
    """

    _layer_prefix = "bifpn_"

    def __init__(
        self,
        backbone,
        width: int = 64,
        repeats: int = 3,
        min_level: int = 3,
        max_level: int = 7,
        sync_batch_norm: bool | None = None,
        **kwargs,
    ):
        if not 2 <= min_level <= 4 or max_level < 5:
            raise ValueError(
                "`min_level` must be 2 to 4 and `max_level` at least 5, "
                f"got {min_level} and {max_level}."
            )
        if repeats < 1:
            raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
        dtype = kwargs.pop("dtype", None) or backbone.dtype_policy
        if sync_batch_norm is None:
            sync_batch_norm = shares_batch_norms(backbone)
        kit = ConvNorm("swish", sync_batch_norm=sync_batch_norm, dtype=dtype)

        def lateral(x, name: str):
            return kit.norm(kit.conv(x, width, 1, f"bifpn_{name}_conv"), f"bifpn_{name}_norm")

        def pool(x, name: str):
            return MaxPool(3, 2, name=f"bifpn_{name}", dtype=dtype)(x)

        # === Functional model ===
        features = self.levels_of(backbone, range(min_level, 6), dtype)
        levels = {n: lateral(features[n], f"p{n}_lateral") for n in range(min_level, 6)}
        if max_level > 5:
            levels[6] = pool(lateral(features[5], "p6_lateral"), "p6_pool")
        for level in range(7, max_level + 1):
            levels[level] = pool(levels[level - 1], f"p{level}_pool")
        # In the first round the way up has projections of its own for what it reads again.
        again = {
            n: lateral(features[n], f"p{n}_again") for n in range(min_level + 1, 6) if n < max_level
        }
        for number in range(1, repeats + 1):
            levels = _round(levels, {**levels, **again}, kit, width, f"bifpn_{number}")
            again = {}
        super().__init__(
            backbone=backbone,
            pyramid_outputs={f"P{level}": x for level, x in levels.items()},
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.width = width
        self.repeats = repeats
        self.min_level = min_level
        self.max_level = max_level
        self.sync_batch_norm = sync_batch_norm


def _round(levels: dict, again: dict, kit: ConvNorm, width: int, name: str) -> dict:
    """From the coarsest level to the finest, and back up.

    Args:
        levels: maps by level number, finest first.
        again: what the way up reads of the levels between.
        kit: makes the layers.
        width: channels of all maps.
        name: begins the layers' names.
    """

    def node(maps: list, place: str):
        x = WeightedSum(name=f"{place}_sum", dtype=kit.dtype)(maps)
        x = DepthwiseConv(
            3,
            use_bias=False,
            kernel_initializer=FanInNormal(fan_in=9),
            name=f"{place}_dwconv",
            dtype=kit.dtype,
        )(kit.act(x, f"{place}_act"))
        return kit.norm(kit.conv(x, width, 1, f"{place}_conv"), f"{place}_norm")

    finest, coarsest = min(levels), max(levels)
    down = {coarsest: levels[coarsest]}
    for level in range(coarsest - 1, finest - 1, -1):
        place = f"{name}_p{level}_down"
        up = NearestUpsample(name=f"{place}_upsample", dtype=kit.dtype)
        down[level] = node([levels[level], up(down[level + 1], levels[level])], place)
    out = {finest: down[finest]}
    for level in range(finest + 1, coarsest + 1):
        place = f"{name}_p{level}_up"
        pooled = MaxPool(3, 2, name=f"{place}_pool", dtype=kit.dtype)(out[level - 1])
        between = [down[level]] if level < coarsest else []
        out[level] = node([again[level], *between, pooled], place)
    return out
