"""CSPNet's fusion necks and YOLOv3's prediction layers, on any backbone with P3, P4 and P5.

"CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (Wang et al., 2020), section
3.2. PRN and PANet-SPP are the authors' cfgs; CEM and EFM are decoded from the per-layer costs of
Figure 7, where convolutions are certain and the wiring between some of them is ours; GFM is
calibrated to its published cost alone. A neck takes {"P3", "P4", "P5"} (B, H, W, any channels) and
returns the maps (B, H, W, channels) that the linear predictions are made of, finest level first.
Each convolution is 1x1 or 3x3, batch norm, activation unless said otherwise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.layers.conv import Pointwise
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.darknet import (
    Maxout,
    PartialAdd,
    SpatialPyramidPooling,
    attention_gate,
)
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.layers.pooling import GlobalMean, MaxPool
from keras_densepred.layers.stateless import Concat
from keras_densepred.layers.upsampling import BroadcastLike, NearestUpsample

Tensor = Any
Pyramid = Mapping[str, Tensor]

# Probability of an object that a slot starts with, as in RetinaNet; Darknet starts at 0.5.
OBJECTNESS_PRIOR = 0.01


@keras.saving.register_keras_serializable(package="keras_densepred")
class ObjectnessBias(keras.initializers.Initializer):
    """Zeros, and the logit of `prior` at each anchor's objectness.

    Args:
        anchors: anchors of a cell, whose values lie one after the other.
        prior: probability of an object that a slot starts with.
    """

    def __init__(self, anchors: int, prior: float = OBJECTNESS_PRIOR):
        self.anchors = anchors
        self.prior = prior

    def __call__(self, shape, dtype=None):
        bias = np.zeros((self.anchors, shape[0] // self.anchors), np.float32)
        bias[:, 4] = -math.log((1 - self.prior) / self.prior)
        return keras.ops.convert_to_tensor(bias.reshape(-1), dtype=dtype)

    def get_config(self):
        return {"anchors": self.anchors, "prior": self.prior}


def predict_maps(
    features: Pyramid, num_classes: int, anchors: Mapping[str, int], dtype: Any
) -> dict[str, Tensor]:
    """The linear 1x1 predictions of every level, in float32.

    Args:
        features: what a neck returns.
        num_classes: C.
        anchors: level to its anchors of a cell, A.
        dtype: dtype policy of the convolutions.

    Returns:
        Level to (B, H * W, A, 5 + C) float32: x, y, w, h, objectness, classes, all as logits.
    """
    outputs = {}
    for level, feature in features.items():
        count, name = anchors[level], level.lower()
        x = Pointwise(
            count * (5 + num_classes),
            kernel_initializer=FanInNormal(fan_in=10_000),  # deviation 0.01, as RetinaNet's
            bias_initializer=ObjectnessBias(count),
            name=f"yolo_{name}_prediction",
            dtype=dtype,
        )(feature)
        # float32 from here on: losses and decoding are not for half precision.
        outputs[level] = keras.layers.Reshape(
            (-1, count, 5 + num_classes), name=f"yolo_{name}", dtype="float32"
        )(x)
    return outputs


def darknet_order(convs: Sequence[str], features: Pyramid) -> tuple[str, ...]:
    """The convolutions of neck and predictions in the order of a Darknet file.

    There a level is predicted as soon as its map is made.

    Args:
        convs: names of the neck's convolutions in the order in which they were made.
        features: what the neck returned.

    Returns:
        These names, each prediction's behind the last convolution that its map is made of.
    """
    order = list(convs)
    for level, feature in features.items():
        made_of, open_tensors = set(), [feature]
        while open_tensors:
            history = open_tensors.pop()._keras_history
            if history.operation.name not in made_of:
                made_of.add(history.operation.name)
                node = history.operation._inbound_nodes[history.node_index]
                open_tensors += node.input_tensors
        last = max(order.index(name) for name in convs if name in made_of)
        order.insert(last + 1, f"yolo_{level.lower()}_prediction")
    return tuple(order)


def _concat(kit: ConvNorm, maps: list, name: str):
    return Concat(name=name, dtype=kit.dtype)(maps)


def _up(kit: ConvNorm, x, fine, name: str, factor: int = 2):
    return NearestUpsample(factor, name=name, dtype=kit.dtype)(x, fine)


def _pool(kit: ConvNorm, x, name: str):
    return MaxPool(2, 2, name=name, dtype=kit.dtype)(x)


def _add(kit: ConvNorm, x, shortcut, name: str):
    """Darknet's shortcut: the channels both maps have, then the activation."""
    return kit.act(PartialAdd(name=name, dtype=kit.dtype)(x, shortcut), f"{name}_act")


