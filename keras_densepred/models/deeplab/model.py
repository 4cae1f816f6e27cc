"""DeepLabv3 as BiCSNet uses it: on the mean of a pyramid, without dilation in the backbone."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.faults import require_positive
from keras_densepred.layers.aspp import atrous_pyramid_pooling
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.upsampling import PyramidMean, UpsampleToImage
from keras_densepred.models.hub_task import HubTask
from keras_densepred.models.pyramid import image_shape, levels_on
from keras_densepred.models.segmenter import Segmenter, check_backbone

ATROUS_RATES = (6, 12, 18)  # "Rethinking Atrous Convolution", section 4, at an output stride of 16
_STRIDE = 8  # of P3


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeepLabV3(Segmenter, HubTask, keras_hub.models.ImageSegmenter):
    """Semantic segmentation on a pyramid ("BiCSNet", section on semantic segmentation).

    Levels P3 and up are nearest up-sampled to stride 8 and averaged; then atrous spatial pyramid
    pooling, two 3x3 convolutions with norm and activation, a 1x1 convolution to logits, and
    bilinear up-sampling to the size of the images. The paper names the mean and the two
    convolutions of 256 channels; the pooling is our reading of its FLOPs ("DeepLabv3 without
    dilation" may be read with and without it: 31.4 and 22.6 G for BiCSNet-48, the paper has 33).

    Input: images `(batch, height, width, 3)` as the backbone wants them, of any size that it
    takes. Output: logits `(batch, height, width, num_classes)`, float32.

    Trains on masks `(batch, height, width)` of integers, 255 where there is no class.

    Args:
        backbone: a pyramid backbone with `pyramid_outputs` P3 and up. Where its levels have
            different numbers of channels, as CEDNet's, each first goes through a 1x1 convolution
            with norm and activation.
        num_classes: C, the background included where it is a class.
        width: channels of the head.
        atrous_rates: of atrous spatial pyramid pooling; None for no such module.
        activation: one that `layers.ConvNorm` has, such as `"swish"`; by default the backbone's,
            and `"relu"` on backbones without batch norms.
        preprocessor: a `keras_hub` preprocessor, or `None` for images that are ready.
        dtype: dtype policy of the head; by default the backbone's. Logits are float32.
        **kwargs: arguments of `keras_hub.models.Task`, such as `name`.

    Raises:
        ValueError: if `backbone` has no P3 or is channels_first, or an argument is out of range.

    Example:
        backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        model = keras_densepred.models.DeepLabV3(backbone, num_classes=21)
        model.fit(images, masks)
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        width: int = 256,
        atrous_rates: Sequence[int] | None = ATROUS_RATES,
        activation: str | None = None,
        preprocessor: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        check_backbone(backbone, num_classes, ("P3",))
        require_positive(width=width)
        head_dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        own = getattr(backbone, "kit", None)  # networks of hosts have none
        if activation is None:
            activation = own.activation if isinstance(own, ConvNorm) else "relu"
        kit = ConvNorm(
            activation,
            sync_batch_norm=shares_batch_norms(backbone),
            dtype=head_dtype,
        )

        # === Functional model ===
        images = keras.Input(image_shape(backbone), name="images")
        features = levels_on(backbone, images)
        names = sorted((name for name in features if int(name[1:]) >= 3), key=lambda n: int(n[1:]))
        levels = [features[name] for name in names]
        if len({level.shape[-1] for level in levels}) > 1:
            levels = [
                kit.unit(level, width, 1, f"lateral_{name.lower()}")
                for name, level in zip(names, levels, strict=True)
            ]
        x = levels[0]
        if len(levels) > 1:
            x = PyramidMean(name="pyramid_mean", dtype=head_dtype)(levels)
        if atrous_rates is not None:
            x = atrous_pyramid_pooling(kit, x, width, atrous_rates, "aspp")
        for number in (1, 2):
            x = kit.unit(x, width, 3, f"head_{number}")
        logits = keras.layers.Conv2D(
            num_classes,
            1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            data_format="channels_last",
            name="logits",
            dtype=head_dtype,
        )(x)
        outputs = UpsampleToImage(_STRIDE, name="upsampled_logits", dtype="float32")(logits, images)
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self.num_classes = num_classes
        self.width = width
        self.atrous_rates = None if atrous_rates is None else tuple(atrous_rates)
        self.activation = activation
        self.head_dtype = head_dtype

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "atrous_rates": self.atrous_rates,
            "activation": self.activation,
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }
