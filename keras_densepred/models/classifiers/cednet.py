"""Image classification with CEDNet, as the authors pretrain: one head at every stage."""

from typing import Any

import keras
from keras import layers, ops

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.saved_preset import BackboneClass
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.models.classifier import Classifier

HEAD_WIDTH = 2048


@keras.saving.register_keras_serializable(package="keras_densepred")
class CEDNetImageClassifier(Classifier):
    """CEDNet classifier with deep supervision (in the authors' code, not in the paper).

    Each stage has a head that reads its C5: 1x1 convolution to 2048, norm, activation, global
    average, layer norm, linear. Training sees all heads: the loss is the mean of the stages'
    losses. Prediction and metrics use the last head, the only one computed outside of training.

    Input: images as the backbone wants them. Output: `(batch, num_classes)`, logits unless
    `activation` is given; called with `training=True`, a list of such tensors, first stage first.

    Args:
        backbone: a `CEDNetBackbone`.
        num_classes: number of classes.
        preprocessor: None, or a KerasHub preprocessor or layer applied by fit and predict.
        activation: what follows the last linear layer, `"softmax"` or None.
        head_dtype: dtype policy of the heads, by default the backbone's.

    Attributes:
        inference_graph: from the images to what the last head gives, which is all that calls
            outside of training compute.

    Example:

    >>> import keras_densepred, numpy
    >>> model = keras_densepred.CEDNetImageClassifier.from_preset("cednet_next_pico", num_classes=3)
    >>> model(numpy.zeros((2, 64, 64, 3))).shape == (2, 3)
    True
    """

    backbone_cls = BackboneClass(CEDNetBackbone)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.inference_graph = keras.Function(self.backbone.input, self.outputs[-1])

    @classmethod
    def outputs_of(
        cls, backbone: PyramidBackbone, num_classes: int, activation: Any, dtype: Any
    ) -> list[Any]:
        if not isinstance(backbone, CEDNetBackbone):
            raise ValueError(
                f"`backbone` is a {type(backbone).__name__}; a CEDNetImageClassifier has a head at "
                "each stage of a CEDNetBackbone."
            )
        logits = [
            _stage_head(maps["P5"], backbone, num_classes, f"head{stage}", dtype)
            for stage, maps in enumerate(backbone.stage_outputs, start=1)
        ]
        if activation is None:
            return logits
        return [
            layers.Activation(activation, name=f"head{stage}_activation", dtype=dtype)(x)
            for stage, x in enumerate(logits, start=1)
        ]

    def call(self, inputs, training=None, mask=None):
        if training:
            return super().call(inputs, training=True, mask=mask)
        # Layers inside learn from Keras' call context that this is not training.
        return self.inference_graph(inputs)

    def compute_output_spec(self, inputs, training=None, mask=None):
        if training:
            return super().compute_output_spec(inputs, training=True, mask=mask)
        return self.inference_graph.compute_output_spec(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, (list, tuple)):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        losses = [
            super(CEDNetImageClassifier, self).compute_loss(x, y, p, sample_weight, training)
            for p in y_pred
        ]
        return ops.mean(ops.stack(losses))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, (list, tuple)):
            y_pred = y_pred[-1]
        return super().compute_metrics(x, y, y_pred, sample_weight)


def _stage_head(c5, backbone: CEDNetBackbone, num_classes: int, name: str, dtype):
    """`(batch, height, width, channels)` of one stage -> logits `(batch, num_classes)`."""
    kit = backbone.kit
    x = kit.conv(c5, HEAD_WIDTH, 1, f"{name}_conv")
    x = kit.act(kit.norm(x, f"{name}_norm"), f"{name}_act")
    x = layers.GlobalAveragePooling2D("channels_last", name=f"{name}_pool", dtype=dtype)(x)
    x = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_pooled_norm", dtype=dtype)(x)
    # The authors' start at ImageNet's 1000 classes; with a fan-out of a few classes, the first
    # logits would be of the order of the 2048 features' norm.
    start = FanOutNormal(fan_out=max(num_classes, 1000))
    return layers.Dense(num_classes, kernel_initializer=start, name=f"{name}_logits", dtype=dtype)(
        x
    )
