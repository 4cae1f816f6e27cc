"""Darknet's smallest detection backbone, of yolov3-tiny and of yolov3-tiny-prn.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement" (2018), and its yolov3-tiny.cfg; Wang et
al., "Enriching Variety of Layer-wise Learning Information by Gradient Combination" (2019), and its
yolov3-tiny-prn.cfg: both are compared with in table 5 of the CSPNet paper.

No weights are shipped; `convert.darknet` reads the authors'.
"""

from collections.abc import Sequence

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.registry import register_backbone
from keras_densepred.layers.conv_norm import OrderedConvNorm
from keras_densepred.layers.darknet import PartialAdd
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.pooling import MaxPool

LAYERS = 7
LAST_STRIDED = 5  # five poolings halve the map, the sixth keeps its size


@register_backbone
class DarknetTinyBackbone(PyramidBackbone):
    """Seven 3x3 convolutions with max-pooling between them.

    Input: RGB images `(batch, height, width, 3)`, float in 0..1, of any size.

    Output: `{"P2", ..., "P5"}`, maps `(batch, ceil(height / stride), ceil(width / stride),
    channels)` of strides 4 to 32: the last convolution of each stride.

    Args:
        widths: channels of the seven convolutions.
        residual: whether the last convolution's input, before its pooling, is added to its output,
            as in yolov3-tiny-prn; they need the same channels.
        activation: `"leaky_relu"`, `"mish"`, `"swish"` or `"relu"`.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        image_shape: input shape without the batch axis; sizes may be None.
        data_format: `"channels_last"`, `"channels_first"` or None for Keras' default: the layout
            of images and outputs. Inside, maps are always channels-last.
        dtype: dtype policy.

    Raises:
        ValueError: if there are not seven widths, or the last two differ and `residual` is set.

    Example:

    >>> import keras_densepred, numpy
    >>> backbone = keras_densepred.backbones.DarknetTinyBackbone.from_preset("yolov3_tiny")
    >>> tuple(backbone(numpy.zeros((1, 64, 96, 3)))["P5"].shape)
    (1, 2, 3, 1024)
    """

    _preset_file = "darknet_tiny.json"
    size_divisor = 1
    darknet_epsilon = 1e-6  # of the batch norms of the Darknet that trained yolov3-tiny

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024),
        residual: bool = False,
        activation: str = "leaky_relu",
        sync_batch_norm: bool = False,
        image_shape: Sequence[int | None] = (None, None, 3),
        data_format: str | None = None,
        dtype=None,
        **kwargs,
    ):
        widths = tuple(widths)
        if len(widths) != LAYERS:
            raise ValueError(f"`widths` must be {LAYERS} numbers of channels, got {widths}.")
        if residual and widths[-2] != widths[-1]:
            raise ValueError(f"With `residual` the last two `widths` are alike, got {widths}.")
        kit = OrderedConvNorm(
            activation, epsilon=1e-5, sync_batch_norm=sync_batch_norm, dtype=dtype
        )

        # === Functional model ===
        inputs, x = image_input(image_shape, data_format, dtype)
        maps = {}
        for number, width in enumerate(widths):
            before = x
            if number:
                strides = 2 if number <= LAST_STRIDED else 1
                x = MaxPool(2, strides, name=f"pool{number}", dtype=dtype)(x)
            x = kit.unit(x, width, 3, f"conv{number + 1}")
            maps[f"P{min(number, LAST_STRIDED)}"] = x
        if residual:
            x = PartialAdd(name="residual", dtype=dtype)(x, before)
            maps["P5"] = kit.act(x, "residual_act")
        super().__init__(
            inputs=inputs,
            pyramid_outputs={level: maps[level] for level in ("P2", "P3", "P4", "P5")},
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=kit,
            **kwargs,
        )

        # === Config ===
        self.widths = widths
        self.residual = residual
        self.activation = activation
        self.sync_batch_norm = sync_batch_norm
        self._convolutions = tuple(kit.order)

    @property
    def darknet_order(self) -> tuple[str, ...]:
        """The names of the convolutions in the order of a Darknet file (`convert.darknet`)."""
        return self._convolutions