def _narrow(kit: ConvNorm, x, channels: int, name: str):
    """Maxout, or a convolution where a backbone's map is not wide enough for it."""
    if x.shape[-1] < channels:
        return kit.unit(x, channels, 1, name)
    return Maxout(channels, name=name, dtype=kit.dtype)(x)


def _residual(kit: ConvNorm, x, name: str):
    """3x3 convolution that keeps the channels, added to its input."""
    return _add(kit, kit.unit(x, x.shape[-1], 3, f"{name}_conv"), x, f"{name}_add")


# --- YOLOv3-tiny ---------------------------------------------------------------------------------


def tiny(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    """P4 and P5 of yolov3-tiny: the coarser map, reduced, beside the finer one."""
    reduced = kit.unit(features["P5"], 256, 1, "tiny_p5_reduce")
    top = kit.unit(reduced, 512, 3, "tiny_p5")
    x = kit.unit(reduced, 128, 1, "tiny_p4_reduce")
    x = _up(kit, x, features["P4"], "tiny_p4_up")
    x = _concat(kit, [x, features["P4"]], "tiny_p4_concat")
    return {"P4": kit.unit(x, 256, 3, "tiny_p4"), "P5": top}


# --- PRN -----------------------------------------------------------------------------------------


def _prn_step(kit: ConvNorm, up, lateral, name: str):
    """Spec steps 3 and 4: the lateral map enters twice, the up-sampled one remains beside it."""
    x = _add(kit, up, lateral, f"{name}_add1")
    x = kit.unit(x, 128, 3, name)
    x = _add(kit, x, up, f"{name}_add2")
    return _add(kit, x, lateral, f"{name}_add3")


def prn(kit: ConvNorm, features: Pyramid, levels: int = 2) -> dict[str, Tensor]:
    """Partial residual network of yolov3-tiny-prn: P4 and P5, or with three `levels` P3 as well."""
    name = "prn_p5"
    reduced = kit.unit(features["P5"], 256, 1, f"{name}_reduce")
    top = kit.unit(reduced, 256, 3, name)
    outputs = {"P5": _add(kit, top, reduced, f"{name}_add")}
    x = top
    for level in ("P4", "P3")[: levels - 1]:
        lateral, name = features[level], f"prn_{level.lower()}"
        x = kit.unit(x, 128, 1, f"{name}_reduce")
        x = _prn_step(kit, _up(kit, x, lateral, f"{name}_up"), lateral, name)
        outputs[level] = x
    return dict(reversed(outputs.items()))


def prn_3l(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    """PRN with a third level."""
    return prn(kit, features, levels=3)


# --- CEM -----------------------------------------------------------------------------------------


def cem(kit: ConvNorm, features: Pyramid, sam: bool = False) -> dict[str, Tensor]:
    """Context enhancement (ThunderNet) at three scales: every level sees all, and the whole image.

    The pooling down (maximum) and the order of the concatenation are not published.
    """
    lateral = {
        level: kit.unit(features[level], 128, 1, f"cem_{level.lower()}_lateral")
        for level in ("P3", "P4", "P5")
    }
    context = GlobalMean(name="cem_mean", dtype=kit.dtype)(features["P5"])
    context = kit.unit(context, 128, 1, "cem_context")
    outputs = {}
    pooled: dict[str, Tensor] = {}  # of each finer level, at the size of this one
    for level, here in lateral.items():
        name, number = f"cem_{level.lower()}", int(level[1])
        for other, x in pooled.items():
            pooled[other] = _pool(kit, x, f"{name}_pool_{other.lower()}")
        pooled[level] = here
        coarser = [
            _up(kit, x, here, f"{name}_up_{other.lower()}", 2 ** (int(other[1]) - number))
            for other, x in lateral.items()
            if int(other[1]) > number
        ]
        everywhere = BroadcastLike(name=f"{name}_context", dtype=kit.dtype)(context, here)
        maps = [*pooled.values(), *coarser, everywhere]
        x = kit.unit(_concat(kit, maps, f"{name}_concat"), 128, 1, name)
        outputs[level] = attention_gate(kit, x, f"{name}_sam") if sam else x
    return outputs


# --- GFM and EFM ---------------------------------------------------------------------------------


def _top_down(kit: ConvNorm, features: Pyramid, prefix: str) -> tuple[Tensor, Tensor]:
    """P5 with 256 channels and P4 with 128, as EFM and GFM both have them."""
    p5 = _residual(kit, kit.unit(features["P5"], 256, 1, f"{prefix}_p5_reduce"), f"{prefix}_p5")
    x = kit.unit(p5, 128, 1, f"{prefix}_p5_down")
    x = _up(kit, x, features["P4"], f"{prefix}_p5_up")
    lateral = _narrow(kit, features["P4"], 128, f"{prefix}_p4_maxout")
    x = _concat(kit, [lateral, x], f"{prefix}_p4_concat")
    p4 = _residual(kit, kit.unit(x, 128, 1, f"{prefix}_p4_reduce"), f"{prefix}_p4")
    return p4, p5


def gfm(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    """Global fusion: each scale is made of all three."""
    p4, p5 = _top_down(kit, features, "gfm")
    fine = features["P3"]
    x = _up(kit, kit.unit(p4, 64, 1, "gfm_p4_down"), fine, "gfm_p4_up")
    x = _concat(kit, [_narrow(kit, fine, 64, "gfm_p3_maxout"), x], "gfm_p3_concat")
    p3 = _residual(kit, kit.unit(x, 64, 1, "gfm_p3_reduce"), "gfm_p3")
    pooled = _pool(kit, p3, "gfm_p3_pool")
    top = kit.unit(p5, 128, 1, "gfm_fuse_p5")
    scales = {
        "P3": [
            p3,
            _up(kit, kit.unit(p4, 64, 1, "gfm_fuse_p3_p4"), p3, "gfm_fuse_p3_p4_up"),
            _up(kit, kit.unit(p5, 64, 1, "gfm_fuse_p3_p5"), p3, "gfm_fuse_p3_p5_up", 4),
        ],
        "P4": [
            p4,
            kit.unit(pooled, 128, 1, "gfm_fuse_p4_p3"),
            _up(kit, top, p4, "gfm_fuse_p4_p5_up"),
        ],
        "P5": [
            top,
            _pool(kit, p4, "gfm_p4_pool"),
            kit.unit(_pool(kit, pooled, "gfm_p3_pool_again"), 128, 1, "gfm_fuse_p5_p3"),
        ],
    }
    outputs = {}
    for level, maps in scales.items():
        name = f"gfm_out_{level.lower()}"
        width = 64 if level == "P3" else 128
        x = kit.unit(_concat(kit, maps, f"{name}_concat"), width, 1, f"{name}_reduce")
        outputs[level] = kit.unit(x, width, 3, name)
    return outputs


def efm(
    kit: ConvNorm, features: Pyramid, sam: bool = False, spp: bool = False
) -> dict[str, Tensor]:
    """Exact fusion: each scale is made of itself, the finer and the coarser one, and no more."""

    def gated(x, name: str):
        return attention_gate(kit, x, f"{name}_sam") if sam else x

    p4, p5 = _top_down(kit, features, "efm")
    fine = features["P3"]
    first = kit.unit(p4, 64, 1, "efm_p4_down1")
    second = kit.unit(first, 64, 3, "efm_p4_down2")
    x = kit.unit(_concat(kit, [second, first], "efm_p4_down_concat"), 64, 1, "efm_p4_down3")
    x = _up(kit, kit.unit(x, 64, 3, "efm_p4_down4"), fine, "efm_p4_up")
    x = _add(kit, x, _narrow(kit, fine, 64, "efm_p3_maxout"), "efm_p3_lateral")
    p3 = _residual(kit, kit.unit(x, 64, 1, "efm_p3_reduce"), "efm_p3")
    x = kit.unit(_narrow(kit, fine, 16, "efm_p3_maxout16"), 64, 3, "efm_p3_detail")
    x = _add(kit, x, p3, "efm_p3_detail_add")

    up = _up(kit, kit.unit(p4, 64, 1, "efm_fuse_p3_p4"), x, "efm_fuse_p3_p4_up")
    x = gated(_concat(kit, [x, up], "efm_fuse_p3_concat"), "efm_fuse_p3")
    n3 = kit.unit(kit.unit(x, 64, 1, "efm_fuse_p3_reduce"), 64, 3, "efm_fuse_p3")

    x = _add(kit, kit.unit(n3, 128, 3, "efm_fuse_p4_p3", stride=2), p4, "efm_fuse_p4_add")
    up = _up(kit, _narrow(kit, p5, 128, "efm_p5_maxout"), x, "efm_fuse_p4_p5_up")
    x = gated(_concat(kit, [x, up], "efm_fuse_p4_concat"), "efm_fuse_p4")
    n4 = kit.unit(kit.unit(x, 128, 1, "efm_fuse_p4_reduce"), 128, 3, "efm_fuse_p4")

    x = _add(kit, kit.unit(n4, 256, 3, "efm_fuse_p5_p4", stride=2), p5, "efm_fuse_p5_add")
    x = gated(x, "efm_fuse_p5")
    if spp:
        x = SpatialPyramidPooling(name="efm_spp", dtype=kit.dtype)(x)
        n5 = kit.unit(x, 128, 1, "efm_fuse_p5")
    else:
        n5 = kit.unit(kit.unit(x, 128, 1, "efm_fuse_p5_reduce"), 128, 3, "efm_fuse_p5")
    return {"P3": n3, "P4": n4, "P5": n5}


# --- PANet-SPP -----------------------------------------------------------------------------------


def _alternating(kit: ConvNorm, x, channels: int, name: str, convs: int = 5):
    """1x1 to `channels` and 3x3 to twice as many by turns, beginning and ending with 1x1."""
    for index in range(convs):
        wide = index % 2
        x = kit.unit(x, channels * (1 + wide), 1 + 2 * wide, f"{name}_{index}")
    return x


def panet_spp(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    """PANet with pyramid pooling, of csresnext50-panet-spp."""
    x = _alternating(kit, features["P5"], 512, "panet_p5", 3)
    x = SpatialPyramidPooling(name="panet_spp", dtype=kit.dtype)(x)
    down = {"P5": _alternating(kit, x, 512, "panet_p5_spp", 3)}
    for level, above, channels in (("P4", "P5", 256), ("P3", "P4", 128)):
        name = f"panet_{level.lower()}"
        x = kit.unit(down[above], channels, 1, f"{name}_reduce")
        x = _up(kit, x, features[level], f"{name}_up")
        lateral = kit.unit(features[level], channels, 1, f"{name}_lateral")
        x = _concat(kit, [lateral, x], f"{name}_concat")
        down[level] = _alternating(kit, x, channels, name)
    up = {"P3": down["P3"]}
    outputs = {"P3": kit.unit(down["P3"], 256, 3, "panet_out_p3")}
    for level, below, channels in (("P4", "P3", 256), ("P5", "P4", 512)):
        name = f"panet_n{level[1]}"
        x = kit.unit(up[below], channels, 3, f"{name}_down", stride=2)
        x = _concat(kit, [x, down[level]], f"{name}_concat")
        up[level] = _alternating(kit, x, channels, name)
        outputs[level] = kit.unit(up[level], 2 * channels, 3, f"panet_out_{level.lower()}")
    return outputs


def _cem_sam(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    return cem(kit, features, sam=True)


def _efm_sam(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    return efm(kit, features, sam=True)


def _efm_spp(kit: ConvNorm, features: Pyramid) -> dict[str, Tensor]:
    return efm(kit, features, spp=True)


YOLO_NECKS: dict[str, Callable[[ConvNorm, Pyramid], dict[str, Tensor]]] = {
    "tiny": tiny,
    "prn": prn,
    "prn_3l": prn_3l,
    "cem": cem,
    "cem_sam": _cem_sam,
    "gfm": gfm,
    "efm": efm,
    "efm_sam": _efm_sam,
    "efm_spp": _efm_spp,
    "panet_spp": panet_spp,
}
"""Name to the neck: what `YOLOv3Detector(neck=...)` takes."""
